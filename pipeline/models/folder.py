"""A folder with the weights of a model, as model hubs hand them out: whole or in parts, and settings.

model.safetensors, pytorch_model.bin  the weights, or
*.safetensors.index.json, *.bin.index.json   {"weight_map": {name: file}} and the files of the parts
config.json                           arguments of the class; may be missing
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config import limits
from pipeline.messages.errors import UserError
from pipeline.messages.words import some
from pipeline.models.fitting import NAMES_SHOWN, Weights
from pipeline.models.formats import directory_problem, is_safetensors, require_bounded_safetensors, weight_files
from pipeline.models.sets import chosen
from pipeline.models.shells import require_tensors
from pipeline.models.targets import WORDS

WHOLE, OF_TORCH, SETTINGS = "model.safetensors", "pytorch_model.bin", "config.json"
_INDEX = ".index.json"  # how the names of indices end
Read = Callable[[Path], Any]  # the content of a file that torch wrote


def is_index(path: Path) -> bool:
    """Whether a file says by its name that it lists the parts of weights."""
    return path.name.endswith(_INDEX)


def read_folder(path: Path, read: Read, index: str | None = None) -> Weights:
    """The state dict of a folder: safetensors before what torch wrote, the whole before parts.

    Args:
        path: of the folder.
        read: how a file that torch wrote is read.
        index: of the parts, where one is given.

    Raises:
        UserError: it has none, or a part is missing or damaged.
    """
    name = index or _taken(path)
    state = _read_parts(path, name, read) if is_index(path / name) else _read(path / name, None, read, name)
    parts = {*_weight_map(path / name).values()} if is_index(path / name) else {name}
    weights = Weights(state)
    if others := [each for each in weight_files(path) if each not in parts]:
        weights.notes = (
            f"{path} holds several files of weights: {name} is taken, not {' or '.join(others[:5])} "
            f"(model.checkpoint={path / others[0]} takes that one)",
        )
    return weights


def _taken(path: Path) -> str:
    """The name of the file that holds a folder's weights, or lists their parts."""
    indices = sorted(entry.name for entry in path.iterdir() if is_index(entry))
    usual = [WHOLE, f"{WHOLE}{_INDEX}", OF_TORCH, f"{OF_TORCH}{_INDEX}"]
    found = [name for name in usual if (path / name).is_file()] or indices
    if not found or (len(found) > 1 and found is indices):
        several = (
            f"; it has several lists of parts: give one, such as model.checkpoint={path / found[0]}" if found else ""
        )
        raise UserError(directory_problem(path) + several)
    return found[0]


def _read_parts(path: Path, index: str, read: Read) -> dict[str, Tensor]:
    parts: dict[str, list[str]] = {}
    for name, file in _weight_map(path / index).items():
        parts.setdefault(file, []).append(name)
    state: dict[str, Tensor] = {}
    for file, names in sorted(parts.items()):
        if Path(file).name != file or file in ("", ".", ".."):
            raise UserError(f"{path / index} names {file!r}; its parts must lie beside it")
        if not (path / file).is_file():
            raise UserError(f"{path / file} is missing, which {index} names for {names[0]} and {len(names) - 1} more")
        state |= _read(path / file, names, read, index)
    require_tensors(state.values(), path)
    return state


def _read(file: Path, names: list[str] | None, read: Read, index: str) -> dict[str, Tensor]:
    """The tensors of a file, all or those of these names, which an index says are there."""
    if is_safetensors(file) or file.suffix == ".safetensors":
        return read_safetensors(file, names, index)
    state = chosen(read(file), file, None)
    if state.odd:
        raise UserError(f"{file} holds entries that are not tensors: {some(state.odd, NAMES_SHOWN)}")
    if absent := sorted({*(names or ())} - {*state}):
        raise UserError(f"{file} has no {absent[0]}, which {index} says it has")
    return dict(state) if names is None else {name: state[name] for name in names}


def folder_arguments(path: Path | None) -> dict[str, Any]:
    """The content of a folder's `config.json`, if any. Raises UserError where it is no JSON object, or names a call."""
    if path is None or not path.is_dir() or not (path / SETTINGS).is_file():
        return {}
    settings = _json(path / SETTINGS)
    require_plain(settings, path / SETTINGS)
    return settings


def require_plain(value: Any, path: Path) -> None:
    if isinstance(value, dict | list):
        if called := next((key for key in value if isinstance(value, dict) and key in WORDS), None):
            raise UserError(f"{path} holds {called}, which would run code that it names; give it in model.init instead")
        for inner in value.values() if isinstance(value, dict) else value:
            require_plain(inner, path)
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


def read_safetensors(path: Path, names: list[str] | None = None, index: str = "") -> dict[str, Tensor]:
    """The tensors of one file, all or those of these names, which an index says are there. Raises UserError where it is
    damaged, lacks one or is beyond the limits."""
    require_bounded_safetensors(path)
    try:
        if names is None:
            return load_file(path, device="cpu")
        with safe_open(path, framework="pt", device="cpu") as file:
            absent = sorted({*names} - {*file.keys()})
            if absent:
                raise UserError(f"{path} has no {absent[0]}, which {index} says it has")
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is a damaged safetensors file: {error}") from None
