"""Weights from files, without running code from them.

Accepted: safetensors (one file, or a folder of them), and what `torch.save(model.state_dict())` writes, also under a
key of a training framework's checkpoint (Lightning's, say), read with `weights_only=True`. A pickled whole module can
run any code when it is read, so that one is refused unless it is trusted by name (`model.trust_pickle=true`). The kind
is told by the file's content.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.folder import read_folder
from pipeline.models.formats import directory_problem, is_safetensors, require_torch_file
from pipeline.models.shells import UNREADABLE, Shell, names_in, quietly, read_with

_NESTED_KEYS = ("state_dict", "model_state_dict", "model")
_LIGHTNING = "pytorch-lightning_version"
_NAMES_SHOWN = 5


def checkpoint_path(path: str | Path | None, folders: bool = False) -> Path:
    """The checkpoint as an existing file, or a folder of them where these are allowed.

    Raises:
        UserError: it is not given, missing or a directory.
    """
    if path is None or str(path) == "":
        raise UserError("model.checkpoint is not set; give the file that holds the model's weights")
    found = Path(path).expanduser()
    if found.is_dir():
        if folders:
            return found
        raise UserError(f"{directory_problem(found)}; expected a file of weights")
    if not found.is_file():
        raise UserError(f"model.checkpoint={path}: no such file (looked for {found.absolute()})")
    return found


def read_checkpoint(path: Path, trust_pickle: bool = False) -> dict[str, Tensor] | nn.Module:
    """The state dict in a file or folder, or the whole module where one was pickled and is trusted.

    Raises:
        UserError: the file is no checkpoint, is damaged, or holds a pickled module that is not trusted.
    """
    if path.is_dir():
        return read_folder(path)
    if is_safetensors(path):
        try:
            state = load_file(path, device="cpu")
        except (SafetensorError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is a damaged safetensors file: {error}") from None
        if not state:
            raise UserError(f"{path} holds no tensors")
        return state
    require_torch_file(path)
    try:
        content = read_with(path, {})
    except pickle.UnpicklingError as error:
        content = _lightning_checkpoint(path)
        if content is None:
            if not trust_pickle:
                raise UserError(_refusal(path, error)) from None
            content = _unpickle(path)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a torch checkpoint: {_first_line(error)}") from None
    return content if isinstance(content, nn.Module) else _state_dict_in(content, path)


def _lightning_checkpoint(path: Path) -> dict[str, Any] | None:
    """A checkpoint of Lightning whose settings are objects of other libraries: those are never made."""
    names = names_in(path)
    if not names:
        return None
    try:
        content = read_with(path, dict.fromkeys(names, Shell))
    except (pickle.UnpicklingError, *UNREADABLE):
        return None
    is_one = isinstance(content, dict) and _LIGHTNING in content and isinstance(content.get("state_dict"), Mapping)
    return content if is_one else None


def _refusal(path: Path, error: Exception) -> str:
    first = sorted(names_in(path))[:3]
    if not first and "operand" in str(error):
        return (
            f"{path} is written in a form of pickle that cannot be read safely (protocol 2 can, which torch.save "
            f"writes); write it anew with torch.save(model.state_dict(), ...)"
        )
    holds = f" ({', '.join(first)})" if first else ""
    return (
        f"{path} holds Python objects beside tensors{holds}, probably a whole model pickled by torch.save(model); "
        f"reading it would run code from the file. Write torch.save(model.state_dict(), ...) instead and give its "
        f"class as model._target_, or, if you trust the file, set model.trust_pickle=true"
    )


def _unpickle(path: Path) -> Any:
    """Read a trusted pickle, which runs whatever is in it."""
    try:
        with quietly(), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{path} is a pickled model whose class cannot be imported here: {_first_line(error)}; install its package"
        ) from None
    except (pickle.UnpicklingError, *UNREADABLE) as error:
        raise UserError(f"{path} cannot be read, although it is trusted: {_first_line(error)}") from None


def _state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a state dict, names and tensors")
    odd = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd or not content:
        more = f" and {len(odd) - _NAMES_SHOWN} more" if len(odd) > _NAMES_SHOWN else ""
        what = f"entries that are not tensors: {', '.join(odd[:_NAMES_SHOWN])}{more}" if odd else "no tensors"
        raise UserError(f"{path} holds {what}; expected a state dict, alone or under {' or '.join(_NESTED_KEYS)}")
    return {name: value.detach() for name, value in content.items()}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
