"""What the driver, the input and the store cost, by runs with a stand-in for the model, against what cost.py says.

The stand-in takes next to nothing, so that what is left is everything else. Phases are told by the marks that a run
leaves: its log, and the times of its done records.
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.machine import answer
from benchmarks.options import Options
from pipeline.planning import cost as costs
from pipeline.planning.cost import Workload, cost
from pipeline.store.done_shards import check_shards, recorded_shards
from pipeline.store.run_directory import RunDirectory

# rows, bases, rows in a shard, Ray's actors (0: without Ray)
FULL = ((10_240, 2114, 1024, 0), (16_000, 40, 8, 0), (16_000, 40, 8, 2), (1_000_000, 100, 4096, 0))
QUICK = ((2048, 2114, 512, 0), (800, 40, 8, 0))


class StandIn(nn.Module):
    """A convolution and a weight for each position: next to nothing, with attributions that compress like real ones."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.layer = nn.Conv1d(4, 2, 9, padding=4)
        self.weights = nn.Parameter(torch.randn(length))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.relu(self.layer(x)).sum(1) * self.weights).mean(1, keepdim=True)


def run(options: Options) -> dict[str, Any]:
    """Each run's phases, measured and predicted; printed."""
    results: dict[str, Any] = {}
    for n_rows, length, rows_per_shard, actors in QUICK if options.quick else FULL:
        work = Workload(n_rows, length, 1, 1, 1, rows_per_shard, actors=max(1, actors), on_ray=actors > 0)
        label = f"{n_rows:,} rows of {length} bases, {rows_per_shard} in a shard, {actors or 'no'} actors"
        found = check(work, actors)
        results[label] = found
        print(f"  {label}")
        for name, measured in found["measured"].items():
            predicted = found["predicted"].get(name)
            said = "" if predicted is None else f"; predicted {predicted:.4g}, {predicted / measured:.2f} of it"
            print(f"    {name:<16} {measured:.4g}{said}", flush=True)
    return results


def check(work: Workload, actors: int) -> dict[str, Any]:
    """One run: phases, bytes and files as they were and as the model has them; and what its constants would be."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "a.zarr"
        started, ended = _run(Path(folder), store, work, actors)
        directory = RunDirectory(store)
        plan = directory.read_plan()
        assert plan is not None
        log = next(Path(f"{store}.run/logs").glob("*.jsonl")).read_text().splitlines()
        times = {line["event"]: line["time"] for line in map(json.loads, log)}  # of the last of each
        records = [path.stat() for path in Path(f"{store}.run/done").iterdir()]
        first = min(record.st_mtime for record in records)
        first_s = json.loads(Path(f"{store}.run/done/00000000.json").read_text())["seconds"]
        files = {path: path.stat().st_size for path in store.rglob("*") if path.is_file()}
        begun = time.perf_counter()
        recorded_shards(directory, plan)
        look_s = time.perf_counter() - begun
        begun = time.perf_counter()
        check_shards(directory, plan)
        stock_s = time.perf_counter() - begun
        row_s = _row_s(work)
        predicted = cost(work, row_s)
        of_codes = sum(size for path, size in files.items() if path.parent.name == "codes" and path.name != "zarr.json")
        measured = {
            "command_s": ended - started,
            "before_work_s": first - first_s - started,
            "work_s": times["shard"] - (first - first_s),
            "end_s": ended - times["shard"],
            "look_s": look_s,
            "stock_s": stock_s,
            "store_bytes": sum(files.values()),
            "objects": len(files) + len(records),
            "bytes_per_code": of_codes / work.n_rows / work.length,
            "record_bytes": sum(record.st_size for record in records) / len(records),
            "shard_ms": 1e3 * (times["shard"] - first + first_s) * work.actors / work.n_shards,
        }
        return {
            "workload": asdict(work),
            "stand_in_row_s": row_s,
            "measured": measured,
            "predicted": {
                "before_work_s": costs.START_S + predicted.read_s,
                "work_s": predicted.wall_s - costs.START_S - predicted.read_s - predicted.end_s,
                "stock_s": predicted.end_s,
                "look_s": work.n_shards * costs.LOOK_S_PER_SHARD,
                "store_bytes": predicted.store_bytes,
                "objects": predicted.objects,
                "record_bytes": costs.RECORD_BYTES,
                "bytes_per_code": costs.BYTES_PER_CODE,
                "command_s": predicted.wall_s,
            },
        }


def _run(folder: Path, store: Path, work: Workload, actors: int) -> tuple[float, float]:
    """When the command began and ended, seconds since 1970."""
    torch.manual_seed(0)
    save_file(StandIn(work.length).state_dict(), folder / "weights.safetensors")
    generator, letters = np.random.RandomState(0), np.frombuffer(b"ACGT", np.uint8)
    with (folder / "input.fa").open("wb") as file:
        for row in range(work.n_rows):
            file.write(b">row_%d\n%b\n" % (row, letters[generator.randint(0, 4, work.length)].tobytes()))
    settings = ["model=module", "model._target_=benchmarks.scale.StandIn", "model.checkpoint=weights.safetensors"]
    settings += [f"model.init.length={work.length}"]
    settings += ["dataset=fasta", "dataset.path=input.fa", "references=uniform", "references.n_shuffles=null"]
    settings += [f"store.path={store}", f"store.rows_per_shard={work.rows_per_shard}", "engine.device=cpu"]
    settings += ["engine.batch_size=256", f"cluster.actors={actors}" if actors else "cluster=none"]
    started = time.time()
    answer("-m", "pipeline", "run", "--json", *settings, folder=folder)
    return started, time.time()


def _row_s(work: Workload) -> float:
    """Seconds of a row of the stand-in, alone."""
    import dlshap_core

    n = min(work.n_rows, work.rows_per_shard)
    X = torch.eye(4)[torch.randint(0, 4, (n, work.length))].transpose(1, 2)
    references = torch.full((n, 1, 4, work.length), 0.25)
    for _ in range(2):
        started = time.perf_counter()
        dlshap_core.attribute(StandIn(work.length), X, references, batch_size=256, device="cpu")
        taken = time.perf_counter() - started
    return taken / n
