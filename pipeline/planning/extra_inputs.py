"""Extra inputs of the model (`dataset.args`): their shapes, their arrays in the store, and the other strand.

Input k of every row lies in the store's array `arg_k`, of shape (N, ...), float32 or int64. Where its last axis has L
places, L being the length of the sequences, it is an input along the sequence, a track.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

N_STRANDS = 2  # plus, minus
ExtraInputs = Sequence[np.ndarray]  # the extra inputs of a row, or of some rows, in the order of the model's


def describe_extra_inputs(values: ExtraInputs) -> list[dict[str, Any]]:
    """What the plan says of the extra inputs, from those of a row: the shape and type of each."""
    return [{"shape": list(value.shape), "dtype": str(value.dtype)} for value in values]


def extra_input_names(n: int) -> list[str]:
    """The names of the arrays of n extra inputs."""
    return [f"arg_{index}" for index in range(n)]


def is_extra_input(name: str) -> bool:
    """Whether an array is that of an extra input."""
    return re.fullmatch(r"arg_\d+", name) is not None


def extra_input_layout(args: Sequence[Mapping[str, Any]], length: int) -> dict[str, tuple[tuple[str, ...], str]]:
    """Dimensions and type of the array of each, in the order of the model's inputs.

    Args:
        args: as in the plan.
        length: of the sequences.
    """
    found = {}
    for name, arg in zip(extra_input_names(len(args)), args, strict=True):
        axes = [f"{name}_axis_{axis}" for axis in range(1, len(arg["shape"]) + 1)]
        if arg["shape"] and arg["shape"][-1] == length:
            axes[-1] = "position"
        found[name] = (("sequence", *axes), str(arg["dtype"]))
    return found


def strand_notes(names: Sequence[str], args: Sequence[Mapping[str, Any]], length: int) -> list[str]:
    """A line for each extra input that is another for the other strand; see `other_strand`.

    Args:
        names: as in dataset.args.
        args: as in the plan.
        length: of the sequences.
    """
    lines = []
    for name, shape in ((name, list(arg["shape"])) for name, arg in zip(names, args, strict=True)):
        if shape[-1:] == [length]:
            swapped = ", and its two tracks change places" if shape[-2:-1] == [N_STRANDS] else ""
            lines.append(
                f"dataset.args: {name} is reversed for the other strand{swapped}: its last axis has {length} places"
            )
    return lines


def as_tensors(values: ExtraInputs) -> "list[Tensor]":
    """Extra inputs, each with its rows, as the engine takes them."""
    import torch  # here, so that commands that only look at a store do not wait for it

    return [torch.from_numpy(np.ascontiguousarray(value)) for value in values]


def other_strand(values: "Tensor", length: int) -> "Tensor":
    """An extra input as it is for the reverse complement of each sequence.

    A track is turned around, and two tracks (N, ..., 2, L), which are the plus and the minus strand's, change places.
    Anything else is the same for both strands.

    Args:
        values: (N, ...), of N rows.
        length: L.
    """
    if values.ndim < 2 or values.shape[-1] != length:
        return values
    are_strands = values.ndim > 2 and values.shape[-2] == N_STRANDS
    return values.flip(-1, -2) if are_strands else values.flip(-1)
