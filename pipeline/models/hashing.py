"""What identifies a model: its weights, and what it does with them (its code is in code.py)."""

import functools
import hashlib
import json
import os
import re
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OF_TORCH = ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook")
_DEPTH = 8  # of lists in lists, closures in closures, ...
_LIBRARIES = ("torch", "builtins", "typing", "abc", "collections", "enum")


def state_of(module: nn.Module) -> dict[str, Any]:
    """The state dict of a module, which may itself call something else so (`self.state_dict = torch.load(...)`)."""
    return type(module).state_dict(module)


def weights_hash(module: nn.Module) -> str:
    """sha256 over the state dict, by sorted name: name, dtype, shape, bytes. In hexadecimal."""
    digest = hashlib.sha256()
    for name, values in sorted(state_of(module).items()):
        text = _of_tensor(values) if isinstance(values, Tensor) else json.dumps(canonical(values), sort_keys=True)
        digest.update(f"{name} {text}\n".encode())
    return digest.hexdigest()


def settings_hashes(module: nn.Module) -> dict[str, str]:
    """What the module is beside its weights and its source: the sha256 of each part, in hexadecimal.

    The parts are the classes of all submodules ("modules"); each attribute of a class that is the user's, over all
    submodules of it ("package.Class.attribute"); and all attributes of a class of torch's ("torch...Class"). Attributes
    are numbers, texts, arrays, buffers that a file of weights leaves out, functions (their byte code, defaults and
    closures), hooks, and lists and mappings of these; of a file whose absolute path one holds, its content.
    """
    parts: dict[str, list[str]] = {"modules": []}
    for path, child in module.named_modules():
        cls = type(child)
        parts["modules"].append(f"{path} {name_of(cls)}")
        for name, value in _settings(child).items():
            part = name_of(cls) if is_library(cls) else f"{name_of(cls)}.{name}"
            parts.setdefault(part, []).append(f"{path} {name} {json.dumps(value, sort_keys=True)}")
    return {part: sha256("\n".join(lines).encode()) for part, lines in parts.items()}


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def files_by_content(arguments: Any) -> Any:
    """Arguments of a class, with the sha256 of its content in place of a file's path."""
    if isinstance(arguments, dict):
        return {str(name): files_by_content(value) for name, value in arguments.items()}
    if isinstance(arguments, list | tuple):
        return [files_by_content(value) for value in arguments]
    if isinstance(arguments, str) and re.search(r"[./]", arguments) and os.path.isfile(os.path.expanduser(arguments)):
        return _of_file(os.path.expanduser(arguments))
    return canonical(arguments)


def _of_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        return f"file {hashlib.file_digest(file, 'sha256').hexdigest()}"


def name_of(of: Any) -> str:
    """Where a class or function is found: module and qualified name."""
    return f"{of.__module__}.{of.__qualname__}"


def is_library(of: Any) -> bool:
    """Whether a class or function is torch's or Python's own, whose versions are known elsewhere."""
    return (of.__module__ or "").partition(".")[0] in _LIBRARIES


def _settings(module: nn.Module) -> dict[str, Any]:
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    # Hooks are kept under numbers that count all hooks of the process.
    own = {
        name: list(value.values()) if "_hooks" in name and isinstance(value, dict) else value
        for name, value in own.items()
    }
    extra = {f"buffer {name}": module._buffers.get(name) for name in module._non_persistent_buffers_set}
    return {name: canonical(value) for name, value in {**own, **extra}.items()}


def canonical(value: Any, depth: int = _DEPTH) -> Any:
    """What JSON can hold of a value, the same in every process, to a depth of nesting.

    Of an object that is none of these it is the class alone: its attributes may change from run to run.
    """
    if depth == 0:
        return name_of(type(value))
    within = functools.partial(canonical, depth=depth - 1)
    match value:
        case str() | Path() if os.path.isabs(value) and os.path.isfile(value):
            return _of_file(value)
        case bool() | int() | float() | str() | None:
            return value
        case Tensor():
            return _of_tensor(value)
        case np.ndarray() | np.generic():
            array = np.ascontiguousarray(value)
            return f"array {array.dtype} {array.shape} {sha256(array.tobytes())}"
        case list() | tuple():
            return [within(item) for item in value]
        case set() | frozenset():
            return sorted((within(item) for item in value), key=json.dumps)
        case dict():
            return {_key(key): within(item) for key, item in value.items()}
        case FunctionType() if not is_library(value):
            held = [within(cell.cell_contents) for cell in value.__closure__ or () if _is_filled(cell)]
            return [name_of(value), *map(within, (value.__code__, value.__defaults__, value.__kwdefaults__)), held]
        case FunctionType() | BuiltinFunctionType() | type():
            return name_of(value)
        case MethodType():
            return ["method", within(value.__func__)]
        case functools.partial():
            return ["partial", *map(within, (value.func, value.args, value.keywords))]
        case CodeType():
            return [value.co_code.hex(), list(value.co_names), [within(item) for item in value.co_consts]]
        case torch.dtype() | torch.device() | slice() | range() | bytes() | complex():
            return repr(value)
        case _:
            return name_of(type(value))


def _key(key: Any) -> str:
    """Of a mapping: its text, unless that is its place in memory."""
    text = str(key)
    return name_of(type(key)) if hex(id(key)) in text else text


def _of_tensor(values: Tensor) -> str:
    if values.is_meta or values.is_sparse or values.is_quantized or values.is_nested:
        return f"tensor {values.dtype} {values.layout}"
    plain = values.detach().cpu().contiguous()
    return f"tensor {plain.dtype} {tuple(plain.shape)} {sha256(plain.reshape(-1).view(torch.uint8).numpy().tobytes())}"


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (it raises where nothing is)
    except ValueError:
        return False
    return True
