"""Whole runs on Ray, with one and two actors of one thread, against plain processes that run the engine alone.

Of a run, the steady state is from the start of the first shard to the end of the last; shards that take less than
10 s say little; `warm` are the shards after the first of each actor. Rates are the best of rounds in which all take
turns.
"""

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks import plain
from benchmarks.machine import answer
from benchmarks.models import BPNet
from benchmarks.options import Options
from dlshap_core.batch_size import auto_batch_size

FILTERS, N_REFERENCES = 64, 20
SHARDS_PER_ACTOR = 2
FULL = {"length": 2114, "shard_s": 12.0, "rounds": 3}
QUICK = {"length": 500, "shard_s": 3.0, "rounds": 1}
COMPARED = [(f"{run}_{n}", f"plain_{n}") for run in ("run", "warm_run") for n in (1, 2)]
COMPARED += [("run_2", "run_1"), ("plain_2", "plain_1")]


def run(options: Options) -> dict[str, Any]:
    """Rows in a second of each, and how they compare; printed."""
    settings = QUICK if options.quick else FULL
    length = int(settings["length"])
    asked = {"filters": FILTERS, "length": length, "references": N_REFERENCES, "rows": 4}
    asked["batch_size"] = auto_batch_size(length, N_REFERENCES, "cpu")
    asked["rows"] = max(4, round(plain.rates(asked, 1) * settings["shard_s"]))
    taken: dict[str, list[float]] = defaultdict(list)
    starts, wholes = [], []
    with tempfile.TemporaryDirectory() as folder:
        make_weights(Path(folder) / "weights.safetensors")
        for number in range(int(settings["rounds"])):
            for n in (1, 2):
                taken[f"plain_{n}"].append(plain.rates(asked, n))
                found = watched(Path(folder), number, n, asked)
                taken[f"run_{n}"].append(found["rows_per_s"])
                taken[f"warm_run_{n}"].append(found["warm_rows_per_s"])
                starts.append(found["first_shard_after_s"])
                wholes.append({"actors": n, **found})
    best = {name: max(values) for name, values in taken.items()}
    results = {
        "rows_per_shard": asked["rows"],
        "rows_per_s": taken,
        **{f"{one} / {other}": round(best[one] / best[other], 3) for one, other in COMPARED},
        "first_shard_after_s": starts,
        "runs": wholes,
    }
    print(f"  {length} bases, shards of {asked['rows']} rows; best rows/s: {best}")
    print("  " + ", ".join(f"{name} {value}" for name, value in results.items() if " / " in name))
    print(f"  first shard begun {min(starts):.1f} to {max(starts):.1f} s after the command")
    return results


def make_weights(path: Path) -> None:
    """A checkpoint of the model that plain processes make by themselves: the numbers do not matter."""
    torch.manual_seed(0)
    save_file(BPNet(FILTERS, 1).state_dict(), path)


def watched(folder: Path, number: int, n_actors: int, asked: dict[str, Any]) -> dict[str, Any]:
    """One run: rows in a second of its steady state, seconds to its first shard, seconds of the whole command."""
    n_rows, store = asked["rows"] * SHARDS_PER_ACTOR * n_actors, folder / f"{number}-{n_actors}.zarr"
    codes = np.random.RandomState(0).randint(0, 4, (n_rows, asked["length"])).astype(np.uint8)
    np.save(folder / "codes.npy", codes)
    settings = settings_of(folder, store, asked["rows"]) | {
        "engine.batch_size": asked["batch_size"],
        "cluster.actors": n_actors,
    }
    started = time.time()
    answer("-m", "pipeline", "run", "--json", *(f"{key}={value}" for key, value in settings.items()), folder=folder)
    ended = time.time()
    records = list(Path(f"{store}.run/done").iterdir())
    spans = [(path.stat().st_mtime, json.loads(path.read_text())["seconds"]) for path in records]
    first, last = min(end - seconds for end, seconds in spans), max(end for end, _ in spans)
    later = [seconds for _, seconds in sorted(spans)[n_actors:]]  # each actor's first one meets Ray's own start
    return {
        "rows_per_s": n_rows / (last - first),
        "warm_rows_per_s": n_actors * asked["rows"] / (sum(later) / len(later)),
        "first_shard_after_s": first - started,
        "command_s": ended - started,
        "shards_s": [round(seconds, 2) for _, seconds in sorted(spans)],
    }


def settings_of(folder: Path, store: Path, rows_per_shard: int) -> dict[str, Any]:
    """Of a run on the weights and the codes in a folder."""
    return {
        "model": "module",
        "model._target_": "benchmarks.models.BPNet",
        "model.init.n_filters": FILTERS,
        "model.init.n_targets": 1,
        "model.checkpoint": folder / "weights.safetensors",
        "dataset": "array",
        "dataset.path": folder / "codes.npy",
        "dataset.axes": "NL",
        "references.n_shuffles": N_REFERENCES,
        "engine.device": "cpu",
        "store.path": store,
        "store.rows_per_shard": rows_per_shard,
    }
