"""The user's own modules: those of the folder that a command is run in, and of cluster.code.

On `sys.path` such a folder would be asked for whatever a library would like to have (cupy, dill, plugins), and a file
that a stranger put there would run. Here only two may ask: a configuration, by the name of its target
(`asked_for`), and the modules that were found so, which import those beside them, also in `forward`. What is installed
comes first. A configuration may also name a file, wherever it is (own_files.py): what lies beside that comes before the
folders.
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
        self.sent: str | None = None
        self.asked: list[str] = []
        self.found: dict[str, str] = {}  # top-level modules, and the folder of each

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of a top-level module; what lies in a package is found by the package."""
        if path is not None or not (fullname in self.asked or _top(_importer()) in self.found):
            return None
        folder, spec = self.look_for(fullname, _top(_importer()))
        if spec is not None:
            self.found[fullname] = folder
            if spec.loader is None:  # a folder without an __init__.py, which would follow sys.path otherwise
                spec.submodule_search_locations = list(spec.submodule_search_locations or [])
        return spec

    def look_for(self, name: str, importer: str) -> tuple[str, ModuleSpec | None]:
        """The folder that holds a module, and its spec: beside the module that imports it, then in the folders."""
        for folder in [*filter(None, [self.found.get(importer)]), *self.folders]:
            if (spec := PathFinder.find_spec(name, [folder])) is not None:
                return folder, spec
        return "", None


_FINDER = _Finder()


def search(*more: str | None) -> None:
    """Look for the user's own modules in these folders too."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    for folder in more:
        if folder is not None and (path := os.path.abspath(folder)) not in _FINDER.folders:
            _FINDER.folders.append(path)


def search_sent(folder: str) -> None:
    """Look for them in a folder that was sent to this machine, also for files that a configuration names by where
    they are on another."""
    search(folder)
    _FINDER.sent = os.path.abspath(folder)


def sent() -> str | None:
    """The folder that was sent here, if any."""
    return _FINDER.sent


def keep(name: str, folder: str) -> None:
    """Have a top-level module, which a configuration names by its file, import what lies beside it. Modules of the same
    names from other folders are forgotten."""
    for other, home in list(_FINDER.found.items()):
        if home != folder and (other == name or PathFinder.find_spec(other, [folder]) is not None):
            del _FINDER.found[other]
            for known in [known for known in sys.modules if _top(known) == other]:
                del sys.modules[known]
    _FINDER.found[name] = folder


def folders() -> list[str]:
    """Those that are searched."""
    return list(_FINDER.folders)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Forget, after this context, the folders that were given in it."""
    finders, before, was_sent = list(sys.meta_path), folders(), _FINDER.sent
    try:
        yield
    finally:
        sys.meta_path[:], _FINDER.folders[:], _FINDER.sent = finders, before, was_sent


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
        return _FINDER.look_for(name, _top(importer))[1]
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
