"""Pickles read without running anything in them.

Torch's weights-only unpickler reads them, with an inert shell in place of every class and function that a file names;
it calls nothing but these and its own functions that make tensors. Weights and sizes are taken from the shells.
"""

import io
import itertools
import pickle
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from pipeline.config import limits
from pipeline.messages.errors import UserError
from pipeline.messages.words import some
from pipeline.models.formats import is_safetensors
from pipeline.models.nesting import DEEPEST
from pipeline.models.zip_archive import is_archive, members_of

BPNET, CHROMBPNET = "bpnetlite.bpnet.BPNet", "bpnetlite.chrombpnet.ChromBPNet"
_OF_BPNET_LITE = ("bpnetlite.", "torch.", "numpy.")  # how all names in its files begin
_PICKLE = "data.pkl"  # in the zip archive
_UNBOUNDED = b"bytearray\n"  # torch calls it, with any number
_N_PICKLES = 4  # of a file without an archive: magic number, protocol, system, content
_MOST_CONTAINERS = 16  # classes of a file that are dicts or lists of its own
_MOST_MODULES = 100_000
_OF_TRAINING = ("training", "momentum", "p", "dropout", "inplace", "device")  # what inference does not read
# What a file of weights has no honest use for.
_RUNNING_MODULES = {
    *("ctypes", "importlib", "marshal", "nt", "os", "pickle", "posix", "pty"),
    *("runpy", "shutil", "socket", "subprocess", "sys", "webbrowser"),
}
_RUNNING = tuple(f"builtins.{name}" for name in ("eval", "exec", "execfile", "compile", "__import__", "open", "input"))
# What reading a damaged or hostile file may raise.
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


class Shell:
    """Stands for any object of a file: holds its attributes, and does nothing."""

    origin = "an object"  # the name of its class in the file

    def __init__(self, *_: object) -> None:
        """Only attributes hold weights and sizes; arguments are dropped."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def nothing(*_: object) -> None:
    """Stands for any function of a file."""


class _Items:
    """Stands for the classes of a file that are dicts: makes a plain one."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


class _Sequence:
    """Stands for the classes of a file that are lists: makes a plain one."""

    def __new__(cls, *_: object) -> Any:
        return []


@contextmanager
def quietly() -> Iterator[None]:
    """Without torch's warnings about unusual pickles: those that matter are errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def require_bounded(path: Path) -> None:
    """Raises UserError where the content of a file that `torch.save` wrote is beyond the limits; a file of another form
    is left to whoever reads it."""
    if not is_archive(path):
        return
    try:
        members = members_of(path)
        limits.require_held(sum(each.file_size for each in members), limits.bytes_on_disk(path), str(path))
        for each in members:
            if _is_pickle(each.filename):
                limits.require_header(each.file_size, f"{path}: {each.filename}")
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise UserError(f"{path} is a damaged zip archive: {error}; copy or download it again") from None


def require_tensors(tensors: Iterable[Tensor], path: Path, what: str = "the state dict") -> None:
    """Raises UserError where tensors that a file has, or says that there are, are beyond the limits: several may share
    their values."""
    n_bytes = sum(values.numel() * values.element_size() for values in tensors)
    limits.require_held(n_bytes, limits.bytes_on_disk(path), f"{path}: {what}")


def names_in(path: Path) -> set[str]:
    """The names in a checkpoint beyond those that torch allows, found without executing it; none where it is no
    checkpoint (the error comes from reading it as a state dict). Raises UserError as `require_bounded` does."""
    require_bounded(path)
    try:
        with quietly():
            return set(get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, *UNREADABLE):
        return set()


def family_of(path: Path) -> str | None:
    """The family of a whole module that bpnet-lite pickled, by the names in the file; None for anything else."""
    names = set() if is_safetensors(path) else names_in(path)
    if not all(name.startswith(_OF_BPNET_LITE) for name in names):
        return None
    return "chrombpnet" if CHROMBPNET in names else "bpnet" if BPNET in names else None


def read_with(path: Path, stand_ins: Mapping[str, Any]) -> Any:
    """The content of a pickle, with the given shells in place of those names.

    Raises:
        UserError: it is beyond the limits.
        pickle.UnpicklingError: it holds other names, or unknown operations.
        UNREADABLE: it is damaged.
    """
    require_bounded(path)
    with quietly(), safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]), _open(path) as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def read_inert(path: Path) -> Any:
    """The content of a pickle, with shells in place of all objects but tensors, dicts, lists and the like.

    Raises:
        UserError: it is beyond the limits.
        pickle.UnpicklingError: it names what runs code, or holds unknown operations.
        UNREADABLE: it is damaged.
    """
    require_bounded(path)
    names = _all_names(path)
    if bad := sorted(name for name in names if name in _RUNNING or name.partition(".")[0] in _RUNNING_MODULES):
        raise pickle.UnpicklingError(f"it names {some(bad, 3)}")
    stand_ins: dict[str, Any] = {
        name: type(name, (Shell,), {"origin": name, "__module__": "in a file"}) for name in names
    }
    for _ in range(_MOST_CONTAINERS):
        try:
            return read_with(path, stand_ins)
        except pickle.UnpicklingError as error:
            refused = [name for name, stand_in in stand_ins.items() if str(stand_in) in str(error)]
            if len(refused) != 1:
                raise
            stand_ins[refused[0]] = _Items if "SETITEM" in str(error) else _Sequence
    raise pickle.UnpicklingError(f"it has more than {_MOST_CONTAINERS} classes of dicts or lists")


def _all_names(path: Path) -> set[str]:
    """Of the classes and functions that a pickle names, as torch's unpickler spells them."""
    names = set()
    with _pickles(path) as (file, n_pickles):
        for _ in range(n_pickles):
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                    names.add(f"{module}.{name}")
    return names


@contextmanager
def _pickles(path: Path) -> Iterator[tuple[Any, int]]:
    """The pickle in an archive, or those of a file without one; and their number."""
    if not is_archive(path):
        with _Pickle(path) as file:
            yield file, _N_PICKLES
        return
    with zipfile.ZipFile(path) as archive:
        inner = [each for each in archive.namelist() if _is_pickle(each)]
        yield io.BytesIO(b"".join(map(archive.read, inner))), len(inner)


def _open(path: Path) -> io.BufferedReader:
    if not is_archive(path):
        return _Pickle(path)
    with zipfile.ZipFile(path) as archive:
        if any(_UNBOUNDED in archive.read(each) for each in archive.namelist() if _is_pickle(each)):
            raise _unbounded()
    return path.open("rb")


def _is_pickle(name: str) -> bool:
    """Whether torch may take a file of an archive for the pickle; it does not tell capital letters from small ones."""
    return name.lower().endswith(_PICKLE)


class _Pickle(io.BufferedReader):
    """A pickle with tensors behind it, as torch wrote before version 1.6: the pickle is read within the limits."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._path, self._left = path, limits.current().header_mb * limits.MB

    def read(self, size: int | None = -1, /) -> bytes:
        most = self._left + 1
        return self._counted(super().read(most if size is None or size < 0 else min(size, most)))

    def readline(self, size: int | None = -1, /) -> bytes:
        line = self._counted(super().readline(self._left + 1))
        if line == _UNBOUNDED:
            raise _unbounded()
        return line

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise limits.too_long(f"{self._path}: its pickle", "header_mb")
        return data


def _unbounded() -> pickle.UnpicklingError:
    return pickle.UnpicklingError("a bytearray may be of any size")


def tensors_of(shell: Shell) -> list[tuple[str, Tensor]]:
    """The state dict of a module that is only a shell: its parameters and buffers, and those of its children.

    Raises:
        UserError: modules are within each other without end.
    """
    found: list[tuple[str, Tensor]] = []
    pending, counter = [(0, "", shell)], itertools.count()
    while pending:
        depth, prefix, each = pending.pop()
        if depth > DEEPEST or next(counter) > _MOST_MODULES:
            raise UserError(
                f"{shell.origin}, which is pickled, has modules within modules without end, at {prefix[:80]}"
            )
        left_out = each.__dict__.get("_non_persistent_buffers_set", ())
        own = {**_part(each, "_parameters"), **_part(each, "_buffers")}
        found += [
            (prefix + name, values.detach())
            for name, values in own.items()
            if isinstance(values, Tensor) and name not in left_out
        ]
        children = [(depth + 1, f"{prefix}{name}.", child) for name, child in children_of(each).items()]
        pending += reversed(children)
    return found


def settings_of(shell: Shell) -> dict[str, dict[str, Any]]:
    """Of a module that is only a shell, the plain attributes of each module in it, by their names."""
    found: dict[str, dict[str, Any]] = {}
    pending = [("", shell)]
    while pending and len(found) < _MOST_MODULES:
        prefix, each = pending.pop()
        found[prefix.removesuffix(".")] = {name: v for name, v in each.__dict__.items() if _is_setting(name, v)}
        pending += [(f"{prefix}{name}.", child) for name, child in children_of(each).items()]
    return found


def _is_setting(name: str, value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    plain = all(each is None or isinstance(each, bool | int | float | str) for each in values)
    return plain and not name.startswith("_") and name not in _OF_TRAINING


def is_module(value: object) -> bool:
    """Whether a shell stands for a module."""
    return isinstance(value, Shell) and isinstance(value.__dict__.get("_modules"), dict)


def children_of(shell: Shell) -> dict[str, Shell]:
    """The submodules of a module that is only a shell."""
    return {str(name): child for name, child in _part(shell, "_modules").items() if isinstance(child, Shell)}


def _part(shell: Shell, name: str) -> dict[str, Any]:
    found = shell.__dict__.get(name)
    return found if isinstance(found, dict) else {}
