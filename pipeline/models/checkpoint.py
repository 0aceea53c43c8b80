"""Weights from files, without running code from them.

Accepted: safetensors, and what `torch.save(model.state_dict())` writes (also under the key "state_dict" or
"model_state_dict"), read with `weights_only=True`. A pickled whole module can run any code when it is read, so that one
is refused unless it is trusted by name (`model.trust_pickle=true`). The kind is told by the file's content.
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
from torch.serialization import get_unsafe_globals_in_checkpoint

from pipeline.errors import UserError

_NESTED_KEYS = ("state_dict", "model_state_dict")
_WRAPPER_PREFIXES = ("module.", "model.")  # of DataParallel and of training frameworks
_NAMES_SHOWN = 5


def checkpoint_path(path: str | Path | None) -> Path:
    """The checkpoint as an existing file. Raises UserError when it is not given, missing or a directory."""
    if path is None or str(path) == "":
        raise UserError("model.checkpoint is not set; give the file that holds the model's weights")
    found = Path(path).expanduser()
    if found.is_dir():
        raise UserError(f"model.checkpoint={path} is a directory; expected a file of weights")
    if not found.is_file():
        raise UserError(f"model.checkpoint={path}: no such file (looked for {found.absolute()})")
    return found


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def read_checkpoint(path: Path, trust_pickle: bool = False) -> dict[str, Tensor] | nn.Module:
    """The state dict in a file, or the whole module where one was pickled and is trusted.

    Raises:
        UserError: the file is no checkpoint, is damaged, or holds a pickled module that is not trusted.
    """
    if is_safetensors(path):
        try:
            return load_file(path, device="cpu")
        except (SafetensorError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is a damaged safetensors file: {error}") from None
    _require_torch_file(path)
    try:
        with path.open("rb") as file:  # by name, torch would take some endings for another format
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not trust_pickle:
            raise UserError(_refusal(path)) from None
        content = _unpickle(path)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a torch checkpoint: {_first_line(error)}") from None
    return content if isinstance(content, nn.Module) else _state_dict_in(content, path)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put a state dict into a module.

    Raises:
        UserError: names that are missing or not expected, shapes that differ, or values that are not finite, by name.
    """
    state = _without_wrapper_prefix(state, set(module.state_dict()))
    expected = module.state_dict()
    differences = _differences(expected, state)
    if differences:
        raise UserError(f"{path} does not fit {type(module).__name__}: {'; '.join(differences)}")
    require_finite(state, path)
    module.load_state_dict(dict(state))


def require_finite(state: Mapping[str, Tensor], origin: Path | str) -> None:
    """Raises UserError naming the first parameter that holds NaN or infinity, and where it came from."""
    for name, values in state.items():
        if isinstance(values, Tensor) and values.is_floating_point() and not bool(torch.isfinite(values).all()):
            n_bad = int((~torch.isfinite(values)).sum())
            raise UserError(
                f"{origin}: parameter {name!r} holds {n_bad} of {values.numel()} values that are NaN or infinite; "
                f"the model cannot be used (did its training diverge?)"
            )


def _differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} (model: {tuple(values.shape)})"
        for name, values in expected.items()
        if name in state and state[name].shape != values.shape
    ]
    labelled = [("missing", missing), ("not expected", unexpected), ("of another shape", shapes)]
    return [f"{label}: {_brief(names)}" for label, names in labelled if names]


def _brief(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _without_wrapper_prefix(state: Mapping[str, Tensor], expected: set[str]) -> Mapping[str, Tensor]:
    """The state dict without a prefix that all its names share and that makes them fit."""
    for prefix in _WRAPPER_PREFIXES:
        shortened = {name.removeprefix(prefix): values for name, values in state.items()}
        if state and all(name.startswith(prefix) for name in state) and set(shortened) <= expected:
            return shortened
    return state


def _require_torch_file(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith((b"PK", b"\x80")):
        return
    kinds = {
        b"\x89HDF": "an HDF5 file (Keras?); convert its weights to a torch state dict",
        b"version https": "a pointer to a large file that was not fetched (git lfs pull)",
        b"": "empty",
    }
    kind = next((text for magic, text in kinds.items() if magic and head.startswith(magic)), None)
    kind = kind or (kinds[b""] if not head else "neither")
    raise UserError(f"model.checkpoint={path} is {kind}; expected safetensors or a state dict written by torch.save")


def _refusal(path: Path) -> str:
    try:
        first = sorted(get_unsafe_globals_in_checkpoint(path))[:3]
    except (RuntimeError, ValueError, pickle.UnpicklingError):  # a file of before torch 1.6, say
        first = []
    holds = f" ({', '.join(first)})" if first else ""
    return (
        f"{path} holds Python objects beside tensors{holds}, probably a whole model pickled by torch.save(model); "
        f"reading it would run code from the file. Write torch.save(model.state_dict(), ...) instead and give its "
        f"class as model._target_, or, if you trust the file, set model.trust_pickle=true"
    )


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{path} is a pickled model whose class cannot be imported here: {_first_line(error)}; install its package"
        ) from None


def _state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a state dict, names and tensors")
    odd = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd or not content:
        what = f"entries that are not tensors: {_brief(odd)}" if odd else "no tensors"
        raise UserError(f"{path} holds {what}; expected a state dict, alone or under {' or '.join(_NESTED_KEYS)}")
    return {name: value.detach() for name, value in content.items()}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
