"""Times of contenders taken in turns, and their ratios.

Wall seconds and processor seconds (all threads of this process) are both kept: on a machine with other work the second
are the steadier ones; with a GPU only the first say anything.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Contender = Callable[[], object]
MAX_ROUNDS, MIN_ROUNDS = 15, 3


@dataclass
class Samples:
    """Seconds of one contender, round by round."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def add(self, other: "Samples") -> None:
        """Append the rounds of another."""
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s

    def to_json(self) -> dict[str, Any]:
        """Samples with their medians and quartiles."""
        result: dict[str, Any] = {"wall_s": _rounded(self.wall_s), "cpu_s": _rounded(self.cpu_s)}
        for name, values in (("wall", self.wall_s), ("cpu", self.cpu_s)):
            result[f"{name}_quartiles_s"] = _rounded(quartiles(values))
        return result


def timed(function: Contender, device: torch.device) -> Samples:
    """One call; work queued on a GPU is waited for on both sides."""
    gc.collect(1)  # what the contender before left behind is not this one's to clear away
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    _wait(device)
    return Samples([time.perf_counter() - wall], [time.process_time() - cpu])


def interleaved(contenders: Mapping[str, Contender], device: torch.device, budget_s: float) -> dict[str, Samples]:
    """Rounds in which every contender has one turn, each round beginning with another, within about `budget_s`.

    The first round, which is kept, says how many fit: at least 3, at most 15. Contenders must have been warmed up.
    """
    names = list(contenders)
    samples = {name: Samples() for name in names}
    n_rounds, number = MAX_ROUNDS, 0
    while number < n_rounds:
        for position in range(len(names)):
            name = names[(number + position) % len(names)]
            samples[name].add(timed(contenders[name], device))
        number += 1
        if number == 1:
            n_rounds = rounds_within(budget_s, sum(taken.wall_s[0] for taken in samples.values()))
    return samples


def rounds_within(budget_s: float, round_s: float) -> int:
    """How many rounds of a length fit, 3 to 15."""
    return max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget_s / max(round_s, 1e-9))))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within this context torch uses one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile; of a single value that value thrice."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def ratio(numerator: Samples, denominator: Samples) -> dict[str, Any]:
    """How the medians compare, and the quartiles of the ratio round by round."""
    result: dict[str, Any] = {}
    for name, above, below in (
        ("wall", numerator.wall_s, denominator.wall_s),
        ("cpu", numerator.cpu_s, denominator.cpu_s),
    ):
        result[name] = round(statistics.median(above) / statistics.median(below), 4)
        each = [a / b for a, b in zip(above, below, strict=True)]
        result[f"{name}_quartiles"] = _rounded(quartiles(each))
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
