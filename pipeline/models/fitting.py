"""Weights into a module: by name, without the prefix that a training framework put before the names, or not at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.messages.errors import UserError
from pipeline.messages.words import some

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAMES_SHOWN = 5
_COUNTER = "num_batches_tracked"  # of batch norm: what torch before 0.4.1 did not write, and inference does not read


class Weights(dict[str, Tensor]):
    """A state dict, and lines about other weights that its file holds too."""

    notes: tuple[str, ...] = ()


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
            lines.append(f"weights of {path} are stored as {' and '.join(self.stored_as)} and were made float32")
        return tuple(lines)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: Path, prefix: str | None = None) -> Fitted:
    """Load the state dict of a file into a module.

    `prefix` is removed from the names, and names without it are left out; None: the only prefix that makes them fit.

    Raises:
        UserError: names that are missing or not expected, shapes that differ, or values that cannot be used, by name.
    """
    expected = {name: values for name, values in module.state_dict().items() if isinstance(values, Tensor)}
    if hollow := [name for name, values in expected.items() if values.is_meta]:
        raise UserError(f"parameter {hollow[0]!r} of {type(module).__name__} was made without values (a meta tensor)")
    found = _common_prefix(expected, state, path) if prefix is None else prefix
    own = _completed(expected, without_prefix(state, found, path))
    left_out = tuple(name for name in state if not name.startswith(found))
    if differences := _differences(expected, own):
        without = f" without the prefix {found!r}" if found else ""
        raise UserError(f"{path}{without} does not fit {type(module).__name__}: {'; '.join(differences)}")
    require_usable(own, path)
    _require_types(expected, own, path)
    _require_ties(expected, own, path)
    module.load_state_dict(dict(own), strict=False)  # the names were compared
    types = {_type(values) for values in own.values() if values.is_floating_point() and values.dtype != torch.float32}
    return Fitted(found, left_out, tuple(sorted(types)), state.notes if isinstance(state, Weights) else ())


def without_prefix(state: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    """The entries whose names begin with the prefix, without it. Raises UserError where there are none."""
    if not (own := _under(state, prefix)):
        raise UserError(
            f"model.prefix={prefix}: no name in {path} begins so; there are {some(list(state), NAMES_SHOWN)}"
        )
    return own


def find_prefix(state: Mapping[str, Any], name: str) -> list[str]:
    """The prefixes, each empty or with a dot at its end, under which a state dict has this name."""
    found = [known.removesuffix(name) for known in state if known.endswith(name)]
    return [prefix for prefix in found if prefix == "" or prefix.endswith(".")]


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


def _common_prefix(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> str:
    """The only prefix that makes all names and shapes fit; else one that all names share and that some fit under."""
    if not expected or not _misfits(expected, state):
        return ""
    first = next(iter(expected))
    candidates = find_prefix(state, first)
    fitting = [prefix for prefix in candidates if prefix and not _misfits(expected, _under(state, prefix))]
    if len(fitting) > 1:
        raise UserError(f"{path} fits under several prefixes, {', '.join(fitting)}; choose one with model.prefix=...")
    if fitting:
        return fitting[0]
    return candidates[0] if len(candidates) == 1 and all(name.startswith(candidates[0]) for name in state) else ""


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


def _misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    own = _completed(expected, state)
    return any(name not in own or own[name].shape != values.shape for name, values in expected.items())


def _completed(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With what a file may leave out: all but one name of tied weights, and the counters of batch norm."""
    completed = dict(state)
    by_place = {_place(expected[name]): values for name, values in state.items() if name in expected}
    for name, values in expected.items():
        if name in state:
            continue
        if values.numel() and _place(values) in by_place:
            completed[name] = by_place[_place(values)]
        elif name.rpartition(".")[2] == _COUNTER:
            completed[name] = values
    return completed


def _place(values: Tensor) -> tuple[object, ...]:
    return (values.data_ptr(), values.shape, values.stride(), values.dtype) if not values.is_meta else (id(values),)


def _require_ties(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    first: dict[tuple[object, ...], str] = {}
    for name, values in expected.items():
        if not values.numel():
            continue
        other = first.setdefault(_place(values), name)
        if not torch.equal(state[other], state[name]):
            raise UserError(
                f"{path}: {other!r} and {name!r} are one parameter in the model, and differ in the file; "
                f"is it of another architecture?"
            )


def _require_types(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    for name, values in expected.items():
        kinds = [(one.is_floating_point(), one.is_complex()) for one in (values, state[name])]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"{path}: {name!r} is of type {_type(state[name])}, which the model has as {_type(values)}; "
                f"give the weights of before quantisation"
            )


def _type(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} (model: {tuple(values.shape)})"
        for name, values in expected.items()
        if name in state and state[name].shape != values.shape
    ]
    labelled = [("missing", missing), ("not expected", unexpected), ("of another shape", shapes)]
    return [f"{label}: {some(names, NAMES_SHOWN)}" for label, names in labelled if names]
