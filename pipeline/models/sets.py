"""Sets of weights in the content of a file: state dicts, whole modules as shells, averages of weights beside them.

A file of a training loop holds much else: an optimizer's state, metrics, settings. A set is told by what it is, names
and tensors, wherever in the file; its key is where: `state_dict`, `ema.module`, or "" for the whole file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.messages.errors import UserError
from pipeline.messages.words import some
from pipeline.models.fitting import NAMES_SHOWN, Weights, fits
from pipeline.models.shells import Shell, is_module, require_tensors, settings_of, tensors_of

USUAL = ("state_dict", "model_state_dict", "model", "module", "net")  # keys of the weights that are meant
_EXTRA = "_extra_state"  # how names of a module's state beside tensors end
_DEEPEST = 6  # keys within keys
_MOST = 1000  # mappings that are looked into


def chosen(content: Any, path: Path, prefix: str | None, undecided: bool = False) -> Weights:
    """The weights that are meant in the content of a file, with its other sets beside them.

    Args:
        content: a mapping, or a shell of a module.
        path: of the file.
        prefix: of names; where it begins with the key of a set that is not the usual one (`model_ema.`), that is
            taken, with the key before its names.
        undecided: whether any may be returned where none is the usual one: what fits a module decides.

    Raises:
        UserError: there are none, or several of which none is the usual one.
    """
    sets = dict(_sets(content))
    if not sets:
        raise UserError(_problem(content, path))
    usual = min(sets, key=_rank)
    meant = {} if sets[usual].is_joined else sets[usual]
    if prefix and not any(name.startswith(prefix) for name in meant):
        own = _with_keys([state for key, state in sets.items() if key and _are_akin(f"{key}.", prefix)])
        if any(name.startswith(prefix) for name in own):
            require_tensors(own.values(), path)
            return own
    named = [key for key in sets if key]
    if len(sets) > 1 and not (undecided or is_usual(usual)):
        keys = some([repr(key) for key in named], NAMES_SHOWN)
        raise UserError(
            f"{path} holds several sets of weights, under {keys}; choose one, such as model.prefix={named[0]}."
        )
    require_tensors(sets[usual].values(), path)
    state = sets[usual]
    state.others = {key: sets[key] for key in sorted(sets, key=_rank) if key != usual}
    if akin := [other for other in state.others.values() if not other.is_joined and _shapes(other) & _shapes(state)]:
        state.notes = (_several(path, state, akin),)
    return state


def fitting(module: nn.Module, state: Weights, path: Path) -> Weights:
    """Of the sets of weights of a file that fits a module, with a line where others do too; the usual one where none
    does. Raises UserError where several fit and none is the usual one."""
    sets = [state, *state.others.values()]
    fitting_sets = [each for each in sets if fits(module, each)] if state.others else []
    found = [each for each in fitting_sets if not each.is_joined] or fitting_sets
    if not found:
        return state
    first, *others = found
    others = [other for other in others if not _is_same(first, other)]
    if others and not is_usual(first.key):
        keys = some([repr(each.key) for each in found], NAMES_SHOWN)
        raise UserError(f"{path}: the weights under each of {keys} fit; choose, such as model.prefix={first.key}.")
    first.notes = (_several(path, first, others),) if others else ()
    if first is not state and not first.is_joined and not others:
        first.notes = (f"{path}: the weights under {first.key!r} are taken, the only ones that fit",)
    return first


def _several(path: Path, taken: Weights, others: Sequence[Weights]) -> str:
    listed = " or ".join(repr(other.key) for other in others)
    return (
        f"{path} holds several sets of weights: those under {taken.key!r} are taken, not those under {listed} "
        f"(model.prefix={others[0].key}. takes these)"
    )


def _shapes(state: Weights) -> set[tuple[int, ...]]:
    return {tuple(values.shape) for values in state.values() if values.ndim}


def _is_same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def is_usual(key: str) -> bool:
    """Whether the weights under a key are those that are meant, where there are others."""
    return all(part in USUAL for part in key.split("."))


def _rank(key: str) -> tuple[int, int]:
    """The usual keys first; then the file itself, and what lies deepest last."""
    parts = key.split(".")
    return USUAL.index(parts[0]) if is_usual(key) else len(USUAL), len(parts) if key else 0


def _with_keys(sets: Sequence[Weights]) -> Weights:
    """As one, with their keys before their names."""
    joined = Weights({f"{state.key}.{name}": values for state in sets for name, values in state.items()})
    joined.extra = {f"{state.key}.{name}": value for state in sets for name, value in state.extra.items()}
    joined.odd = tuple(f"{state.key}.{name}" for state in sets for name in state.odd)
    joined.versions = {
        f"{state.key}.{name}".removesuffix("."): v for state in sets for name, v in state.versions.items()
    }
    joined.settings = {f"{state.key}.{name}": v for state in sets for name, v in state.settings.items()}
    joined.whole = next((state.whole for state in sets if state.whole), "")
    return joined


def _are_akin(key: str, prefix: str) -> bool:
    return key.startswith(prefix) or prefix.startswith(key)


def _sets(content: Any) -> Iterator[tuple[str, Weights]]:
    """Every mapping of names to tensors in the content of a file, and every shell of a module, by its key."""
    pending: list[tuple[str, Any]] = [("", content)]
    seen: set[int] = set()
    while pending and len(seen) < _MOST:
        key, each = pending.pop(0)
        if id(each) in seen or key.count(".") >= _DEEPEST:
            continue
        seen.add(id(each))
        if isinstance(each, nn.Module):
            state = Weights(each.state_dict())
            state.key, state.whole = key, type(each).__name__
            yield key, state
        elif is_module(each):
            if state := Weights(tensors_of(each)):
                state.key, state.whole, state.settings = key, each.origin, settings_of(each)
                yield key, state
        elif isinstance(each, Mapping):
            state = _own(each, key)
            if state:
                yield key, state
            inner = [(f"{key}.{name}" if key else str(name), value) for name, value in each.items()]
            pending += [(name, value) for name, value in inner if not _is_of_optimizer(name, value)]
            if not key and not state and (state := _parts(each)):
                yield key, state


def _own(content: Mapping[Any, Any], key: str) -> Weights:
    """The names and tensors of a mapping; what else it holds is kept beside them."""
    state = Weights(
        {name: v.detach() for name, v in content.items() if isinstance(name, str) and isinstance(v, Tensor)}
    )
    others = {str(name): value for name, value in content.items() if str(name) not in state}
    state.key = key
    state.extra = {name: value for name, value in others.items() if name.rpartition(".")[2] == _EXTRA}
    state.odd = tuple(
        f"{name} ({value.origin})" if isinstance(value, Shell) else name
        for name, value in others.items()
        if name not in state.extra
    )
    state.versions = dict(getattr(content, "_metadata", None) or {})
    return state


def _parts(content: Mapping[Any, Any]) -> Weights:
    """The state dicts of a model's parts, one under each key, as one."""
    parts = {str(key): dict(value) for key, value in content.items() if _is_part(key, value)}
    if len(parts) < 2:
        return Weights()
    state = Weights({f"{key}.{name}": v.detach() for key, part in parts.items() for name, v in part.items()})
    state.is_joined = True
    return state


def _is_part(key: Any, value: Any) -> bool:
    is_mapping = isinstance(value, Mapping) and bool(value) and not _is_of_optimizer(str(key), value)
    return is_mapping and all(isinstance(name, str) and isinstance(v, Tensor) for name, v in value.items())


def _is_of_optimizer(key: str, value: Any) -> bool:
    name = key.rpartition(".")[2].lower()
    return "optim" in name or name.startswith("opt") or (isinstance(value, Mapping) and "param_groups" in value)


def _problem(content: Any, path: Path) -> str:
    if not isinstance(content, Mapping):
        what = content.origin if isinstance(content, Shell) else type(content).__name__
        return f"{path} holds a {what}; expected a state dict, names and tensors"
    odd = [str(name) for name in content]
    what = f"entries that are not tensors: {some(odd, NAMES_SHOWN)}" if odd else "no tensors"
    return f"{path} holds {what}; expected a state dict, alone or under a key such as {' or '.join(USUAL[:3])}"
