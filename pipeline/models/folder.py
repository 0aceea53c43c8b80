"""A folder with the weights of a model, as model hubs hand them out: safetensors, whole or in parts, and settings.

model.safetensors                     the weights, or
model.safetensors.index.json          {"weight_map": {name: file}} and the files of the parts
config.json                           arguments of the class; may be missing
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config import limits
from pipeline.messages.errors import UserError
from pipeline.models.fitting import Weights
from pipeline.models.formats import directory_problem, require_bounded_safetensors, weight_files
from pipeline.models.targets import WORDS

WHOLE, INDEX, SETTINGS = "model.safetensors", "model.safetensors.index.json", "config.json"


def read_folder(path: Path) -> Weights:
    """The state dict of a folder. Raises UserError where it has none, or a part is missing or damaged."""
    if (path / WHOLE).is_file():
        return _noted(path, read_safetensors(path / WHOLE), {WHOLE})
    if not (path / INDEX).is_file():
        raise UserError(directory_problem(path))
    parts: dict[str, list[str]] = {}
    for name, file in _weight_map(path / INDEX).items():
        parts.setdefault(file, []).append(name)
    state: dict[str, Tensor] = {}
    for file, names in sorted(parts.items()):
        if Path(file).name != file or file in ("", ".", ".."):
            raise UserError(f"{path / INDEX} names {file!r}; its parts must lie beside it")
        if not (path / file).is_file():
            raise UserError(f"{path / file} is missing, which {INDEX} names for {names[0]} and {len(names) - 1} more")
        state |= read_safetensors(path / file, names)
    return _noted(path, state, {*parts})


def _noted(path: Path, state: dict[str, Tensor], taken: set[str]) -> Weights:
    """The state dict of a folder, with a line where it holds other weights too."""
    weights = Weights(state)
    if others := [name for name in weight_files(path) if name not in taken]:
        weights.notes = (
            f"{path} holds several files of weights: {WHOLE if WHOLE in taken else INDEX} is taken, not "
            f"{' or '.join(others[:5])} (model.checkpoint={path / others[0]} takes that one)",
        )
    return weights


def folder_arguments(path: Path | None) -> dict[str, Any]:
    """The content of a folder's `config.json`, if any. Raises UserError where it is no JSON object, or names a call."""
    if path is None or not path.is_dir() or not (path / SETTINGS).is_file():
        return {}
    settings = _json(path / SETTINGS)
    _require_plain(settings, path / SETTINGS)
    return settings


def _require_plain(value: Any, path: Path) -> None:
    if isinstance(value, dict | list):
        if called := next((key for key in value if isinstance(value, dict) and key in WORDS), None):
            raise UserError(f"{path} holds {called}, which would run code that it names; give it in model.init instead")
        for inner in value.values() if isinstance(value, dict) else value:
            _require_plain(inner, path)
    elif isinstance(value, str) and "${" in value:
        raise UserError(
            f"{path} holds {value!r}, which is not replaced by something else here; give its value in model.init"
        )


def _weight_map(path: Path) -> Mapping[str, str]:
    found = _json(path).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise UserError(f"{path} has no weight_map of names to files")
    return found


def _json(path: Path) -> dict[str, Any]:
    limits.require_header(path.stat().st_size, str(path))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a JSON {type(found).__name__}; expected an object of names and values")
    return found


def read_safetensors(path: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """The tensors of one file, all or those of these names. Raises UserError where it is damaged, lacks one
    or is beyond the limits."""
    require_bounded_safetensors(path)
    try:
        if names is None:
            return load_file(path, device="cpu")
        with safe_open(path, framework="pt", device="cpu") as file:
            absent = sorted({*names} - {*file.keys()})
            if absent:
                raise UserError(f"{path} has no {absent[0]}, which {INDEX} says it has")
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is a damaged safetensors file: {error}") from None
