"""Weights from files, without running code from them.

Accepted: safetensors (one file, or a folder of them), and what `torch.save(model.state_dict())` writes, also under a
key of a training framework's checkpoint (Lightning's, say), read with `weights_only=True`. A pickled whole module can
run any code when it is read, so that one is refused unless it is trusted by name (`model.trust_pickle=true`). The kind
is told by the file's content.
"""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.messages.errors import UserError
from pipeline.messages.words import some
from pipeline.models import own_modules
from pipeline.models.fitting import NAMES_SHOWN, Weights
from pipeline.models.folder import read_folder, read_safetensors
from pipeline.models.formats import directory_problem, is_safetensors, require_torch_file
from pipeline.models.shells import UNREADABLE, Shell, family_of, names_in, quietly, read_with, require_tensors

_NESTED_KEYS = ("state_dict", "model_state_dict", "model")
_LIGHTNING = "pytorch-lightning_version"


def checkpoint_path(path: str | Path | None, folders: bool = False) -> Path:
    """The checkpoint as an existing file, or folder where these are allowed. Raises UserError where it is neither."""
    if path is None or str(path) == "":
        raise UserError("model.checkpoint is not set; give the file that holds the model's weights")
    found = Path(path).expanduser()
    if found.is_dir():
        if folders:
            return found
        raise UserError(f"{directory_problem(found)}; expected a file of weights")
    if not found.is_file():
        raise UserError(f"model.checkpoint={path}: no such file (looked for {found.absolute()})")
    return found


def read_checkpoint(path: Path, trust_pickle: bool = False, prefix: str | None = None) -> Weights | nn.Module:
    """The state dict in a file or folder, or the whole module where one was pickled and is trusted.

    Args:
        path: of the file or folder.
        trust_pickle: whether a pickled whole module may be read, which runs code from the file.
        prefix: of the names; where it begins with a key of a file that holds several state dicts (`model_ema.`), the
            state dict under that key is read, with the key before its names.

    Raises:
        UserError: the file is no checkpoint, is damaged, or holds a pickled module that is not trusted.
    """
    if path.is_dir():
        return read_folder(path)
    if is_safetensors(path):
        if not (state := read_safetensors(path)):
            raise UserError(f"{path} holds no tensors")
        return Weights(state)
    require_torch_file(path)
    try:
        content = read_with(path, {})
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        content = _lightning_checkpoint(path)
        if content is None:
            if not trust_pickle:
                raise UserError(_refusal(path, error)) from None
            content = _unpickle(path)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a torch checkpoint: {_first_line(error)}") from None
    return content if isinstance(content, nn.Module) else _state_dict_in(content, path, prefix)


def _lightning_checkpoint(path: Path) -> dict[str, Any] | None:
    """A checkpoint of Lightning whose settings are objects of other libraries, which are not created; or None."""
    if not (names := names_in(path)):
        return None
    try:
        content = read_with(path, dict.fromkeys(names, Shell))
    except (pickle.UnpicklingError, *UNREADABLE):
        return None
    is_one = isinstance(content, dict) and _LIGHTNING in content and isinstance(content.get("state_dict"), Mapping)
    return content if is_one else None


def _refusal(path: Path, error: Exception) -> str:
    if (family := family_of(path)) is not None:
        return (
            f"{path} is a whole model of bpnet-lite; use model={family} model.checkpoint=..., which runs nothing from "
            f"the file"
        )
    first = sorted(names_in(path))[:3]
    if not first and "operand" in str(error):
        return (
            f"{path} is written in a form of pickle that cannot be read safely (protocol 2 can, which torch.save "
            f"writes); write it again with torch.save(model.state_dict(), ...)"
        )
    holds = f" ({', '.join(first)})" if first else ""
    return (
        f"{path} holds Python objects beside tensors{holds}, probably a whole model pickled by torch.save(model); "
        f"reading it would run code from the file. Write torch.save(model.state_dict(), ...) instead and give its "
        f"class as model._target_, or, if you trust the file, set model.trust_pickle=true"
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
            f"{path} is a pickled model whose class cannot be imported here: {_first_line(error)}; install its package"
        ) from None
    except (pickle.UnpicklingError, *UNREADABLE) as error:
        raise UserError(f"{path} cannot be read, although it is trusted: {_first_line(error)}") from None


def _state_dict_in(content: Any, path: Path, prefix: str | None) -> Weights:
    whole, taken = content, ""
    beside: dict[Any, Any] = {}
    for key in _NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            taken, beside = key, beside | {other: value for other, value in content.items() if other != key}
            content = content[key]
    if prefix and isinstance(whole, Mapping) and not any(str(name).startswith(prefix) for name in content):
        head = prefix.partition(".")[0]
        if isinstance(whole.get(head), Mapping) and (own := dict(_flat(whole[head], head))):
            require_tensors(own.values(), path)
            return Weights(own)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a state dict, names and tensors")
    odd = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd or not content:
        what = f"entries that are not tensors: {some(odd, NAMES_SHOWN)}" if odd else "no tensors"
        hint = "".join(f"; model.prefix={key}. takes those under {key}" for key in _like(content, None)[:1])
        raise UserError(f"{path} holds {what}; expected a state dict, alone or under {' or '.join(_NESTED_KEYS)}{hint}")
    require_tensors(content.values(), path)
    state = Weights({name: value.detach() for name, value in content.items()})
    if others := _like(beside, state):
        listed = " or ".join(map(repr, others))
        state.notes = (
            f"{path} holds several sets of weights: those under {taken!r} are taken, not those under {listed} "
            f"(model.prefix={others[0]}. takes these)",
        )
    return state


def _like(content: Mapping[Any, Any], state: Mapping[str, Tensor] | None) -> list[str]:
    """The keys of weights (no optimizer's) that share a shape with a state dict, if one is given."""
    shapes = None if state is None else {values.shape for values in state.values() if values.ndim}
    return [
        str(key)
        for key, value in content.items()
        if isinstance(value, Mapping)
        and "optim" not in str(key).lower()
        and "param_groups" not in value
        and any(shapes is None or values.shape in shapes for _, values in _flat(value, ""))
    ]


def _flat(content: Mapping[Any, Any], head: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a mapping of mappings, by their keys, joined by dots."""
    for key, value in content.items():
        name = f"{head}.{key}" if head else str(key)
        if isinstance(value, Tensor):
            yield name, value.detach()
        elif isinstance(value, Mapping):
            yield from _flat(value, name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
