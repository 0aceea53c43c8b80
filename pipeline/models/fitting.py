"""Weights into a module: by name, in the only way that makes all names and shapes fit (see names.py), or not at all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from pipeline.messages.errors import UserError
from pipeline.messages.visible import brief
from pipeline.messages.words import some
from pipeline.models import lazy, own_loading
from pipeline.models.hashing import state_of
from pipeline.models.names import COUNTER, Expected, Match, find_prefix, is_same_shape, matches
from pipeline.models.own_loading import current_versions, with_versions
from pipeline.models.shells import Shell

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAMES_SHOWN = 5
OF_ANOTHER_SHAPE = "of another shape"
_ARGUMENTS = "give the arguments that it was made with, model.init.NAME=..."
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Weights(dict[str, Tensor]):
    """A state dict of a file, and what is known of it.

    Attributes:
        notes: lines about other weights that its file holds too.
        key: where in the file it is; "" for the whole of it.
        whole: the class of the pickled module that it was taken from, if any.
        settings: of the modules in that, by their names.
        odd: its entries that are no tensors.
        extra: those among them that are the state of modules beside tensors (`_extra_state`).
        versions: of its modules, by their names, as torch writes them.
        others: other sets of weights in the file, by their keys.
        is_trusted: whether code of the file ran to read it.
        is_joined: whether it is made of several state dicts, those of parts of a model.
    """

    notes: tuple[str, ...] = ()
    key: str = ""
    whole: str = ""
    settings: Mapping[str, Mapping[str, Any]] = _NOTHING
    odd: tuple[str, ...] = ()
    extra: Mapping[str, Any] = _NOTHING
    versions: Mapping[str, Any] = _NOTHING
    others: Mapping[str, "Weights"] = _NOTHING
    is_trusted: bool = False
    is_joined: bool = False

    def everything(self) -> dict[str, Any]:
        """The tensors, and the state of modules beside them."""
        return {**self, **self.extra}

    def under(self, prefix: str, path: Path) -> "Weights":
        """What lies under a prefix, without it. Raises UserError where there is nothing."""
        own = Weights(without_prefix(self, prefix, path))
        own.extra, own.versions = _under(self.extra, prefix), _versions_under(self.versions, prefix)
        own.odd = tuple(name.removeprefix(prefix) for name in self.odd if name.startswith(prefix))
        own.whole, own.settings = self.whole, _versions_under(self.settings, prefix)
        return own


@dataclass(frozen=True)
class Fitted:
    """How weights came to fit.

    Attributes:
        prefix: removed from the names.
        left_out: names in the file without it.
        stored_as: types of weights in the file that were converted to float32.
        notes: lines about other choices.
    """

    prefix: str = ""
    left_out: tuple[str, ...] = ()
    stored_as: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def all_notes(self, path: Path | None) -> tuple[str, ...]:
        """Lines about the weights of a file that the user may not expect."""
        lines = list(self.notes)
        if self.prefix:
            left_out = f"; {len(self.left_out)} names without it were left out" if self.left_out else ""
            lines.append(f"the weights of {path} fit without the prefix {self.prefix!r} of their names{left_out}")
        if self.stored_as:
            lines.append(
                f"weights of {path} are stored as {' and '.join(self.stored_as)} and were converted to float32"
            )
        return tuple(lines)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: Path, prefix: str | None = None) -> Fitted:
    """Load the state dict of a file into a module, as torch does under the names that fit.

    `prefix` is removed from the names, and names without it are left out; None: the only way that makes them fit.

    Raises:
        UserError: names that are missing or not expected, shapes that differ, or values that cannot be used, by name.
    """
    weights = state if isinstance(state, Weights) else Weights(state)
    _refuse_flat(weights, path)
    expected = expected_of(module)
    given = weights if prefix is None else weights.under(prefix, path)
    if (fitted := _loaded_by_module(module, given, path)) is None:
        match = _only_match(expected, given, path)
        if match is None:
            raise UserError(_misfit(module, expected, given, path, prefix or ""))
        fitted = _load(module, expected, given, match, path)
    lazy.finish(module)
    return _told(fitted, weights, given, prefix or "", path)


def fits(module: nn.Module, state: Weights) -> bool:
    """Whether all names and shapes of a set of weights fit a module in some way."""
    return bool(matches(expected_of(module), state.everything()))


def expected_of(module: nn.Module) -> Expected:
    """What a module's state dict asks for. Raises UserError where it was made without values."""
    state = state_of(module)
    values = {name: value for name, value in state.items() if isinstance(value, Tensor) and not is_lazy(value)}
    if hollow := [name for name, value in values.items() if value.is_meta]:
        raise UserError(f"parameter {hollow[0]!r} of {type(module).__name__} was made without values (a meta tensor)")
    return Expected(state)


def without_prefix(state: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    """The entries whose names begin with the prefix, without it. Raises UserError where there are none."""
    if not (own := _under(state, prefix)):
        raise UserError(
            f"model.prefix={prefix}: no name in {path} begins so; there are {some(list(state), NAMES_SHOWN)}"
        )
    return own


def require_usable(state: Mapping[str, Any], origin: Path | str) -> None:
    """Raises UserError naming the first parameter without usable numbers, and where it came from."""
    for name, values in state.items():
        if not isinstance(values, Tensor):
            continue
        if problem := _problem(values):
            raise UserError(f"{origin}: parameter {name!r} {problem}")


def _problem(values: Tensor) -> str | None:
    """What is wrong with the numbers of a parameter, with the fix; None where nothing is."""
    if values.is_meta:
        return "has a shape but no values (a meta tensor); write the weights after they were loaded"
    if values.is_quantized:
        return f"is quantised ({_type(values)}); give the weights of before quantisation"
    if values.layout != torch.strided:
        return f"is sparse ({values.layout}); write it dense, with .to_dense()"
    if not values.is_floating_point():
        return None
    if values.dtype not in FLOATS:
        return f"is of type {_type(values)}; write the weights as float32, with .float()"
    if n_bad := int((~torch.isfinite(values)).sum()):
        bad = f"{n_bad} of {values.numel()} values that are NaN or infinite"
        return f"holds {bad}; the model cannot be used (did its training diverge?)"
    return None


def _loaded_by_module(module: nn.Module, state: Weights, path: Path) -> Fitted | None:
    """Of a module that has its own way of loading, what it made of the state dict; None of others, and where it refuses
    all."""
    if not own_loading.is_own(module):
        return None
    require_usable(state, path)
    _require_types(state_of(module), state, path)
    match = own_loading.load(module, state.everything(), None if state.whole else state.versions)
    return None if match is None else Fitted(match.removed, (), _stored_as(state), _notes_of(match, path))


def _only_match(expected: Expected, state: Weights, path: Path) -> Match | None:
    """None where nothing fits. Raises UserError where names fit in several ways that give other values."""
    found = matches(expected, state.everything())
    different = [match for match in found[1:] if not _is_same(found[0], match, state)]
    if different:
        prefixes = ", ".join(match.removed or "none" for match in (found[0], *different))
        raise UserError(f"{path} fits under several prefixes, {prefixes}; choose one with model.prefix=...")
    return found[0] if found else None


def _is_same(one: Match, other: Match, state: Weights) -> bool:
    """Whether two ways to take weights from a file give the same values."""
    pairs = [(state.get(source), state.get(other.sources.get(name, ""))) for name, source in one.sources.items()]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _load(module: nn.Module, expected: Expected, state: Weights, match: Match, path: Path) -> Fitted:
    own = {name: state[source] for name, source in match.sources.items() if source in state}
    own = _completed(expected, own)
    require_usable(own, path)
    _require_types(expected.values, own, path)
    _require_ties(expected, own, path)
    extra = {name: state.extra[source] for name, source in match.sources.items() if source in state.extra}
    _refuse_objects(extra, path)
    odd = _compare_settings(module, match.renamed(state.settings), path)
    versions = current_versions(module) if state.whole else match.renamed(state.versions)
    module.load_state_dict(with_versions({**own, **extra}, versions), strict=False)  # the names were compared
    return Fitted(match.removed, match.left_out, _stored_as(own), (*_notes_of(match, path), *odd))


def _stored_as(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    others = [values for values in state.values() if values.is_floating_point() and values.dtype != torch.float32]
    return tuple(sorted({_type(values) for values in others}))


def _told(fitted: Fitted, weights: Weights, given: Weights, prefix: str, path: Path) -> Fitted:
    """With the prefix that was asked for, and the notes of the file."""
    outside = tuple(name for name in weights.everything() if not name.startswith(prefix))
    odd = [f"left out of {path}, as they are no tensors: {some(given.odd, NAMES_SHOWN)}"] if given.odd else []
    return replace(
        fitted,
        prefix=prefix + fitted.prefix,
        left_out=(*outside, *(prefix + name for name in fitted.left_out)),
        notes=(*weights.notes, *fitted.notes, *odd),
    )


def _notes_of(match: Match, path: Path) -> tuple[str, ...]:
    lines = []
    if match.added:
        lines.append(f"the weights of {path} fit with {match.added!r} before their names")
    if match.is_respelled:
        lines.append(
            f"the names of {path} were compared without the parts that wrappers put into them, and with weight and "
            f"spectral norm as newer torch names them"
        )
    return tuple(lines)


def _refuse_flat(state: Mapping[str, Tensor], path: Path) -> None:
    if flat := next((name for name in state if name.rpartition(".")[2].startswith("_flat_param")), None):
        raise UserError(
            f"{path} holds flattened parameters of FSDP ({flat}), a part of the weights; write them whole: `with "
            f"FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT): torch.save(model.state_dict(), ...)`"
        )


def _compare_settings(module: nn.Module, settings: Mapping[str, Mapping[str, Any]], path: Path) -> list[str]:
    """A note where a pickled module has other settings, which its weights do not tell.

    Raises:
        UserError: they are those of a layer of torch's (padding, dilation).
    """
    odd = []
    for name, child in module.named_modules():
        for setting, value in settings.get(name, {}).items():
            own = getattr(child, setting, value)
            if type(own) is not type(value) or own == value or isinstance(child, LazyModuleMixin):
                continue
            where = f"{name}.{setting}".removeprefix(".")
            if type(child).__module__.startswith("torch."):
                raise UserError(
                    f"{path} is a pickled module in which {where} is {value}, and {type(module).__name__} makes one "
                    f"where it is {own}; {_ARGUMENTS}"
                )
            odd.append(f"{where} is {brief(str(value))}, not {brief(str(own))}")
    if not odd:
        return []
    return [
        f"WARNING: {path} is a pickled module with other settings than {type(module).__name__} has here: "
        f"{some(odd, NAMES_SHOWN)}; where `forward` reads these, {_ARGUMENTS}"
    ]


def _refuse_objects(extra: Mapping[str, Any], path: Path) -> None:
    for name, value in extra.items():
        if any(isinstance(each, Shell) for each in _within(value)):
            raise UserError(f"{path}: {name!r} is or holds an object of a class, and is not made from a file")


def _within(value: Any) -> list[Any]:
    inner = list(value.values()) if isinstance(value, Mapping) else value
    return [each for one in inner for each in _within(one)] if isinstance(inner, list | tuple) else [value]


def _misfit(module: nn.Module, expected: Expected, state: Weights, path: Path, prefix: str) -> str:
    """What does not fit, under the prefix that all names have and that some fit under."""
    candidates = find_prefix(state, next(iter(expected.values), ""))
    found = candidates[0] if len(candidates) == 1 and all(name.startswith(candidates[0]) for name in state) else ""
    own = {**_completed(expected, _under(state, found)), **_under(state.extra, found)}
    without = f" without the prefix {prefix + found!r}" if prefix + found else ""
    odd = f"; no tensors: {some(state.odd, NAMES_SHOWN)}" if state.odd else ""
    differences = _differences(expected.values, own)
    hint = f"; {_ARGUMENTS}" if OF_ANOTHER_SHAPE in differences else ""
    return f"{path}{without} does not fit {type(module).__name__}: {differences}{odd}{hint}"


def _differences(expected: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} (model: {tuple(values.shape)})"
        for name, values in expected.items()
        if name in state and not is_same_shape(values, state[name])
    ]
    labelled = [("missing", missing), ("not expected", unexpected), (OF_ANOTHER_SHAPE, shapes)]
    return "; ".join(f"{label}: {some(names, NAMES_SHOWN)}" for label, names in labelled if names)


def _under(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


def _versions_under(versions: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removesuffix("."): version for name, version in _under(_dotted(versions), prefix).items()}


def _dotted(versions: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}." if name else "": version for name, version in versions.items()}


def _completed(expected: Expected, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With what a file may leave out: all but one name of tied weights, and the counters of batch norm."""
    completed = dict(state)
    for name, values in expected.values.items():
        twin = next((twin for twin in expected.twins.get(name, ()) if twin in state), None)
        if name not in state and twin is not None:
            completed[name] = state[twin]
        elif name not in state and name.rpartition(".")[2] == COUNTER:
            completed[name] = values
    return completed


def _require_ties(expected: Expected, state: Mapping[str, Tensor], path: Path) -> None:
    for name, twins in expected.twins.items():
        if not torch.equal(state[twins[0]], state[name]):
            raise UserError(
                f"{path}: {twins[0]!r} and {name!r} are one parameter in the model, and differ in the file; "
                f"is it of another architecture?"
            )


def _require_types(expected: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> None:
    for name, values in expected.items():
        if name not in state or not isinstance(values, Tensor) or is_lazy(values):
            continue
        kinds = [(one.is_floating_point(), one.is_complex()) for one in (values, state[name])]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"{path}: {name!r} is of type {_type(state[name])}, which the model has as {_type(values)}; "
                f"give the weights of before quantisation"
            )


def _type(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
