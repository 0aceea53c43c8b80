"""Pickles read without running anything in them.

Every class and function that a file names is replaced by an inert shell, which takes whatever it is given and does
nothing; what is wanted of the file (weights, sizes) is taken from the shells. Reading itself is torch's weights-only
unpickler, which calls nothing but the shells and its own functions that put tensors together.
"""

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

# What reading a damaged or hostile file may raise.
UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
)


class Shell:
    """Stands for any object of a file: takes whatever attributes it is given, and does nothing."""

    def __init__(self, *_: object) -> None:
        """Constructor arguments are not wanted: only attributes hold weights and sizes."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def nothing(*_: object) -> None:
    """Stands for any function of a file."""


@contextmanager
def quietly() -> Iterator[None]:
    """Without torch's warnings of pickles that are not as it writes them: what matters of these is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def names_in(path: Path) -> set[str]:
    """The names in a checkpoint beyond those that torch allows, found without executing it; none where it is no such
    file at all (reading it as a state dict says what is wrong with it).
    """
    try:
        with quietly():
            return set(get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, *UNREADABLE):
        return set()


def read_with(path: Path, stand_ins: Mapping[str, Any]) -> Any:
    """The content of a pickle, with the given shells in the places of those names.

    Raises:
        pickle.UnpicklingError: it holds other names, or operations that are not known.
        UNREADABLE: it is damaged.
    """
    with quietly(), safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]), path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def tensors_of(shell: Shell, prefix: str = "") -> list[tuple[str, Tensor]]:
    """The state dict of a module that is only a shell: its parameters and buffers, and those of its children."""
    own = {**_part(shell, "_parameters"), **_part(shell, "_buffers")}
    found = [(prefix + name, values.detach()) for name, values in own.items() if isinstance(values, Tensor)]
    for name, child in children_of(shell).items():
        found += tensors_of(child, f"{prefix}{name}.")
    return found


def children_of(shell: Shell) -> dict[str, Shell]:
    """The submodules of a module that is only a shell."""
    return {str(name): child for name, child in _part(shell, "_modules").items() if isinstance(child, Shell)}


def _part(shell: Shell, name: str) -> dict[str, Any]:
    found = shell.__dict__.get(name)
    return found if isinstance(found, dict) else {}
