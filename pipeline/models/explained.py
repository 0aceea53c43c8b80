"""What is explained of a model's output, told from the shapes it returns: names of targets, and lines for the person.

Shape legend: N sequences, S strands, W positions of a profile, T targets, L bases.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.config.model_output import is_name
from pipeline.messages.errors import UserError
from pipeline.messages.visible import brief
from pipeline.messages.words import counted
from pipeline.models.outputs import SelectedOutput, WithHead, listing

FAMILIES = ("bpnet", "chrombpnet")  # whose outputs are known: a profile and log counts
_N_STRANDS = 2
_BASES_OF_A_BIN = 8  # from so many bases for each position of a profile on, the line adds a doubt
_N_NAMED = 8
Shape = tuple[int, ...]


@dataclass
class OutputShapes:
    """Shapes of a model's outputs: what it returned itself, in words; what its head took, an entry for each tensor; and
    the last that left it."""

    returned: str = ""
    taken: tuple[Shape, ...] = ()
    output: Shape = ()


@contextmanager
def watched(module: nn.Module) -> Iterator[OutputShapes]:
    """See what a fold of a `LoadedModel` returns while it is used."""
    seen = OutputShapes()

    def taken(_: nn.Module, args: tuple[Any, ...]) -> None:
        outputs = args[0] if isinstance(args[0], tuple | list) else [args[0]]
        seen.taken = tuple(tuple(output.shape) for output in outputs if isinstance(output, Tensor))

    def returned(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.output = tuple(output.shape) if isinstance(output, Tensor) else ()

    def returned_by_model(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.returned = listing(output, len(args[0]))

    handles = [module.register_forward_hook(returned)]
    if isinstance(module, WithHead):
        handles.append(module.head.register_forward_pre_hook(taken))
    selected = module.model if isinstance(module, WithHead) else module
    if isinstance(selected, SelectedOutput):
        handles.append(selected.model.register_forward_hook(returned_by_model))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def target_names(description: Mapping[str, Any], targets: Sequence[int], n_outputs: int) -> list[str]:
    """What each attributed target is: the head's quantity or the output's name, and its number where there are several.

    `description`: of the `LoadedModel`; `n_outputs`: T, of the model with its head.
    """
    head, output = str(description.get("head")), description.get("output")
    if head == "counts":
        what = "log counts"
    elif head.startswith("profile_"):
        what = f"profile ({head.removeprefix('profile_')})"
    elif output is None:
        return ["output"] if n_outputs == 1 else [f"output {target}" for target in targets]
    else:
        what = f"output {output}" if is_name(output) else output
    return [what] if n_outputs == 1 else [f"{what}, target {target}" for target in targets]


def output_notes(description: Mapping[str, Any], seen: OutputShapes, targets: Sequence[int], length: int) -> list[str]:
    """Lines about which outputs are explained, where others might have been meant; arguments as in `target_names`.

    Raises:
        UserError: a profile's head on something that is no profile.
    """
    head, is_known = str(description.get("head")), description.get("name") in FAMILIES
    n_outputs, output = math.prod(seen.output[1:]), description.get("output")
    lines = []
    if head.startswith("profile_"):
        start = "" if output is None else output if output.isidentifier() else f"({output})"
        lines.append(_of_profile(head, is_known, seen.taken, length, start))
    elif head == "counts":
        lines.append(_of_counts(is_known, seen.taken))
    if output is not None and not is_name(output):
        where = f", {counted(n_outputs, 'target')}" if head == "none" else ""
        lines.insert(0, f"of what the model returns, {seen.returned}, {brief(output)} is taken (model.output){where}")
    if n_outputs > len(targets):
        named = ", ".join(map(str, targets[:_N_NAMED])) + (", ..." if len(targets) > _N_NAMED else "")
        lines.append(
            f"of {n_outputs} outputs of the model, {named} {'are' if len(targets) > 1 else 'is'} explained "
            f"(engine.targets)"
        )
    return lines


def _of_profile(head: str, is_known: bool, taken: tuple[Shape, ...], length: int, start: str) -> str:
    shape = taken[0]
    n_positions, n_strands = shape[-1], math.prod(shape[1:-1])
    if not (len(shape) in (2, 3) and 1 < n_positions <= length and (is_known or n_strands <= _N_STRANDS)):
        raise UserError(
            f"model.head={head}: the model returns {_shown(shape)} for sequences of {length} bases, which is no "
            f"profile; expected (N, positions) or (N, strands, positions) with 1 or 2 strands and 2 to {length} "
            f"positions, such as one task's{_one_task(shape, length, start)}. For (N, targets): model.head=none"
        )
    line = f"explained is the profile over {counted(n_strands, 'strand')} x {n_positions} positions{_which(0, taken)}"
    if n_positions * _BASES_OF_A_BIN <= length and not is_known:
        line += f"; the sequences have {length} bases: if its last axis is one of bins or tasks, it is no profile"
    return f"{line} (model.head={head})"


def _one_task(shape: Shape, length: int, start: str) -> str:
    """The setting that takes what may be a profile of several, along the longest axis; `start` gave the output."""
    if len(shape) < 3 or not 1 < max(shape[1:]) <= length:
        return ""
    longest = max(range(1, len(shape)), key=lambda axis: shape[axis])
    places = ", ".join(":" if axis in (0, longest) else "0" for axis in range(len(shape)))
    return f", 'model.output={start}[{places}]'"


def _of_counts(is_known: bool, taken: tuple[Shape, ...]) -> str:
    shape = taken[-1]
    if is_known:
        return "explained are the log counts (model.head=counts; profile_midpoint explains the profile)"
    flat = f", {_shown(shape)} flattened to {math.prod(shape[1:])} targets" if len(shape) > 2 else ""
    return f"taken as log counts is the model's output{_which(1, taken)}{flat} (model.head=counts)"


def _which(index: int, taken: tuple[Shape, ...]) -> str:
    """Which of the outputs it is, where there are two."""
    return f", the {('first', 'second')[index]} of its {len(taken)} outputs" if len(taken) > 1 else ""


def _shown(shape: Shape) -> str:
    return f"(N, {', '.join(map(str, shape[1:]))})"
