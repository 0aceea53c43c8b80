"""Further inputs of the model (`dataset.args`): their shapes, their arrays in the store, and the other strand.

Input k of every row lies in the store's array `arg_k`, of shape (N, ...), float32 or int64. Where its last axis has L
places, L being the length of the sequences, it is an input along the sequence, a track.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

N_STRANDS = 2  # plus, minus
Args = Sequence[np.ndarray]  # the further inputs of a row, or of some rows, in the order of the model's


def args_of(values: Args) -> list[dict[str, Any]]:
    """What the plan says of the further inputs, from those of a row: the shape and type of each."""
    return [{"shape": list(value.shape), "dtype": str(value.dtype)} for value in values]


def arg_names(n: int) -> list[str]:
    """The names of the arrays of n further inputs."""
    return [f"arg_{index}" for index in range(n)]


def is_arg(name: str) -> bool:
    """Whether an array is that of a further input."""
    return re.fullmatch(r"arg_\d+", name) is not None


def arg_layout(args: Sequence[Mapping[str, Any]], length: int) -> dict[str, tuple[tuple[str, ...], str]]:
    """Dimensions and type of the array of each, in the order of the model's inputs.

    Args:
        args: as in the plan.
        length: of the sequences.
    """
    found = {}
    for name, arg in zip(arg_names(len(args)), args, strict=True):
        axes = [f"{name}_axis_{axis}" for axis in range(1, len(arg["shape"]) + 1)]
        if arg["shape"] and arg["shape"][-1] == length:
            axes[-1] = "position"
        found[name] = (("sequence", *axes), str(arg["dtype"]))
    return found


def as_tensors(values: Args) -> list[Tensor]:
    """Further inputs, each with its rows, as the engine takes them."""
    return [torch.from_numpy(np.ascontiguousarray(value)) for value in values]


def other_strand(values: Tensor, length: int) -> Tensor:
    """A further input as it is for the reverse complement of each sequence.

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
