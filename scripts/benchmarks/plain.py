"""A plain process that attributes rows with the engine alone, for comparison with the pipeline's actors.

`python -m benchmarks.plain JSON` says "ready" when it is warm, waits for a line, works, and prints the seconds it took.
"""

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.machine import ROOT, environment
from benchmarks.models import BPNet
from dlshap_core import attribute, shuffle_codes
from dlshap_core.one_hot import one_hot
from pipeline.execution.host import keep_freed_memory


def rates(asked: dict[str, Any], n_processes: int) -> float:
    """Rows in a second of some processes that work at the same time: all rows, over the time of the slowest."""
    command = [sys.executable, "-m", "benchmarks.plain", json.dumps(asked)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) for _ in range(n_processes)]
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("a plain process did not get ready")
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    seconds = [float(process.communicate()[0]) for process in processes]
    return n_processes * asked["rows"] / max(seconds)


def work(asked: dict[str, Any]) -> float:
    """Seconds of the rows, references drawn within, after a warm-up."""
    torch.set_num_threads(1)
    keep_freed_memory()
    model = BPNet(asked["filters"], 1).eval()
    codes = np.random.RandomState(0).randint(0, 4, (asked["rows"], asked["length"])).astype(np.uint8)

    attribute_rows(model, codes[:1], asked["references"], asked["batch_size"])
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    attribute_rows(model, codes, asked["references"], asked["batch_size"])
    return time.perf_counter() - started


def attribute_rows(model: torch.nn.Module, codes: np.ndarray, n_references: int, batch_size: int) -> None:
    """Draw so many references of every row of (N, L) codes, and attribute them."""
    references = one_hot(shuffle_codes(codes, range(n_references)))
    attribute(model, one_hot(codes), references, batch_size=batch_size, device="cpu")


if __name__ == "__main__":
    print(work(json.loads(sys.argv[1])))
