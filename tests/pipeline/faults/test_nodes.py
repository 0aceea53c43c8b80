"""Nodes of a cluster that go in the midst of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.conftest import Inputs
from tests.pipeline.faults.clusters import cluster_of
from tests.pipeline.faults.commands import Commands, wait_until
from tests.pipeline.faults.conftest import TARGET, check_whole
from tests.pipeline.faults.evils import FOR_EVER, environment, evil

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("n_nodes", [2, 3])
def test_a_node_goes_for_good(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, n_nodes: int
) -> None:
    """There is no room for as many actors as before; those that are left do the work."""
    store, more = tmp_path / "a.zarr", "store.rows_per_shard=1"
    around = environment(tmp_path / "chaos", evil("compute", "sleep", None, FOR_EVER, 1.0))
    with cluster_of(n_nodes, commands, **around) as nodes:
        overrides = inputs.overrides(store, TARGET, more, "cluster=address", f"cluster.address={nodes.address}")
        command = commands.start(["run", *overrides, f"cluster.actors={n_nodes}"], around)
        done = Path(f"{store}.run/done")
        wait_until(lambda: command.poll() is not None or (done.is_dir() and len(list(done.iterdir())) >= 4), 120)
        nodes.remove()
        assert command.wait(150) == 0, command.err
    check_whole(store, digest_of(more))
