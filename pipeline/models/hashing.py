"""What identifies a model: its weights, and the code that runs on them."""

import hashlib
import inspect
import json
import re
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None))
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # differs from process to process


def weights_hash(module: nn.Module) -> str:
    """sha256 over the state dict, by sorted name: name, dtype, shape, bytes. In hexadecimal."""
    digest = hashlib.sha256()
    for name, values in sorted(module.state_dict().items()):
        if not isinstance(values, Tensor):  # what get_extra_state returns
            digest.update(f"{name} {_ADDRESS.sub('', repr(values))}\n".encode())
            continue
        plain = values.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def code_hash(module: nn.Module) -> str:
    """sha256 over what the module does with its weights, in hexadecimal.

    That is the source of every class in it that is not torch's own (torch's version is known elsewhere), with the
    bases it inherits from, its layout as printed, and the plain settings (numbers, texts) of its submodules. A class
    without source (built, compiled or pickled by value) is identified by its byte code, else by its name.
    """
    digest = hashlib.sha256()
    classes = {cls for child in module.modules() for cls in type(child).__mro__ if not _is_library(cls)}
    for cls in sorted(classes, key=_name):
        digest.update(f"{_name(cls)}\n{_source(cls)}\n".encode())
    digest.update(_ADDRESS.sub("", repr(module)).encode())
    for name, child in module.named_modules():
        if not _is_library(type(child)):
            digest.update(f"{name} {json.dumps(_settings(child), sort_keys=True)}\n".encode())
    return digest.hexdigest()


def _is_library(cls: type) -> bool:
    return cls is object or cls.__module__.partition(".")[0] in ("torch", "builtins", "typing", "abc")


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        methods = sorted((name, value) for name, value in vars(cls).items() if inspect.isfunction(value))
        return "\n".join(f"{name} {value.__code__.co_code.hex()} {value.__code__.co_names}" for name, value in methods)


def _settings(module: nn.Module) -> dict[str, Any]:
    """The module's own attributes that are plain values or functions (an activation, say), the latter by name."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, list | tuple) and all(isinstance(item, _PLAIN) for item in value):
            found[name] = list(value)
        elif isinstance(value, _PLAIN) and name != "training":
            found[name] = value
        elif isinstance(value, FunctionType | BuiltinFunctionType):
            found[name] = f"{value.__module__}.{value.__qualname__}"
    return found
