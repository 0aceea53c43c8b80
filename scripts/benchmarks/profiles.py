"""Where the time of one batch of pairs and of one shard goes: shares by kind of operation, and by phase.

A batch is 20 references of one sequence, on one thread, by torch's profiler: the engine beside plain autograd on the
same rows. A shard is timed phase by phase with the pipeline's own functions.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import contenders
from benchmarks.engine import draw
from benchmarks.models import SUBJECTS, BPNet, build
from benchmarks.options import Options
from benchmarks.timing import one_thread

MODELS, QUICK_MODELS = ("bpnet64", "deepsea", "transformer"), ("bpnet64",)
N_REFERENCES = 20
ROWS, QUICK_ROWS = 32, 4
KINDS = {  # in a profile's names of operations; the first that fits
    "convolutions": ("conv",),
    "products": ("addmm", "aten::mm", "bmm", "matmul"),
    "rules going back": ("_ComputeLate", "_Pullback", "_Multiply", "_Substitute"),
    "activations": ("relu", "clamp_min", "threshold", "gelu", "softmax", "norm", "pool"),
    "copies": ("copy_", "clone", "cat", "fill_", "zero"),
}


def run(options: Options) -> dict[str, Any]:
    """Shares; printed."""
    results: dict[str, Any] = {}
    with one_thread():
        for name in options.models or (QUICK_MODELS if options.quick else MODELS):
            results[f"batch of {name}"] = batch(name, options)
        results["shard"] = shard(QUICK_ROWS if options.quick else ROWS, options)
    return results


def batch(name: str, options: Options) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time by kind of operation."""
    length = SUBJECTS[name].quick_length if options.quick else SUBJECTS[name].length
    X, references = draw(1, length, N_REFERENCES, options.device)
    given = (build(SUBJECTS[name], length, 1, options.device), X, references, [0])
    found = {}
    for contender, make in {"floor": contenders.floor, "engine": contenders.engine}.items():
        attribute = make(*given)
        attribute(N_REFERENCES)
        found[contender] = by_kind(lambda attribute=attribute: attribute(N_REFERENCES))
    print(f"  one batch of {name}, {N_REFERENCES} pairs of {length} bases, ms: floor, engine")
    for kind in sorted({*found["floor"], *found["engine"]}, key=lambda kind: -found["engine"].get(kind, 0)):
        print(f"    {kind:<18} {found['floor'].get(kind, 0):8.1f} {found['engine'].get(kind, 0):8.1f}", flush=True)
    return found


def by_kind(function: Callable[[], object]) -> dict[str, float]:
    """What the profiler saw, and what it did not: Python, and kernels that are not torch's."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.process_time()
        function()
        whole_ms = 1e3 * (time.process_time() - started)
    kinds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        names = (kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
        kinds[next(names, "other operations")] += event.self_cpu_time_total / 1e3
    kinds["unseen by torch"] = max(0.0, whole_ms - sum(kinds.values()))
    return {kind: round(ms, 2) for kind, ms in kinds.items()}


def shard(n_rows: int, options: Options) -> dict[str, float]:
    """Seconds of each phase of a shard of BPNet-64."""
    from benchmarks.store import make_plan, make_store
    from dlshap_core.batch_size import auto_batch_size
    from pipeline.execution.ensemble import attribute_rows
    from pipeline.execution.shard import shard_values
    from pipeline.references.resolve import load_references
    from pipeline.store.codec import ShardCodec, write_shard
    from pipeline.store.schema import shard_key

    length = SUBJECTS["bpnet64"].quick_length if options.quick else SUBJECTS["bpnet64"].length
    batch_size = auto_batch_size(length, N_REFERENCES, "cpu")
    plan = replace(make_plan(n_rows, length, n_rows, N_REFERENCES), batch_size=batch_size)
    torch.manual_seed(0)
    folds, draw_references = [BPNet(64, 1).eval()], load_references(plan, lambda: np.zeros((0, length), np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        backend = make_store(Path(folder) / "a.zarr", plan)
        codec = ShardCodec(backend)
        for _ in range(2):  # the first warms up
            marks = [time.perf_counter()]
            codes = codec.decode("codes", plan.shard(0), backend.read(shard_key("codes", 0)))
            marks.append(time.perf_counter())
            references = draw_references(codes, 0)
            marks.append(time.perf_counter())
            result = attribute_rows(folds, plan, codes, references)
            marks.append(time.perf_counter())
            values = shard_values(codes, references, result, plan)
            marks.append(time.perf_counter())
            write_shard(backend, codec, plan.shard(0), values)
            marks.append(time.perf_counter())
    phases = ("read", "draw references", "attribute", "project and check", "encode, write, read back")
    taken = dict(zip(phases, np.diff(marks).tolist(), strict=True))
    print(f"  one shard of BPNet-64, {n_rows} rows of {length} bases, {N_REFERENCES} references:")
    for phase, seconds in taken.items():
        print(f"    {phase:<26} {seconds:8.4f} s  {100 * seconds / sum(taken.values()):6.2f} %", flush=True)
    return {phase: round(seconds, 5) for phase, seconds in taken.items()}
