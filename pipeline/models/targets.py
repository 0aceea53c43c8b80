"""What a configuration may call by its import path (`_target_`), and calling it.

Called are classes and functions that make a model or a part of one: subclasses of `torch.nn.Module`, and what is
defined in the user's own modules or in an installed package that defines such subclasses itself. torch's own functions
read files and run code, so that of these only operations on tensors are called, as arguments of a model.

An argument that is a mapping with `_target_` is called in turn. `_args_` are positional arguments, `_partial_: true`
gives a function that calls it later, and with `_recursive_: false` its own arguments are taken as they are.
"""

import functools
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import get_overridable_functions

from pipeline.messages.errors import UserError
from pipeline.messages.secrets import one_line
from pipeline.models import own_modules
from pipeline.models.code import is_ours, is_own
from pipeline.models.nesting import require_tree

TARGET = "_target_"
WORDS = (TARGET, "_args_", "_partial_", "_recursive_", "_convert_")  # the keys that call something
_DATA: tuple[Callable[..., Any], ...] = (torch.tensor, np.array, tuple, slice, OrderedDict)


def make(target: str, init: Mapping[str, Any]) -> nn.Module:
    """The module that a target makes of these arguments. Raises UserError, one line, when that fails or gives none."""
    if TARGET in init:
        raise UserError(f"model.init.{TARGET}={init[TARGET]}; the target is model.{TARGET}")
    made = _call({TARGET: target, **init}, "model", "model.init")
    if not isinstance(made, nn.Module):
        raise UserError(f"model._target_={target} gives a {type(made).__name__}; expected a torch.nn.Module")
    require_tree(made)
    return made


def find(target: str, setting: str = f"model.{TARGET}") -> Callable[..., Any]:
    """The object of an import path.

    Args:
        target: package.module.name, or package.module.Class.name.
        setting: that names it.

    Raises:
        UserError: it cannot be imported, or is nothing that is called here.
    """
    try:
        with own_modules.asked_for(target):
            found = _locate(target)
    except Exception as error:  # importing a user's module runs the user's code
        reason = one_line(error) or type(error).__name__
        raise UserError(
            f"{setting}={target} cannot be imported: {reason}; expected package.module.Class, importable from here"
        ) from error
    if not (callable(found) and _is_allowed(found)):
        what = f"{type(found).__name__} of {_home(found) or 'Python'}"
        raise UserError(
            f"{setting}={target} is a {what} and is not called: a target is a torch.nn.Module's class, or a class "
            f"or function of your own modules or of a package of models; write a function that calls it, such as "
            f"def model(): ..., in a module my_model, and give {setting}=my_model.model"
        )
    return found


def _is_allowed(found: Any) -> bool:
    home = _home(found)
    return (
        _is_module(_judged(found))
        or (is_own(home) or _defines_modules(home.partition(".")[0]))
        or any(found is data for data in _DATA)
        or any(found is operation for each in get_overridable_functions().values() for operation in each)
    )


def _judged(found: Any) -> Any:
    """The class or function that decides: a method's class, what a partial calls, the class of any other object."""
    if isinstance(found, functools.partial):
        return _judged(found.func)
    if isinstance(found, MethodType):
        return found.__self__ if isinstance(found.__self__, type) else type(found.__self__)
    return found


def _home(found: Any) -> str:
    """The module that defines it, whatever name it was found by; "" for what Python does not say it of."""
    return str(getattr(_judged(found), "__module__", None) or "")


def _is_module(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def _defines_modules(package: str) -> bool:
    """Whether an installed package, as far as it was imported, defines subclasses of torch's."""
    if is_ours(package) or package == _home(nn.Module).partition(".")[0]:
        return False
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package]
    return any(
        _is_module(each) and _home(each).partition(".")[0] == package
        for module in modules
        for each in list(getattr(module, "__dict__", {}).values())
    )


def _call(given: Mapping[str, Any], key: str, arguments: str) -> Any:
    called = find(target := str(given[TARGET]), f"{key}.{TARGET}")
    inner = {name: value for name, value in given.items() if name not in WORDS}
    args = list(given.get("_args_", ()))
    if given.get("_recursive_", True):
        args = [_value(value, f"{arguments}._args_.{i}") for i, value in enumerate(args)]
        inner = {name: _value(value, f"{arguments}.{name}") for name, value in inner.items()}
    try:
        return functools.partial(called, *args, **inner) if given.get("_partial_") else called(*args, **inner)
    except Exception as error:
        reason = one_line(error)
        given_as = {name: value for name, value in given.items() if name != TARGET}
        raise UserError(
            f"{key}._target_={target} with {arguments}={given_as}: {type(error).__name__}: {reason}"
        ) from error


def _value(value: Any, key: str) -> Any:
    """An argument, with whatever it names called."""
    if isinstance(value, list | tuple):
        return [_value(item, f"{key}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if TARGET in value:
        return _call(value, key, key)
    return {name: _value(item, f"{key}.{name}") for name, item in value.items()}


def accepted(target: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that a class or function takes: a config.json may hold more than these."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


def _locate(target: str) -> Any:
    parts = target.split(".")
    if len(parts) < 2 or not all(parts):
        raise ImportError(f"{target!r} is not a dotted path")
    for n_modules in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:n_modules])
        try:
            found: Any = import_module(module)
        except ModuleNotFoundError as error:
            if n_modules > 1 and f"{module}.".startswith(f"{error.name}."):  # a class within a class, perhaps
                continue
            raise
        for name in parts[n_modules:]:
            found = getattr(found, name)
        return found
    raise ImportError(f"no module for {target!r}")
