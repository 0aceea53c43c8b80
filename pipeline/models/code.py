"""The code of a model: the source files of its classes, and of the user's own modules that these import.

A module is the user's own where its file lies outside of Python's own folders and of those that packages are installed
in (an editable installation lies outside, and may change). Files are identified by their content, so that a node may
have them elsewhere.
"""

import ast
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pipeline.models import own_files, own_modules
from pipeline.models.hashing import canonical, is_library, name_of, settings_hashes, sha256

_OURS = ("pipeline", "dlshap_core")  # identified as a whole, see device.py
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


@dataclass(frozen=True)
class Code:
    """What runs on the weights.

    Attributes:
        hashes: sha256 of the source of each module, by the module's name; of a class without a file by the class's.
        files: where the source of each lies here, for people.
        settings: sha256 of each part of what the model is beside weights and source, by its name; see hashing.py.
    """

    hashes: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One sha256 over all of it."""
        return sha256(json.dumps([dict(self.hashes), dict(self.settings)], sort_keys=True).encode())


def code_of(*folds: nn.Module, target: str | None = None) -> Code:
    """The code of a model with these folds, which share their settings.

    `target` is the import path that made it: a function may lie in another module than the classes.
    """
    classes = {cls for fold in folds for child in fold.modules() for cls in type(child).__mro__ if not is_library(cls)}
    hashes, files = {}, {}
    for cls in sorted(classes, key=name_of):
        if not is_ours(cls.__module__) and _file_of(cls.__module__) is None:
            hashes[name_of(cls)] = sha256(_source(cls).encode())
    names = {cls.__module__ for cls in classes} | set(_of_target(target or "")) | set(_of_attributes(folds[0]))
    for name, path in sorted(_closure(names).items()):
        hashes[name], files[name] = sha256(path.read_bytes()), str(path)
    return Code(hashes, files, settings_hashes(folds[0]))


def _of_target(target: str) -> list[str]:
    """The modules that a target names, by its import path or its file."""
    of_file = own_files.split(target)
    return _prefixes(target if of_file is None else own_files.module_name(of_file[0]))


def _of_attributes(module: nn.Module) -> Iterator[str]:
    """The user's own modules of functions and objects that submodules hold, such as an activation."""
    for child in module.modules():
        yield from (name for name in _names(child) if _is_own_file(_file_of(name)))


def _names(of: Any) -> Iterator[str]:
    """The modules among what an object or a module has, and those that its functions and objects come from: also of
    what no import statement names, and of functions that were put in place of others."""
    for value in list(vars(of).values()) if of is not None else []:
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str):
            yield name  # an object's is its class's


def _closure(names: Iterable[str]) -> dict[str, Path]:
    """The files of some modules, and of the user's own that they import, by the modules' names."""
    found: dict[str, Path] = {}
    pending = [(name, name) for name in names]
    while pending:
        name, importer = pending.pop()
        path = None if is_ours(name) else _file_of(name, importer)
        if path is None or name in found:
            continue
        found[name] = path
        if _is_own_file(path):
            others = [*_imports(name, path), *_names(sys.modules.get(name))]
            pending += [(other, name) for other in others if _is_own_file(_file_of(other, name))]
    return found


def is_own(name: str) -> bool:
    """Whether a module, which was imported, is the user's own."""
    return bool(name) and not is_ours(name) and _is_own_file(_file_of(name))


def is_ours(name: str) -> bool:
    """Whether a module is one of dlshap's."""
    return _top(name) in _OURS


def _is_own_file(path: Path | None) -> bool:
    return path is not None and not (
        {"site-packages", "dist-packages"} & set(path.parts)
        or any(path.is_relative_to(folder) for folder in _INSTALLED)
    )


def _imports(name: str, path: Path) -> Iterator[str]:
    """Every module that the source of a module imports, wherever in it, and the packages that it lies in."""
    yield from _prefixes(name)
    if path.suffix != ".py":
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # never imported so far, nor will it be
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _prefixes(alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield from _prefixes(base)
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _prefixes(name: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c"""
    parts = name.split(".") if name else []
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _file_of(name: str, importer: str = "") -> Path | None:
    """The file of a module, imported or not by another; None where there is none, as of a module typed at a prompt."""
    if name == "__main__":  # a script changes for other reasons, and no worker has it
        return None
    if (module := sys.modules.get(name)) is not None:
        file = getattr(module, "__file__", None)
    else:
        spec = _spec(name, importer)
        file = spec.origin if spec is not None and spec.has_location else None
    path = Path(file) if file and os.path.isabs(file) else None  # that of torch.ops is not
    return path if path is not None and path.is_file() else None


def _spec(name: str, importer: str) -> ModuleSpec | None:
    """Where a module would be imported from, without importing the packages that it lies in."""
    first, *inner = _prefixes(name)
    spec = own_modules.find(first, importer)
    for part in inner:
        if spec is None:
            return None
        folders = list(spec.submodule_search_locations or [])
        try:
            spec = PathFinder.find_spec(part, folders)
        except KeyError:  # a folder without __init__.py, of whose package Python asks that it is imported
            spec = ModuleSpec(part, None, is_package=True)
            spec.submodule_search_locations = [os.path.join(folder, part.rpartition(".")[2]) for folder in folders]
    return spec


def _source(cls: type) -> str:
    """Of a class without a file of its own: its text, else its byte code."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        methods = {name: canonical(value) for name, value in vars(cls).items() if inspect.isfunction(value)}
        return json.dumps(methods, sort_keys=True)


def _top(name: str) -> str:
    return name.partition(".")[0]
