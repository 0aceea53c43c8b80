"""Folds: checkpoints of one architecture, trained on different parts of the data."""

import glob
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.config.overrides import as_overrides
from pipeline.config.settings import expanded
from pipeline.messages.errors import UserError
from pipeline.models.hashing import state_of

PATTERN = frozenset("*?[")


def fold_paths(checkpoint: Any, key: str = "model.checkpoint") -> list[str | None]:
    """The checkpoint of each fold, from a path, a pattern with *, ? or [...] (its matches in the order of their names),
    a list of both, or None where the model needs none.

    Raises:
        UserError: a pattern that matches nothing, an empty list, or the same file twice.
    """
    if checkpoint is None or checkpoint == "":
        return [None]
    given = [checkpoint] if isinstance(checkpoint, (str, Path)) else list(checkpoint)
    found = [path for one in given for path in _matches(str(one), key)]
    if not found:
        raise UserError(f"{key}=[] is empty; give one file of weights for each fold")
    twice = [path for path, n in Counter(str(expanded(path).resolve()) for path in found).items() if n > 1]
    if twice:
        raise UserError(f"{key} names {twice[0]} twice; give each fold once")
    return list(found)


def _matches(path: str, key: str) -> list[str]:
    pattern = expanded(path)
    if os.path.lexists(pattern):
        return [path]
    if "," in path and all(map(os.path.exists, path.split(","))):
        raise UserError(
            f"{key}={path}: no such file; several are given as a list: "
            f"{shlex.join(as_overrides({key: path.split(',')}))}"
        )
    if not PATTERN & set(path):
        return [path]
    found = sorted(glob.glob(str(pattern)))
    if not found:
        raise UserError(f"{key}={path} matches no file (looked in {pattern.absolute().parent})")
    return found


def fold_labels(paths: Iterable[Path | None]) -> tuple[str, ...]:
    """The label of each fold: its file's name without the ending where these differ, else its whole path."""
    files = list(paths)
    stems = [str(number) if path is None else path.stem for number, path in enumerate(files)]
    return tuple(stems) if len(set(stems)) == len(stems) else tuple(str(path) for path in files)


def require_alike(modules: Sequence[nn.Module], paths: Sequence[str | None]) -> None:
    """Raises UserError, with the first fold and parameter that differ, for folds of different architectures."""
    first = {name: tuple(value.shape) for name, value in state_of(modules[0]).items()}
    for module, path in zip(modules[1:], paths[1:], strict=True):
        shapes = {name: tuple(value.shape) for name, value in state_of(module).items()}
        for name in sorted({*first, *shapes}):
            if first.get(name) != shapes.get(name):
                raise UserError(
                    f"model.checkpoint: fold {path} has {_shape(shapes, name)} where fold {paths[0]} has "
                    f"{_shape(first, name)}; folds must be of one architecture"
                )


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return f"{name} of shape {shapes[name]}" if name in shapes else f"no {name}"


def file_names(paths: Sequence[Path | None]) -> str | list[str | None] | None:
    """The names of files, of the one or of each."""
    names = [None if path is None else path.name for path in paths]
    return names[0] if len(names) == 1 else names
