"""What is explained of a model's output, told from the shapes it returns: names of targets, and lines for the person.

Shape legend: N sequences, S strands, W positions of a profile, T targets, L bases.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dlshap_core.heads import Heads
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
    """Shapes of a model's outputs: what it returned itself, in words; what its head took, an entry for each tensor; the
    last that left it; and the targets of each of several heads."""

    returned: str = ""
    taken: tuple[Shape, ...] = ()
    output: Shape = ()
    widths: tuple[int, ...] = ()

    @property
    def n_targets(self) -> int:
        return math.prod(self.output[1:])


@contextmanager
def watched(module: nn.Module) -> Iterator[OutputShapes]:
    """See what a fold of a `LoadedModel` returns while it is used."""
    seen, widths = OutputShapes(), dict[nn.Module, int]()

    def taken(_: nn.Module, args: tuple[Any, ...]) -> None:
        outputs = args[0] if isinstance(args[0], tuple | list) else [args[0]]
        seen.taken = tuple(tuple(each.shape) for each in outputs if isinstance(each, Tensor))

    def returned(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.output = tuple(output.shape) if isinstance(output, Tensor) else ()

    def returned_by_head(head: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        widths[head] = output.shape[1]  # on the way back it may be called once more, by itself
        seen.widths = tuple(widths.values())

    def returned_by_model(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.returned = listing(output, len(args[0]))

    handles = [module.register_forward_hook(returned)]
    if isinstance(module, WithHead):
        handles.append(module.head.register_forward_pre_hook(taken))
        heads = module.head.heads if isinstance(module.head, Heads) else ()
        handles += [head.register_forward_hook(returned_by_head) for head in heads]
    selected = module.model if isinstance(module, WithHead) else module
    if isinstance(selected, SelectedOutput):
        handles.append(selected.model.register_forward_hook(returned_by_model))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def heads_of(description: Mapping[str, Any], seen: OutputShapes) -> list[str]:
    """The head that each target of a model is of. `description`: of the `LoadedModel`."""
    heads = str(description.get("head")).split(",")
    widths = seen.widths or (seen.n_targets,)
    return [head for head, width in zip(heads, widths, strict=True) for _ in range(width)]


def head_labels(description: Mapping[str, Any], seen: OutputShapes) -> list[str]:
    """Labels of the targets of several heads: the head's name, and a number where it has several; none of one head."""
    heads = heads_of(description, seen) if seen.widths else []
    return [
        head if heads.count(head) == 1 else f"{head} {place - heads.index(head)}" for place, head in enumerate(heads)
    ]


def target_names(description: Mapping[str, Any], targets: Sequence[int | str], seen: OutputShapes) -> list[str]:
    """What each attributed target is: the head's quantity or the output's name, and its number where there are several;
    a text is that of a contrast, and stays as it is.

    `description`: of the `LoadedModel`.
    """
    heads, names = heads_of(description, seen), []
    for target in targets:
        if isinstance(target, str):
            names.append(target)
            continue
        what, n = _quantity(heads[target], description.get("output")), heads.count(heads[target])
        place = target - heads.index(heads[target])
        separator = " " if what == "output" else ", target "
        names.append(what if n == 1 else f"{what}{separator}{place}")
    return names


def _quantity(head: str, output: str | None) -> str:
    if head == "counts":
        return "log counts"
    if head.startswith("profile_"):
        return f"profile ({head.removeprefix('profile_')})"
    if output is None:
        return "output"
    return f"output {output}" if is_name(output) else output


def output_notes(
    description: Mapping[str, Any], seen: OutputShapes, targets: Sequence[int | str], length: int
) -> list[str]:
    """Lines about which outputs are explained, where others might have been meant; arguments as in `target_names`.

    Raises:
        UserError: a profile's head on something that is no profile.
    """
    heads, is_known = str(description.get("head")).split(","), description.get("name") in FAMILIES
    n_outputs, output = seen.n_targets, description.get("output")
    lines = []
    for head in heads:
        if head.startswith("profile_"):
            start = "" if output is None else output if output.isidentifier() else f"({output})"
            lines.append(_of_profile(head, is_known, seen.taken, length, start))
        elif head == "counts":
            lines.append(_of_counts(is_known, seen.taken, is_alone=len(heads) == 1))
    if output is not None and not is_name(output):
        where = f", {counted(n_outputs, 'target')}" if heads == ["none"] else ""
        lines.insert(0, f"taking {brief(output)} (model.output) of what the model returns: {seen.returned}{where}")
    if n_outputs > len(targets):
        named = ", ".join(map(str, targets[:_N_NAMED])) + (", ..." if len(targets) > _N_NAMED else "")
        noun = "outputs" if len(targets) > 1 else "output"
        lines.append(f"explaining {noun} {named} of the model's {n_outputs} (engine.targets)")
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
    line = f"explaining the profile over {counted(n_strands, 'strand')} x {n_positions} positions{_which(0, taken)}"
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


def _of_counts(is_known: bool, taken: tuple[Shape, ...], is_alone: bool) -> str:
    shape = taken[-1]
    if is_known:
        other = "; profile_midpoint explains the profile" if is_alone else ""
        return f"explaining the log counts (model.head=counts{other})"
    flat = f", {_shown(shape)} flattened to {math.prod(shape[1:])} targets" if len(shape) > 2 else ""
    return f"explaining the model's output{_which(1, taken)}{flat}, as log counts (model.head=counts)"


def _which(index: int, taken: tuple[Shape, ...]) -> str:
    """Which of the outputs it is, where there are two."""
    return f", the {('first', 'second')[index]} of its {len(taken)} outputs" if len(taken) > 1 else ""


def _shown(shape: Shape) -> str:
    return f"(N, {', '.join(map(str, shape[1:]))})"
