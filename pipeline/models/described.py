"""Checkpoints that say the arguments of their model's class beside its weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.messages.errors import UserError
from pipeline.models.allocations import bounded
from pipeline.models.family import ModelFamily, Raw
from pipeline.models.fitting import load_weights
from pipeline.models.folder import require_plain
from pipeline.models.sets import chosen
from pipeline.models.targets import accepted, find, make

_SHOWN = 8  # arguments that a note names
_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


def read_described(family: ModelFamily, path: Path, content: Any, target: str, of_file: Mapping[str, Any]) -> Raw:
    """The module of a checkpoint that describes it; `family.init` comes before the arguments in the file.

    Args:
        content: of the file, which holds the weights.
        target: the import path of the class.
        of_file: its arguments in the file; those that the class does not have are left out.

    Raises:
        UserError: the class cannot be imported or made, or the weights do not fit.
    """
    init = {**accepted(find(target), of_file), **family.init}
    with bounded(path, f"{target} with the sizes in {path}"):
        module = make(target, init)
    fitted = load_weights(module, chosen(content, path, family.prefix), path, family.prefix)
    listed = ", ".join(f"{name}={value}" for name, value in list(of_file.items())[:_SHOWN])
    note = f"{target} with the arguments in {path}: {listed}"
    return Raw(module, path, init, fitted=replace(fitted, notes=(*fitted.notes, note)))


def arguments(found: Mapping[Any, Any], path: Path, where: str) -> dict[str, Any]:
    """The arguments in a file, which are plain values. Raises UserError where one is not, or names what to call."""
    named = {str(name): value for name, value in found.items()}
    require_plain(named, path)
    for name, value in named.items():
        if not isinstance(value, _PLAIN):
            raise UserError(f"{path}: {where}.{name} is a {type(value).__name__}; give it as model.init.{name}=...")
    return named
