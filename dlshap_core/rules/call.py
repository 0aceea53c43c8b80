"""One call of a torch function, and which of its arguments depend on the sequence."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlshap_core.rules.gradients import replace

_TORCH_NAMES = {"axis": "dim", "keepdims": "keepdim"}


@dataclass
class Call:
    """One call of a torch function on tensors that vary with the sequence."""

    function: Callable[..., Any]
    name: str
    in_place: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Tensor]

    def plain(self) -> Any:
        """The call as the model made it."""
        return self.function(*self.args, **self.kwargs)

    def with_inputs(self, tensors: Iterable[Tensor]) -> Any:
        """The call out of place, with other tensors where the varying ones are, in their order."""
        replacements = iter(tensors)
        args, kwargs = replace_tensors((self.args, self.kwargs), lambda _: next(replacements), is_varying)
        if self.in_place and args:
            args = (args[0].clone(), *args[1:])
        elif self.in_place:
            kwargs["input"] = kwargs["input"].clone()
        return self.function(*args, **kwargs)

    def overwrite(self, target: Tensor) -> None:
        """The call in place, on another tensor than the one input that varies."""
        args, kwargs = replace_tensors((self.args, self.kwargs), lambda _: target, is_varying)
        self.function(*args, **kwargs)

    def first_input_only(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The other arguments, if the one varying tensor is the first argument; else None."""
        rest = {name: value for name, value in self.torch_names().items() if name not in ("input", "self", "x")}
        first = self.args[0] if self.args else next(v for k, v in self.kwargs.items() if k not in rest)
        if len(self.inputs) != 1 or first is not self.inputs[0]:
            return None
        return self.args[1:], rest

    def named(self, *names: str) -> tuple[Any, ...]:
        """Arguments of a call that takes exactly these, by position or by name."""
        return (*self.args, *(self.kwargs[name] for name in names[len(self.args) :]))

    def torch_names(self) -> dict[str, Any]:
        """The keyword arguments under torch's own names, where numpy's were used."""
        return {_TORCH_NAMES.get(name, name): value for name, value in self.kwargs.items()}

    def finish(self, output: Any) -> Any:
        """The output, written back where the model asked for an in-place operation."""
        if not self.in_place:
            return output
        target = self.args[0] if self.args else self.kwargs["input"]
        is_like = isinstance(output, Tensor) and output.shape == target.shape
        if is_like and output.is_floating_point() and target.is_floating_point():
            return replace(target, output)
        return target.copy_(output)


def is_varying(x: Any) -> bool:
    """Whether a value depends on the sequence: parameters are frozen during a pass, so requires_grad tells."""
    return isinstance(x, Tensor) and x.requires_grad


def as_operand(x: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor, or a number as one; that is made on the device, as a copy from the host would be waited for."""
    if isinstance(x, Tensor):
        return torch.as_tensor(x, dtype=dtype, device=device)
    return torch.full((), x, dtype=dtype, device=device)


def tensors_among(values: Any, wanted: Callable[[Any], bool]) -> list[Tensor]:
    """The wanted tensors in nested arguments, in order."""
    found: list[Tensor] = []
    replace_tensors(values, found.append, wanted)
    return found


def varying_tensors(values: Any) -> list[Tensor]:
    """Tensors that depend on the sequence in nested arguments, in order: what `tensors_among` gives, at less cost, as
    every operation is asked."""
    found: list[Tensor] = []
    _add_varying(values, found)
    return found


def _add_varying(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        if value.requires_grad:
            found.append(value)
    elif isinstance(value, dict):
        for item in value.values():
            _add_varying(item, found)
    elif isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        for item in value:
            _add_varying(item, found)


def replace_tensors(value: Any, replace: Callable[[Tensor], Any], wanted: Callable[[Any], bool]) -> Any:
    """Nested arguments with the wanted tensors replaced, in the order of `varying_tensors`."""
    if isinstance(value, Tensor):
        return replace(value) if wanted(value) else value
    if isinstance(value, dict):
        return {key: replace_tensors(item, replace, wanted) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        replaced = [replace_tensors(item, replace, wanted) for item in value]
        # Of named tuples, as PackedSequence, too.
        return replaced if isinstance(value, list) else getattr(type(value), "_make", tuple)(replaced)
    return value
