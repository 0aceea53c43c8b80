"""A module that a configuration names by its file, `path/to/file.py:Class`.

It is imported like `file` from its folder, or like `package.file` from the folder above its packages, and what lies
beside it is found first. Paths are as of the working folder; on a node of a cluster the file may be in the folder that
`cluster.code` sent.
"""

import importlib
import importlib.util
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from pipeline.models import own_modules

_TARGET = re.compile(r"(?P<file>.+\.py):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)")


def split(target: str) -> tuple[str, str] | None:
    """The file and the name in it of a target that names a file; None of an import path."""
    match = _TARGET.fullmatch(target)
    return (match["file"], match["name"]) if match else None


def file_of(path: str) -> Path:
    """Where a file is here. Raises FileNotFoundError."""
    given = Path(path).expanduser()
    found = [Path(folder, given) for folder in (os.getcwd(), *own_modules.folders())]
    if (sent := own_modules.sent()) is not None:  # it has another place on the machine that sent it
        found += [Path(sent, *given.parts[n:]) for n in range(len(given.parts))]
    if (here := next((each for each in found if each.is_file()), None)) is None:
        raise FileNotFoundError(f"there is no file {given.absolute()}")
    return here.resolve()


def module_name(path: str) -> str:
    """The name that the module of a file has, without importing it. Raises FileNotFoundError."""
    return _place(file_of(path))[1]


def import_file(path: str) -> ModuleType:
    """The module of a file, imported. Raises what its code raises, FileNotFoundError, or ImportError."""
    file = file_of(path)
    folder, name = _place(file)
    if (known := sys.modules.get(name)) is not None and _is_of(known, file):
        return known
    top = name.partition(".")[0]
    own_modules.keep(top, str(folder))
    if top == name:
        return _import(name, file)
    if not _is_of(sys.modules.get(top), package := folder / top / "__init__.py"):
        _import(top, package)
    return importlib.import_module(name)


def named(target: str) -> str:
    """A target without where its file is: the same wherever that lies."""
    parts = split(target)
    return target if parts is None else f"{Path(parts[0]).name}:{parts[1]}"


def _place(file: Path) -> tuple[Path, str]:
    """The folder from which a file is imported, and the name that it is imported by: its own unless that is taken."""
    folder, parts = file.parent, [file.stem]
    while (folder / "__init__.py").is_file():
        folder, parts = folder.parent, [folder.name, *parts]
    if parts[-1] == "__init__":
        parts = parts[:-1]
    if not _is_taken(parts[0], folder):
        return folder, ".".join(parts)
    if len(parts) > 1:
        raise ImportError(f"its package {parts[0]} in {folder} has the name of an installed one; rename the folder")
    return folder, "own_" + re.sub(r"\W", "_", parts[0])


def _is_taken(name: str, folder: Path) -> bool:
    """Whether a name is no module's, or that of an installed one."""
    if not name.isidentifier() or name in sys.stdlib_module_names:
        return True
    spec = PathFinder.find_spec(name)
    return spec is not None and (spec.origin is None or not Path(spec.origin).resolve().is_relative_to(folder))


def _import(name: str, file: Path) -> ModuleType:
    inner = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=inner)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _is_of(module: ModuleType | None, file: Path) -> bool:
    found = getattr(module, "__file__", None)
    return found is not None and os.path.exists(found) and os.path.samefile(found, file)
