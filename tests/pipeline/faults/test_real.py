"""A real BPNet under everything at once: workers, drivers and nodes killed at random, ten times over."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest

import pipeline
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.faults.clusters import cluster_of
from tests.pipeline.faults.commands import Command, Commands, wait_until
from tests.pipeline.faults.conftest import check_whole

SHIFTS = (-40, 40)
N_KILLS = 10


@pytest.mark.real
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_model_killed_at_random(commands: Commands, real_data: Path, tmp_path: Path) -> None:
    store, rng = tmp_path / "a.zarr", random.Random(2)
    windows = shifted(real_data / "ctcf_peaks.chr1_1m.narrowPeak", tmp_path / "windows.bed")
    overrides = [
        "model=bpnet",
        f"model.checkpoint={real_data / 'bpnet_ctcf_k562.torch'}",
        "dataset=loci",
        f"dataset.genome={real_data / 'hg38_chr1_1m.fa.gz'}",
        f"dataset.loci={windows}",
        "dataset.length=2114",
        "references.n_shuffles=30",
        "store.rows_per_shard=1",
    ]
    undisturbed = [*overrides, "cluster=none", f"store.path={tmp_path / 'b.zarr'}"]
    assert pipeline.run(undisturbed).rows == 15 * len(SHIFTS)
    digest = pipeline.open_store(tmp_path / "b.zarr").digest()

    kills: list[str] = []
    with cluster_of(2, commands) as nodes:
        on_cluster = [*overrides, "cluster=address", f"cluster.address={nodes.address}", "cluster.actors=2"]
        arguments = ["run", *on_cluster, f"store.path={store}"]
        command = commands.start(arguments)
        while len(kills) < N_KILLS:
            wait_for_another(store, command)
            assert command.poll() is None, f"it ended after {kills}: {command.err}"
            time.sleep(rng.uniform(0, 1.5))
            kind = ("worker", "driver", "node", "worker")[len(kills) % 4]
            if kind == "worker":
                kill_one(commands, rng)
            elif kind == "node":
                nodes.remove()
                nodes.add()
            else:
                command.kill()
                command = commands.start(arguments)
            kills.append(kind)
        assert command.wait(240) == 0, f"{kills}: {command.err}"
    check_whole(store, digest)
    opened = pipeline.open_store(store)
    assert list(opened.rows["source_row"]) == list(range(15 * len(SHIFTS)))
    assert len(RunDirectory(store).done_indices()) == 15 * len(SHIFTS)


def wait_for_another(store: Path, command: Command) -> None:
    """Wait until another shard is done, or the command has ended."""
    n_done = len(RunDirectory(store).done_indices())
    wait_until(lambda: len(RunDirectory(store).done_indices()) > n_done or command.poll() is not None, 90)


def shifted(peaks: Path, path: Path) -> Path:
    """Windows around the peaks, and beside them."""
    rows = [line.split("\t") for line in peaks.read_text().splitlines()]
    middles = [int(row[1]) + int(row[9]) for row in rows]
    path.write_text("".join(f"chr1\t{m + shift - 20}\t{m + shift + 20}\n" for m in middles for shift in SHIFTS))
    return path


def kill_one(commands: Commands, rng: random.Random) -> None:
    """Kill one of the workers of a cluster, whoever's they are."""
    workers = []
    for process in commands.left():
        try:
            if "MapWorker" in process.cmdline()[0]:
                workers.append(process)
        except (psutil.Error, IndexError):
            continue
    rng.choice(workers).kill()
