"""The user's own modules: those of the folder that a command is run in, and of cluster.code.

On `sys.path` such a folder would be asked for whatever a library would like to have (cupy, dill, plugins), and a file
that a stranger put there would run. Here only two may ask: a configuration, by the name of its target
(`asked_for`), and the modules that were found so, which import those beside them, also in `forward`. What is installed
comes first.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# What imports in the name of whoever called it: `import_module`, what is named in a pickle or in a nested target.
_AGENTS = ("importlib", "_frozen_importlib", "pickle", "torch.serialization", "hydra._internal.utils")


class _Finder(MetaPathFinder):
    """The last that Python asks for a module."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.asked: list[str] = []
        self.found: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of a top-level module; what lies in a package is found by the package."""
        if path is not None or not (fullname in self.asked or _top(_importer()) in self.found):
            return None
        spec = PathFinder.find_spec(fullname, self.folders)
        if spec is not None:
            self.found.add(fullname)
            if spec.loader is None:  # a folder without an __init__.py, which would follow sys.path otherwise
                spec.submodule_search_locations = list(spec.submodule_search_locations or [])
        return spec


_FINDER = _Finder()


def search(*more: str | None) -> None:
    """Look for the user's own modules in these folders too."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    for folder in more:
        if folder is not None and (path := os.path.abspath(folder)) not in _FINDER.folders:
            _FINDER.folders.append(path)


def folders() -> list[str]:
    """Those that are searched."""
    return list(_FINDER.folders)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Forget, after this context, the folders that were given in it."""
    finders, before = list(sys.meta_path), folders()
    try:
        yield
    finally:
        sys.meta_path[:], _FINDER.folders[:] = finders, before


@contextlib.contextmanager
def asked_for(name: str) -> Iterator[None]:
    """Within this context the module that a dotted name begins with may be one of the user's own."""
    _FINDER.asked.append(_top(name))
    try:
        yield
    finally:
        _FINDER.asked.remove(_top(name))


def find(name: str, importer: str) -> ModuleSpec | None:
    """Where a module would import a top-level module from, without importing it."""
    spec = PathFinder.find_spec(name)
    if spec is None and _top(importer) in _FINDER.found:
        return PathFinder.find_spec(name, _FINDER.folders)
    return spec


def _importer() -> str:
    """The name of the module whose code asks for another."""
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        frame = caller
        name = str(frame.f_globals.get("__name__"))
        if not any(f"{name}.".startswith(f"{agent}.") for agent in (__name__, *_AGENTS)):
            return name
    return ""


def _top(name: str) -> str:
    return name.partition(".")[0]
