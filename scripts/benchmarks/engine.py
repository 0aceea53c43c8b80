"""The engine against the floor and the peers.

Every figure is of one set of sequences and references, the contenders taking turns, each at its own best batch size,
which is searched first with one pass for each size; tangermeme also at its default. A last line draws the references
inside the measured time, by the public functions of both.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import contenders
from benchmarks.contenders import TANGERMEME_DEFAULT, Run
from benchmarks.models import SUBJECTS, Subject, build
from benchmarks.options import Options
from benchmarks.timing import Samples, interleaved, ratio, timed
from dlshap_core import shuffle_codes
from dlshap_core.one_hot import one_hot

SIZES = {"cpu": (1, 2, 4, 8, 16, 32, 64), "cuda": (32, 64, 128, 256, 512, 1024, 2048)}
QUICK_SIZES = {"cpu": (4, 20), "cuda": (20, 80)}
MODELS = tuple(name for name, subject in SUBJECTS.items() if not subject.by_name_only)
CASES = ((1, 20), (10, 20), (1, 2))  # targets, references


@dataclass(frozen=True)
class Case:
    """One figure: sequences, their references and the number of targets, on one model."""

    model: torch.nn.Module
    X: Tensor
    references: Tensor
    targets: list[int]


def draw(n: int, length: int, n_references: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random sequences (N, 4, L) and their dinucleotide shuffles of seeds 0 to R - 1 (N, R, 4, L), float32."""
    codes = np.random.RandomState(0).randint(0, 4, (n, length)).astype(np.uint8)
    shuffled = shuffle_codes(codes, range(n_references))
    return one_hot(codes, torch.float32).to(device), one_hot(shuffled, torch.float32).to(device)


def run(options: Options) -> dict[str, Any]:
    """All figures of the suite, by model, targets and references; printed as they come."""
    results: dict[str, Any] = {}
    for name in options.models or MODELS:
        for n_references in (20, 2):
            wanted = [case for case in cases(name, options) if case[1] == n_references]
            sizes: dict[str, int] = {}  # found with one target, and kept for more
            for n_targets, _ in wanted:
                case = make_case(SUBJECTS[name], n_targets, n_references, options)
                sizes = sizes or best_sizes(case, options)
                found = figure(case, SUBJECTS[name], sizes, options)
                several = "s" if n_targets > 1 else ""
                label = f"{name} {case.X.shape[-1]} bp, {n_targets} target{several}, {n_references} references"
                results[label] = found
                print_figure(label, found)
    return results


def cases(name: str, options: Options) -> list[tuple[int, int]]:
    """Targets and references of a model's figures; with --quick ten targets of the first model alone."""
    chosen = [case for case in CASES if not options.quick or (case[1] == 20 and (case[0] == 1 or name == "bpnet64"))]
    return [
        (n_targets, n_references)
        for n_targets, n_references in chosen
        if (not options.targets or n_targets in options.targets)
        and (not options.references or n_references in options.references)
    ]


def make_case(subject: Subject, n_targets: int, n_references: int, options: Options) -> Case:
    """The model has ten outputs, whatever the number of targets."""
    length = subject.quick_length if options.quick else subject.length
    n = 1 if options.quick else subject.n_sequences * (1 if n_references > 2 else 10)
    X, references = draw(n, length, n_references, options.device)
    return Case(build(subject, length, 10, options.device), X, references, list(range(n_targets)))


def best_sizes(case: Case, options: Options) -> dict[str, int]:
    """The batch size of each contender that has one, for one target; on a GPU of those that are filled."""
    runs = main_contenders(replace(case, targets=[0]), options)
    sizes = (QUICK_SIZES if options.quick else SIZES)[options.device.type]
    if options.device.type == "cuda":
        sizes = tuple(size for size in sizes if size <= case.references[:, :, 0, 0].numel()) or sizes[:1]
    return {name: options.batch_size or best_size(run, sizes, options.device) for name, run in runs.items()}


def main_contenders(case: Case, options: Options) -> dict[str, Run]:
    """Those that have a batch size to choose."""
    names = ("floor", "engine", *(["tangermeme"] if "tangermeme" in options.peers else []))
    return {name: getattr(contenders, name)(case.model, case.X, case.references, case.targets) for name in names}


def figure(case: Case, subject: Subject, sizes: dict[str, int], options: Options) -> dict[str, Any]:
    """Samples of every contender, ratios of the engine to the others, and how far the peers' values are from its."""
    runs = entrants(case, subject, options)
    chosen = {name: sizes[name.removesuffix("_drawing")] for name in runs if name.removesuffix("_drawing") in sizes}
    chosen = {**dict.fromkeys(runs, TANGERMEME_DEFAULT), **chosen}
    values = {name: run(chosen[name]) for name, run in runs.items()}  # this warms up, too
    samples = interleaved(
        {name: (lambda run=run, size=chosen[name]: run(size)) for name, run in runs.items()},
        options.device,
        options.budget_s,
    )
    return {
        "n_sequences": len(case.X),
        "contenders": {name: {"batch_size": chosen[name], **samples[name].to_json()} for name in runs},
        "ratios": ratios(samples),
        "disagreement": {
            name: disagreement(found, values["engine"])
            for name, found in values.items()
            if found is not None and name != "engine"
        },
    }


def entrants(case: Case, subject: Subject, options: Options) -> dict[str, Run]:
    """The contenders that are installed and wanted; of several targets only the main ones, since it takes long."""
    given = (case.model, case.X, case.references, case.targets)
    drawn = (case.model, case.X.cpu(), case.references.shape[1], case.targets)  # as people have them
    runs = main_contenders(case, options)
    if len(case.targets) > 1:
        return runs
    runs["engine_drawing"] = contenders.engine_drawing(*drawn)
    if "tangermeme" in options.peers:
        runs["tangermeme_default"] = runs["tangermeme"]
        runs["tangermeme_drawing"] = contenders.tangermeme(*drawn)
    if "captum" in options.peers and not subject.has_max_pooling:
        runs["captum"] = contenders.captum(*given)
    return runs


def best_size(run: Run, sizes: Iterable[int], device: torch.device) -> int:
    """The batch size with the shortest pass, from the largest down until one takes 1.5 times the shortest.

    Sizes within a seventh of the shortest are tried twice more. A size that does not fit into memory is passed over.
    """
    taken: dict[int, float] = {}
    for size in sorted(sizes, reverse=True):
        try:
            if not taken:
                run(size)  # compilers and caches
            taken[size] = timed(lambda size=size: run(size), device).wall_s[0]
        except torch.cuda.OutOfMemoryError:
            continue
        if taken[size] > 1.5 * min(taken.values()):
            break
    near = [size for size, seconds in taken.items() if seconds < min(taken.values()) * 8 / 7]
    for size in near * (2 if len(near) > 1 else 0):
        taken[size] = min(taken[size], timed(lambda size=size: run(size), device).wall_s[0])
    return min(taken, key=lambda size: taken[size])


def ratios(samples: dict[str, Samples]) -> dict[str, Any]:
    """engine / each other; what draws its references is compared with what does too, and with the floor."""
    result = {}
    for name in samples:
        if name.startswith("engine"):
            continue
        own = "engine_drawing" if name.endswith("_drawing") else "engine"
        result[f"{own} / {name}"] = ratio(samples[own], samples[name])
    if "engine_drawing" in samples:
        result["engine_drawing / floor"] = ratio(samples["engine_drawing"], samples["floor"])
    return result


def disagreement(found: Tensor, expected: Tensor) -> float:
    """Largest difference of attributions, relative to the largest attribution."""
    return float(f"{((found - expected).abs().max() / expected.abs().max()).item():.2g}")


def print_figure(label: str, figure: dict[str, Any]) -> None:
    """A block of lines for a person."""
    print(f"\n{label}; {figure['n_sequences']} sequences")
    heads = f"{'batch':>5} {'wall s':>9} {'cpu s':>9}   {'engine / it: wall (quartiles)':<32} {'cpu':>6}"
    print(f"  {'':<20} {heads}  differs by")
    for name, found in figure["contenders"].items():
        pair = "engine_drawing / " if name.endswith("_drawing") else "engine / "
        quotient = figure["ratios"].get("engine_drawing / floor" if name == "engine_drawing" else pair + name)
        cells = ""
        if quotient is not None:
            low, _, high = quotient["wall_quartiles"]
            cells = f"{quotient['wall']:.3f} ({low:.3f} to {high:.3f})"
        cpu = "" if quotient is None else f"{quotient['cpu']:.3f}"
        batch = "-" if name == "captum" else found["batch_size"]
        wall, processor = found["wall_quartiles_s"][1], found["cpu_quartiles_s"][1]
        note = figure["disagreement"].get(name, "")
        mark = " / floor" if name == "engine_drawing" else ""
        print(f"  {name:<20} {batch:>5} {wall:>9.4g} {processor:>9.4g}   {cells + mark:<32} {cpu:>6}  {note}")
