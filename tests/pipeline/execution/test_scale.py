"""Many rows: memory does not grow with them, nothing spills, and a million shards are planned in a moment."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.execution.executors.ray_data import blocks
from pipeline.planning.shards import n_shards, remaining, select

LENGTH = 2114
TINY = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(4, 2, 5)

    def forward(self, x):
        return torch.relu(self.layer(x)).mean(dim=-1)
"""


@dataclass
class Peak:
    """What a run took.

    Attributes:
        driver, actor: the largest resident memory of the command and of a worker, bytes.
        spilled: files that Ray wrote because its object store was full.
    """

    driver: int = 0
    actor: int = 0
    spilled: set[Path] = field(default_factory=set)

    def look(self, command: psutil.Process) -> None:
        try:
            self.driver = max(self.driver, command.memory_info().rss)
            for child in command.children(recursive=True):
                if "ShardActor" in " ".join(child.cmdline()):
                    self.actor = max(self.actor, child.memory_info().rss)
        except psutil.Error:  # it has just ended
            return
        self.spilled |= set(Path(tempfile.gettempdir()).glob("dlshap-*/ray/session_latest/ray_spilled_objects*/*"))


def write_input(path: Path, n_rows: int) -> None:
    generator, letters = np.random.RandomState(0), np.frombuffer(b"ACGT", np.uint8)
    with path.open("wb") as file:
        for row in range(n_rows):
            file.write(b">s%d\n%b\n" % (row, letters[generator.randint(0, 4, LENGTH)].tobytes()))


def run_watched(folder: Path, n_rows: int) -> Peak:
    write_input(folder / "input.fa", n_rows)
    command = [sys.executable, "-m", "pipeline", "run", "model=module", "model._target_=tiny.Tiny", "--json"]
    command += ["model.checkpoint=tiny.safetensors", "dataset=fasta", "dataset.path=input.fa", "references=uniform"]
    command += ["references.n_shuffles=null", "store.path=a.zarr", "store.rows_per_shard=128", "cluster.actors=2"]
    peak = Peak()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak.look(watched)
            time.sleep(0.2)
        assert process.stdout is not None
        summary = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert (summary["complete"], summary["rows_computed"]) == (True, n_rows)
    return peak


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peaks = []
    for n_rows in (10_000, 100_000):
        folder = tmp_path / str(n_rows)
        folder.mkdir()
        (folder / "tiny.py").write_text(TINY)
        state = {f"layer.{name}": value for name, value in nn.Conv1d(4, 2, 5).state_dict().items()}
        save_file(state, folder / "tiny.safetensors")
        peaks.append(run_watched(folder, n_rows))
    few, many = peaks
    assert min(few.driver, few.actor) > 0
    assert many.driver < 1.1 * few.driver
    assert many.actor < 1.1 * few.actor
    assert many.spilled == set()


def test_a_million_shards_are_planned_in_a_moment() -> None:
    n = n_shards(128_000_000, 128)
    is_done = np.zeros(n, dtype=bool)
    is_done[::3] = True
    started = time.process_time()
    todo = remaining(select(n, None), is_done)
    found = list(blocks(todo.tolist()))
    assert time.process_time() - started < 30
    assert [index for block in found for index in block] == todo.tolist()
    assert len(found) <= 10_000
