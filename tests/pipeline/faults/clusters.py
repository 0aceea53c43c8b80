"""A Ray cluster of several nodes on this machine, which come and go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.pipeline.faults.commands import MARK, Commands

HOST = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": int(sys.argv[2]), "include_dashboard": False})
others = [cluster.add_node(num_cpus=1) for _ in range(int(sys.argv[1]) - 1)]
cluster.wait_for_nodes()
print("ready", cluster.address, flush=True)
for line in sys.stdin:
    if line == "remove\\n":
        cluster.remove_node(others.pop(), allow_graceful=False)
    else:
        others.append(cluster.add_node(num_cpus=1, wait=False))
    print("ready", len(others), flush=True)
cluster.shutdown()
"""


class Nodes:
    """The nodes of a cluster: a head, which stays, and others of one CPU each."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._ready()

    def remove(self) -> None:
        """Kill the youngest node."""
        self._tell("remove")

    def add(self) -> None:
        self._tell("add")

    def _tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        self._ready()

    def _ready(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ready "):
                return line.split()[1]
        raise AssertionError(f"the cluster's process has ended with {self._process.wait()}")


@contextmanager
def cluster_of(n_nodes: int, commands: Commands, head_cpus: int = 1, **environment: str) -> Iterator[Nodes]:
    """A cluster whose processes count as those of the commands."""
    root = str(Path(__file__).parents[3])
    around = {**os.environ, "PYTHONPATH": root, "RAY_USAGE_STATS_ENABLED": "0", **environment, MARK: commands.mark}
    around |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", HOST, str(n_nodes), str(head_cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=around,
        cwd=root,
    ) as process:
        try:
            yield Nodes(process)
        finally:
            commands.clean_up()
