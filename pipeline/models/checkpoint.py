"""Weights from files, without running code from them.

Accepted: safetensors (one file, or a folder of them), and what `torch.save(model.state_dict())` writes, also under a
key of a training framework's checkpoint (Lightning's, say), read with `weights_only=True`. A pickled whole module can
run any code when it is read, so that one is refused unless it is trusted by name (`model.trust_pickle=true`). The kind
is told by the file's content.
"""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pipeline.config.settings import expanded
from pipeline.messages.errors import UserError
from pipeline.messages.words import some
from pipeline.models import own_modules
from pipeline.models.fitting import Weights
from pipeline.models.folder import is_index, read_folder, read_safetensors
from pipeline.models.formats import directory_problem, is_safetensors, require_torch_file
from pipeline.models.sets import chosen
from pipeline.models.shells import UNREADABLE, family_of, is_module, names_in, quietly, read_inert, read_with


def checkpoint_path(path: str | Path | None, folders: bool = False) -> Path:
    """The checkpoint as an existing file, or folder where these are allowed. Raises UserError where it is neither."""
    if path is None or str(path) == "":
        raise UserError("model.checkpoint is not set; give the file that holds the model's weights")
    found = expanded(path)
    if found.is_dir():
        if folders:
            return found
        raise UserError(f"{directory_problem(found)}; expected a file of weights")
    if not found.is_file():
        raise UserError(f"model.checkpoint={path}: no such file (looked for {found.absolute()})")
    return found


def read_checkpoint(
    path: Path,
    trust_pickle: bool = False,
    prefix: str | None = None,
    *,
    whole: bool = False,
    undecided: bool = False,
) -> Weights | nn.Module:
    """The state dict in a file or folder, or the whole module where one was pickled, is trusted and is wanted.

    Args:
        path: of the file or folder.
        trust_pickle: whether a pickle may be read that runs code, where that is needed.
        prefix: of the names; where it begins with a key of a file that holds several state dicts (`model_ema.`), the
            state dict under that key is read, with the key before its names.
        whole: whether a pickled module is wanted, and not its weights alone.
        undecided: whether any of several sets of weights may be returned where none is the usual one.

    Raises:
        UserError: the file is no checkpoint, is damaged, or holds what is not read without trust.
    """
    ran: list[Path] = []
    if path.is_dir() or is_index(path):
        folder, index = (path, None) if path.is_dir() else (path.parent, path.name)
        of_parts = read_folder(folder, lambda file: read_torch_file(file, trust_pickle, ran), index)
        of_parts.is_trusted = bool(ran)
        return of_parts
    if is_safetensors(path):
        if not (tensors := read_safetensors(path)):
            raise UserError(f"{path} holds no tensors")
        return Weights(tensors)
    content = read_torch_file(path, trust_pickle, ran)
    if is_module(content) and whole:
        if not trust_pickle:
            raise UserError(_refusal(path, content.origin))
        content = _unpickle(path)
    if isinstance(content, nn.Module) and whole:
        return content
    state = chosen(content, path, prefix, undecided)
    for each in (state, *state.others.values()):
        each.is_trusted = bool(ran)
    return state


def read_torch_file(path: Path, trust_pickle: bool, ran: list[Path]) -> Any:
    """The content of what `torch.save` wrote, with shells in place of all objects of classes; where code must run to
    read it, and may, what that makes, and `ran` gets the path. Raises UserError as `read_checkpoint` does."""
    require_torch_file(path)
    try:
        try:
            return read_with(path, {})
        except pickle.UnpicklingError:
            return read_inert(path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if trust_pickle:
            ran.append(path)
            return _unpickle(path)
        raise UserError(_unreadable(path, error)) from None
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a torch checkpoint: {_first_line(error)}") from None


def _refusal(path: Path, origin: str) -> str:
    """Of a whole module."""
    if (family := family_of(path)) is not None:
        return (
            f"{path} is a whole model of bpnet-lite; use model={family} model.checkpoint=..., which runs nothing from "
            f"the file"
        )
    module, _, name = origin.rpartition(".")
    target = f"path/to/the/script.py:{name}" if module == "__main__" else origin
    return (
        f"{path} is a whole model pickled by torch.save(model), of the class {origin}; making it would run code from "
        f"the file. Give the class, and only weights are read: model._target_={target}, with its arguments as "
        f"model.init.NAME=...; or, if you trust the file, set model.trust_pickle=true"
    )


def _unreadable(path: Path, error: Exception) -> str:
    names = names_in(path)
    if not names and "operand" in str(error):
        return (
            f"{path} is written in a form of pickle that cannot be read safely (protocol 2 can, which torch.save "
            f"writes); write it again with torch.save(model.state_dict(), ...)"
        )
    if "persistent_load" in str(error):
        return (
            f"{path} is a whole model in the form of torch before 1.6, which cannot be read safely; write "
            f"torch.save(model.state_dict(), ...) instead, or, if you trust the file, set model.trust_pickle=true"
        )
    holds = f" ({some(sorted(names), 3)})" if names else ""
    return (
        f"{path} holds Python objects beside tensors{holds} that cannot be left out: {_first_line(error)}; reading it "
        f"would run code from the file. Write torch.save(model.state_dict(), ...) instead, or, if you trust the file, "
        f"set model.trust_pickle=true"
    )


class _Unpickler(pickle.Unpickler):
    """The classes that a trusted file names may be in the user's own modules."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        with own_modules.asked_for(module_name):
            return super().find_class(module_name, global_name)


# What torch.load needs of the module pickle.
_TRUSTED = SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=pickle.load)


def _unpickle(path: Path) -> Any:
    """Read a trusted pickle, which runs whatever is in it."""
    try:
        with quietly(), path.open("rb") as file:
            return torch.load(file, map_location="cpu", pickle_module=_TRUSTED, weights_only=False)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{path} is a pickled model whose class is not found here: {_first_line(error)}; install its package, "
            f"or give the class as model._target_=path/to/file.py:Class, and its weights are read without"
        ) from None
    except (pickle.UnpicklingError, *UNREADABLE) as error:
        raise UserError(f"{path} cannot be read, although it is trusted: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    return lines[0] if lines else type(error).__name__
