"""One pair of a long sequence: peak memory and time, each contender in a process of its own, one at a time.

The largest resident memory of a process less that after imports, model, data and a pair of a short sequence. Plain is
a forward and a backward pass of one row by autograd alone; "never" and "always" are the engine's pair with that
`engine.checkpoint`, the latter in a process that gives freed memory back at once, as a run then has it.
"""

import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine import draw
from benchmarks.machine import answer
from benchmarks.memory import peak_so_far
from benchmarks.models import LONG, build
from benchmarks.options import Options
from benchmarks.timing import timed
from dlshap_core import attribute
from dlshap_core.engine import memory_of_pair
from pipeline.execution.host import give_back_freed_memory

LENGTHS, QUICK_LENGTHS = (32_768, 131_072), (4096,)
SHORT = 2048  # bases, for a first pair
ROUNDS = 3
CPU = torch.device("cpu")
WAYS = ("plain", "never", "always")


def run(options: Options) -> dict[str, Any]:
    """MiB and seconds of each contender at each length, medians of the rounds; printed as they come."""
    results: dict[str, Any] = {}
    rounds = 1 if options.quick else ROUNDS
    for length in QUICK_LENGTHS if options.quick else LENGTHS:
        names = blocks(length)
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                taken[way].append(measured(way, length, names, options))
        found = {way: {key: statistics.median(x[key] for x in each) for key in each[0]} for way, each in taken.items()}
        results[str(length)] = {"rounds": taken, "medians": found, "ratios": ratios(found)}
        figures = ", ".join(f"{way} {x['mib']:,.0f} MiB {x['wall_s']:.1f} s" for way, x in found.items())
        print(f"  {length:,} bases, one pair: {figures}; {results[str(length)]['ratios']}", flush=True)
    return results


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """How the medians compare."""
    plain, never, always = (found[way] for way in WAYS)
    return {
        "memory, never / plain": round(never["mib"] / plain["mib"], 2),
        "memory, always / plain": round(always["mib"] / plain["mib"], 2),
        "time, always / never": round(always["wall_s"] / never["wall_s"], 2),
        "processor time, always / never": round(always["cpu_s"] / never["cpu_s"], 2),
    }


def blocks(length: int) -> tuple[str, ...]:
    """Modules that are computed again, as a run decides it while it is prepared."""
    model = build(LONG, length, 1, CPU)
    return memory_of_pair(model, draw(1, length, 1, CPU)[0], device=CPU).names


def measured(way: str, length: int, names: tuple[str, ...], options: Options) -> dict[str, float]:
    """One contender, in a fresh process."""
    asked = {"way": way, "length": length, "threads": options.threads}
    asked["names"] = names if way == "always" else ()
    found: dict[str, float] = json.loads(answer("-m", "benchmarks.long", json.dumps(asked)).splitlines()[-1])
    return found


def pair(asked: dict[str, Any]) -> dict[str, float]:
    """In that process: MiB and seconds of one pair."""
    torch.set_num_threads(asked["threads"])
    if asked["way"] == "always":
        give_back_freed_memory()
    model = build(LONG, asked["length"], 1, CPU).requires_grad_(False)
    work = contender(asked["way"], asked["names"], model)
    work(SHORT)
    before = peak_so_far()
    taken = timed(lambda: work(asked["length"]), CPU)
    return {"mib": (peak_so_far() - before) / 2**20, "wall_s": taken.wall_s[0], "cpu_s": taken.cpu_s[0]}


def contender(way: str, names: tuple[str, ...], model: nn.Module) -> Callable[[int], object]:
    """What computes a pair of so many bases, or, plain, the gradient of one row."""

    def plain(length: int) -> Tensor:
        x = draw(1, length, 1, CPU)[0].requires_grad_()
        return torch.autograd.grad(model(x).sum(), x)[0]

    def engine(length: int) -> object:
        X, references = draw(1, length, 1, CPU)
        return attribute(model, X, references, batch_size=1, device=CPU, split=names)

    return plain if way == "plain" else engine


if __name__ == "__main__":
    print(json.dumps(pair(json.loads(sys.argv[1]))))
