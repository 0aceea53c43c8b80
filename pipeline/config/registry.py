"""What can be chosen for each group of the configuration.

A choice is a module of the group's package and a file of conf/ that are called like it; or the module of an installed
package, registered as an entry point of `dlshap.<group>`. The module holds one schema: a subclass of the group's, whose
fields are the settings of that choice. The file gives defaults, and its first comment says what the choice is.
"""

import hashlib
import importlib
import inspect
import sys
from dataclasses import fields
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any

from pipeline.messages.errors import UserError
from pipeline.messages.words import did_you_mean, one_of

CONF = Path(__file__).absolute().parents[2] / "conf"  # by its place: a user's folder may hold a conf of its own
WIDTH = 112  # of a line of help
GROUPS = {  # and the package of the modules of each
    "model": "pipeline.models",
    "dataset": "pipeline.inputs",
    "references": "pipeline.references",
    "cluster": "pipeline.execution.executors",
}


def names(group: str) -> list[str]:
    """The choices of a group, in alphabetical order."""
    return sorted({*_files(group), *_installed(group)})


def choices(group: str) -> dict[str, str]:
    """The names of a group's choices, and what each is."""
    files = _files(group)
    return {name: _comment(files[name]) if name in files else _docline(group, name) for name in names(group)}


def base_schema(group: str) -> Any:
    """The schema of all choices of a group; it imports OmegaConf, for which their names do not wait."""
    return getattr(importlib.import_module("pipeline.config.schema"), f"{group.capitalize()}Config")


@cache
def schema(group: str, name: str) -> Any:
    """The schema of a choice.

    Raises:
        UserError: there is no such choice.
    """
    base, package = base_schema(group), GROUPS[group]
    known = names(group)
    if name not in known:
        raise UserError(f"{group}.name={name}; expected {one_of(known)}{did_you_mean(name, known)}")
    installed = _installed(group)
    module = importlib.import_module(installed[name].value if name in installed else f"{package}.{name}")
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, base) and each.__module__ == module.__name__
        if not inspect.isabstract(each)
    ]
    assert len(found) == 1, f"{module.__name__} holds {len(found)} schemas of {group}; expected one"
    return found[0]


def owners(group: str, key: str) -> dict[str, type]:
    """The choices that have a setting, without those that are another of them with defaults of their own."""
    schemas = {name: schema(group, name) for name in names(group)}
    found = {name: each for name, each in schemas.items() if key in {item.name for item in fields(each)}}
    return {name: each for name, each in found.items() if not set(each.__mro__[1:]) & set(found.values())}


def listing(group: str) -> str:
    """Lines of `name  what it is`, for help."""
    found = choices(group)
    indent = max(map(len, found)) + 4
    return "\n".join(_wrapped(f"  {name}".ljust(indent), text) for name, text in found.items())


def _files(group: str) -> dict[str, Path]:
    return {path.stem: path for path in (CONF / group).iterdir() if path.suffix == ".yaml"}


def _installed(group: str) -> dict[str, EntryPoint]:
    """The choices of installed packages. Raises UserError where one has the name of another."""
    found: dict[str, EntryPoint] = {}
    for point in plugin_points(group):
        if point.name in found or point.name in _files(group):
            raise UserError(
                f"{point.value} of dlshap.{group}: there is {group}={point.name} already; uninstall one of the packages"
            )
        found[point.name] = point
    return found


def plugin_points(group: str) -> EntryPoints:
    """The entry points of `dlshap.<group>`."""
    return _points(group, tuple(sys.path))


@lru_cache(maxsize=8)
def _points(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Read from every package on a search path, and asked for several times by each command."""
    return entry_points(group=f"dlshap.{group}")


def plugin_code(group: str, name: str) -> str | None:
    """sha256 over the module of an installed package's choice, in hexadecimal; None for dlshap's own."""
    if name not in _installed(group):
        return None
    return hashlib.sha256(Path(inspect.getfile(schema(group, name))).read_bytes()).hexdigest()


def _docline(group: str, name: str) -> str:
    return (inspect.getdoc(schema(group, name)) or "").partition("\n")[0]


def _comment(file: Path) -> str:
    """The first comment that is not for Hydra; "" where there is none."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = (line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@")), "")


def _wrapped(name: str, text: str) -> str:
    """A name and a text beside it, with settings in one piece."""
    lines = [name]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > WIDTH and lines[-1].strip():
            lines.append(" " * len(name))
        lines[-1] += word if lines[-1].endswith(" ") else f" {word}"
    return "\n".join(lines)


def plugins() -> list[tuple[str, str, dict[str, Any]]]:
    """(group, name, defaults) of the choices of installed packages, which have no file in conf/."""
    return [(group, name, {"name": name}) for group in GROUPS for name in _installed(group)]
