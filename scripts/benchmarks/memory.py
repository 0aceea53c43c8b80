"""Peak memory per pair, at equal pairs in a batch, each contender in a process of its own.

The largest resident memory of the process less that after imports, model, data and a batch of one pair.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import contenders
from benchmarks.contenders import Run
from benchmarks.engine import draw
from benchmarks.machine import answer
from benchmarks.models import SUBJECTS, build
from benchmarks.options import Options

N_REFERENCES = 20
MODELS, QUICK_MODELS = ("bpnet64", "splice"), ("bpnet64",)
PAIRS = 40
MAKERS = {"floor": contenders.floor, "engine": contenders.engine, "tangermeme": contenders.tangermeme}


def run(options: Options) -> dict[str, Any]:
    """Bytes per pair of each contender on each model; printed as they come."""
    results: dict[str, Any] = {}
    names = [name for name in MAKERS if name != "tangermeme" or "tangermeme" in options.peers]
    for model in options.models or (QUICK_MODELS if options.quick else MODELS):
        found = {name: measured(name, model, options) for name in names}
        results[model] = {"pairs": PAIRS, "bytes_per_pair": found}
        if found.get("tangermeme"):  # 0 where a batch takes less than imports had
            results[model]["engine / tangermeme"] = round(found["engine"] / found["tangermeme"], 3)
        figures = ", ".join(f"{name} {n_bytes / 2**20:.2f} MiB" for name, n_bytes in found.items())
        ratio = results[model].get("engine / tangermeme")
        print(
            f"  {model}, {results[model]['pairs']} pairs in a batch, per pair: {figures}; engine / tangermeme {ratio}"
        )
    return results


def measured(name: str, model: str, options: Options) -> float:
    """Bytes per pair of one contender, in a fresh process."""
    subject = SUBJECTS[model]
    length = max(600, subject.quick_length) if options.quick else subject.length
    asked = {"name": name, "model": model, "length": length, "threads": options.threads}
    return float(answer("-m", "benchmarks.memory", json.dumps(asked)).splitlines()[-1])


def peak(asked: dict[str, Any]) -> float:
    """In that process: bytes per pair."""
    torch.set_num_threads(asked["threads"])
    device = torch.device("cpu")
    X, references = draw(PAIRS // N_REFERENCES, asked["length"], N_REFERENCES, device)
    model = build(SUBJECTS[asked["model"]], asked["length"], 1, device)
    make = MAKERS[asked["name"]]
    small: Run = make(model, X[:1], references[:1, :1], [0])
    small(1)
    whole: Run = make(model, X, references, [0])
    before = peak_so_far()
    whole(PAIRS)
    return (peak_so_far() - before) / PAIRS


def peak_so_far() -> int:
    """Bytes of the process."""
    if (status := Path("/proc/self/status")).exists():  # ru_maxrss begins with what the parent of the process had
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(peak(json.loads(sys.argv[1])))
