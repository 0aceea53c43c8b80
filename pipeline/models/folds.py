"""Folds: checkpoints of one architecture, trained on different parts of the data."""

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.errors import UserError

PATTERN = frozenset("*?[")


def fold_paths(checkpoint: Any, key: str = "model.checkpoint") -> list[str | None]:
    """The checkpoint of each fold.

    Args:
        key: of the setting, for errors.
        checkpoint: a path, a list of paths or patterns, a pattern with *, ? or [...] (its matches in the order of
            their names), or None where the model needs none.

    Raises:
        UserError: a pattern that matches nothing, an empty list, or the same file twice.
    """
    if checkpoint is None or checkpoint == "":
        return [None]
    given = [checkpoint] if isinstance(checkpoint, (str, Path)) else list(checkpoint)
    found = [path for one in given for path in _matches(str(one), key)]
    if not found:
        raise UserError(f"{key}=[] is empty; give one file of weights for each fold")
    twice = [path for path, n in Counter(str(Path(path).expanduser().resolve()) for path in found).items() if n > 1]
    if twice:
        raise UserError(f"{key} names {twice[0]} twice; give each fold once")
    return list(found)


def _matches(path: str, key: str) -> list[str]:
    expanded = Path(path).expanduser()
    if expanded.exists() or not PATTERN & set(path):
        return [path]
    found = sorted(glob.glob(str(expanded)))
    if not found:
        raise UserError(f"{key}={path} matches no file (looked in {expanded.absolute().parent})")
    return found


def fold_labels(paths: Iterable[Path | None]) -> tuple[str, ...]:
    """What to call each fold: its file's name without the ending where these differ, else its whole path."""
    files = list(paths)
    stems = [str(number) if path is None else path.stem for number, path in enumerate(files)]
    return tuple(stems) if len(set(stems)) == len(stems) else tuple(str(path) for path in files)


def require_alike(modules: Sequence[nn.Module], paths: Sequence[str | None]) -> None:
    """Refuse folds that differ in more than their weights.

    Raises:
        UserError: names the first fold and parameter that differ.
    """
    first = {name: tuple(value.shape) for name, value in modules[0].state_dict().items()}
    for module, path in zip(modules[1:], paths[1:], strict=True):
        shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        for name in sorted({*first, *shapes}):
            if first.get(name) != shapes.get(name):
                raise UserError(
                    f"model.checkpoint: fold {path} has {_shape(shapes, name)} where fold {paths[0]} has "
                    f"{_shape(first, name)}; folds must be of one architecture"
                )


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return f"{name} of shape {shapes[name]}" if name in shapes else f"no {name}"
