"""What a configuration may call by its import path (`_target_`), and calling it.

Called are
- what the user's own modules define, also as methods;
- subclasses of `torch.nn.Module`: of torch the layers in `torch.nn`, and of packages those that have none of torch's
  other modules as a base, which run code that they are given or open connections;
- functions of an installed package that make such a class of it, and its settings (dataclasses, enumerations, named
  tuples, the `config_class` of a model);
- torch's operations on tensors, as arguments of a model.

Nothing else that is installed is: packages of models have functions and methods that read pickles, download, or run
what they are given, and which these are cannot be told. Python's own library is not even imported.

An argument that is a mapping with `_target_` is called in turn. `_args_` are positional arguments, `_partial_: true`
gives a function that calls it later, and with `_recursive_: false` its own arguments are taken as they are.
"""

import dataclasses
import enum
import functools
import inspect
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import get_overridable_functions

from pipeline.messages.errors import UserError
from pipeline.messages.secrets import one_line
from pipeline.messages.words import some
from pipeline.models import own_files, own_modules
from pipeline.models.code import is_ours, is_own
from pipeline.models.configured import CONFIG, config_class, configured
from pipeline.models.nesting import require_tree

TARGET = "_target_"
_SHOWN = 8  # classes that an error names
WORDS = (TARGET, "_args_", "_partial_", "_recursive_", "_convert_")  # the keys that call something
_DATA: tuple[Callable[..., Any], ...] = (
    torch.tensor,
    np.array,
    tuple,
    slice,
    OrderedDict,
    Namespace,
    SimpleNamespace,
)
_OF_DATA = ("builtins", "collections", "argparse", "types")  # where those of Python are
_TORCH, _LAYERS = "torch", "torch.nn.modules."


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
        target: package.module.name, package.module.Class.name, or path/to/file.py:name.
        setting: that names it.

    Raises:
        UserError: it cannot be imported, or is nothing that is called here.
    """
    package = "" if own_files.split(target) else _top(target)  # a file is the user's own, or gives nothing
    if package in sys.stdlib_module_names and package not in _OF_DATA:
        raise _refused(f"{setting}={target} is of Python's own library")
    try:
        with own_modules.asked_for(target):
            found = _locate(target)
    except SystemExit as error:
        raise UserError(
            f"{setting}={target}: importing it ends the process; put what the script does under "
            f"if __name__ == '__main__':"
        ) from error
    except Exception as error:  # importing a user's module runs the user's code
        reason = one_line(error) or type(error).__name__
        raise UserError(
            f"{setting}={target} cannot be imported: {reason}; expected package.module.Class, importable from here, or "
            f"path/to/file.py:Class"
        ) from error
    if isinstance(found, nn.Module):
        raise UserError(
            f"{setting}={target} is a {type(found).__name__} that is made already; give its class, or a function that "
            f"returns it, such as def model(): return ..."
        )
    if not (callable(found) and _is_allowed(found, package)):
        raise _refused(f"{setting}={target} is a {type(found).__name__} of {_home(found) or 'Python'}")
    return found


def _refused(what: str) -> UserError:
    return UserError(
        f"{what} and is not called: a target is a class of torch.nn's layers or of a package's modules, a function of "
        f"that package that makes one, or a class or function of your own modules; write a function that calls it, "
        f"such as def model(): ..., in a module my_model, and give {what.partition('=')[0]}=my_model.model"
    )


def _is_allowed(found: Any, package: str) -> bool:
    home = _home(found)
    if is_own(home):
        return not isinstance(found, MethodType) or is_own(_home(found.__func__))
    if is_ours(home):
        return _is_module(found)
    if any(found is each for each in (*_DATA, *_operations())):
        return True
    if _is_layer(found):
        return True
    if _top(home) != package or package == _TORCH:
        return False
    return _is_settings(found) if _is_class(found) else _makes_module(found, package)


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


def _is_class(found: Any) -> bool:
    """Whether it is a class. Its type is asked, as `isinstance` asks the object, which may stand for another, and
    connect to it then."""
    return issubclass(type(found), type)


def _is_module(found: Any) -> bool:
    return _is_class(found) and issubclass(found, nn.Module)


def _is_layer(found: Any) -> bool:
    """Whether it is a class of modules none of whose bases is one of torch's that is no plain layer."""
    if not _is_module(found):
        return False
    of_torch = [base.__module__ for base in found.__mro__ if _top(base.__module__) == _TORCH]
    return all(f"{home}.".startswith(_LAYERS) for home in of_torch)


def _is_settings(found: type) -> bool:
    """Whether it is a class of plain values, by which a package's modules are configured."""
    modules = list(_modules_of(_top(found.__module__)))
    is_tuple = issubclass(found, tuple) and hasattr(found, "_fields")
    is_plain = dataclasses.is_dataclass(found) or issubclass(found, enum.Enum) or is_tuple
    return any(is_plain or getattr(each, "config_class", None) is found for each in modules)


def _makes_module(found: Any, package: str) -> bool:
    """Whether it is a function that names a class of its package's modules: makes one, or says that it returns one."""
    function = inspect.unwrap(found)
    if not (isinstance(found, FunctionType) and isinstance(function, FunctionType)):
        return False
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    named.append(returned := function.__annotations__.get("return"))
    if isinstance(returned, str):
        named.append(function.__globals__.get(returned))
    return any(_is_layer(each) and _top(each.__module__) == package for each in named)


def _modules_of(package: str) -> Iterator[type]:
    """The classes of modules that a package defines, as far as it was imported."""
    for name, module in list(sys.modules.items()):
        if _top(name) == package:
            found = filter(_is_module, list(getattr(module, "__dict__", {}).values()))
            yield from (each for each in found if _top(each.__module__) == package)


@functools.cache
def _operations() -> tuple[Any, ...]:
    """torch's functions on tensors; methods are none, since they also pickle, and call what they are given."""
    found = get_overridable_functions()
    spaces = (torch, torch.functional, nn.functional, torch.linalg, torch.fft, torch.special)
    return tuple(each for space in spaces for each in found.get(space, ()) if not each.__name__.startswith("_"))


def _top(name: str) -> str:
    return name.partition(".")[0]


def _call(given: Mapping[str, Any], key: str, arguments: str) -> Any:
    called = find(target := str(given[TARGET]), f"{key}.{TARGET}")
    inner = {name: value for name, value in given.items() if name not in WORDS}
    args = list(given.get("_args_", ()))
    if given.get("_recursive_", True):
        args = [_value(value, f"{arguments}._args_.{i}") for i, value in enumerate(args)]
        inner = {name: _value(value, f"{arguments}.{name}") for name, value in inner.items()}
    if not args:
        inner = configured(called, inner)
    try:
        return functools.partial(called, *args, **inner) if given.get("_partial_") else called(*args, **inner)
    except UserError:  # of what is called in turn, or larger than the limits allow
        raise
    except (Exception, SystemExit) as error:
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


def accepted(target: Callable[..., Any], arguments: Mapping[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
    """Those arguments that a class or function takes beside the given ones: a config.json may hold more than these."""
    if config_class(target) is not None:
        return {} if CONFIG in given else dict(arguments)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


def _locate(target: str) -> Any:
    if (of_file := own_files.split(target)) is not None:
        return _attribute(own_files.import_file(of_file[0]), of_file[1].split("."), of_file[0])
    parts = target.split(".")
    if len(parts) < 2 or not all(parts):
        raise ImportError(f"{target!r} is not a dotted path")
    for n_modules in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:n_modules])
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            if n_modules > 1 and f"{module}.".startswith(f"{error.name}."):  # a class within a class, perhaps
                continue
            raise
        return _attribute(found, parts[n_modules:], module)
    raise ImportError(f"no module for {target!r}")


def _attribute(module: Any, names: Sequence[str], where: str) -> Any:
    found = module
    for name in names:
        if not hasattr(found, name) and found is module:
            models = [
                own for own, value in vars(module).items() if _is_module(value) and _home(value) == module.__name__
            ]
            there = f"; it defines {some(models, _SHOWN)}" if models else ""
            raise AttributeError(f"{where} has no {name}{there}")
        found = getattr(found, name)
    return found
