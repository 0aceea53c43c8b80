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

from pipeline.errors import UserError
from pipeline.models.formats import directory_problem

WHOLE, INDEX, SETTINGS = "model.safetensors", "model.safetensors.index.json", "config.json"
# What makes Hydra call something: settings that come with weights must not.
_CALLS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


def read_folder(path: Path) -> dict[str, Tensor]:
    """The state dict of a folder.

    Raises:
        UserError: it holds none, or a part is missing, damaged or outside of it.
    """
    if (path / WHOLE).is_file():
        return _read(path / WHOLE, None)
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
        state |= _read(path / file, names)
    return state


def folder_arguments(path: Path | None) -> dict[str, Any]:
    """What `config.json` of a folder says; nothing where there is no such file.

    Raises:
        UserError: it is no JSON object, or would have something called.
    """
    if path is None or not path.is_dir() or not (path / SETTINGS).is_file():
        return {}
    settings = _json(path / SETTINGS)
    _require_plain(settings, path / SETTINGS)
    return settings


def _require_plain(value: Any, path: Path) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _CALLS:
                raise UserError(
                    f"{path} holds {key}, which would run code that it names; give it in model.init instead"
                )
            _require_plain(inner, path)
    elif isinstance(value, list):
        for inner in value:
            _require_plain(inner, path)
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{path} holds {value!r}, which would be replaced by something else; give it in model.init")


def _weight_map(path: Path) -> Mapping[str, str]:
    found = _json(path).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise UserError(f"{path} has no weight_map of names to files")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a JSON {type(found).__name__}; expected an object of names and values")
    return found


def _read(path: Path, names: list[str] | None) -> dict[str, Tensor]:
    """The tensors of one file, all or those of these names."""
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
