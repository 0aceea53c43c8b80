"""What the pipeline adds to the engine in a shard, by one thread; processor seconds say most.

In this process a shard is read, drawn, attributed, written and committed, against the engine alone on as many rows,
references drawn within.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pipeline
from benchmarks import plain
from benchmarks.models import BPNet
from benchmarks.options import Options
from benchmarks.pipeline import FILTERS, N_REFERENCES, make_weights, settings_of
from benchmarks.timing import interleaved, one_thread, ratio
from pipeline.config.compose import compose_config
from pipeline.config.settings import to_dict
from pipeline.execution.work import WorkSpec
from pipeline.execution.worker import Worker
from pipeline.store.run_directory import RunDirectory

ROWS, LENGTH, N_SHARDS = 24, 2114, 17  # one more than are timed: shards are done once
QUICK_ROWS, QUICK_LENGTH = 8, 500


def run(options: Options) -> dict[str, Any]:
    """Seconds of both, and how they compare; printed."""
    rows, length = (QUICK_ROWS, QUICK_LENGTH) if options.quick else (ROWS, LENGTH)
    numbers = itertools.count(1)
    with tempfile.TemporaryDirectory() as folder:
        worker, plan, codes = prepared(Path(folder), rows, length)
        model = BPNet(FILTERS, 1).eval()
        contenders = {
            "engine": lambda: plain.attribute_rows(model, codes[:rows], N_REFERENCES, plan.batch_size),
            "shard": lambda: worker.process(plan.shard(next(numbers))),
        }
        plain.attribute_rows(model, codes[:2], N_REFERENCES, plan.batch_size)
        with one_thread():
            samples = interleaved(contenders, torch.device("cpu"), options.budget_s)
    share = ratio(samples["engine"], samples["shard"])
    lower, _, upper = share["cpu_quartiles"]
    print(
        f"  {rows} rows of {length} bases: the engine alone takes {share['cpu']:.3f} of a shard's processor seconds "
        f"(quartiles {lower:.3f} to {upper:.3f}), {share['wall']:.3f} by the clock"
    )
    return {"contenders": {name: taken.to_json() for name, taken in samples.items()}, "engine / shard": share}


def prepared(folder: Path, rows: int, length: int) -> tuple[Worker, Any, np.ndarray]:
    """A worker that has done the first shard, the plan of its run, and the sequences."""
    make_weights(folder / "weights.safetensors")
    codes = np.random.RandomState(0).randint(0, 4, (rows * N_SHARDS, length)).astype(np.uint8)
    np.save(folder / "codes.npy", codes)
    settings = settings_of(folder, folder / "a.zarr", rows) | {"cluster": "none"}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    pipeline.run([*overrides, "run.shards=0"])
    plan = RunDirectory(folder / "a.zarr").read_plan()
    assert plan is not None
    model = to_dict(compose_config(overrides))["model"]
    worker = Worker(WorkSpec(str(folder / "a.zarr"), {}, plan, model, [], False))
    return worker, plan, codes
