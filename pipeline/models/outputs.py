"""One output of a model that returns several: by index of a tuple or list, by key of a mapping, by field name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.errors import UserError


class SelectedOutput(nn.Module):
    """A model whose output is narrowed to one entry."""

    def __init__(self, model: nn.Module, output: int | str) -> None:
        """Args:
        model: any module.
        output: an index, or a key; text that is a whole number is an index where the output is a tuple or list.
        """
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, *args: Tensor) -> Any:
        """The selected entry. Raises UserError that lists what there is when the entry is not there."""
        return select(self.model(*args), self.output)


class SingleOutput(nn.Module):
    """A model that must return one tensor, because no head and no selection stand between it and the attribution."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor) -> Tensor:
        """The model's tensor. Raises UserError when the model returns anything else."""
        found = self.model(*args)
        if not isinstance(found, Tensor):
            raise UserError(f"the model returns {listing(found)}; choose one with model.output, or set model.head")
        return found


def select(outputs: Any, wanted: int | str) -> Any:
    """One entry of a model's outputs. Raises UserError that lists what there is."""
    if isinstance(outputs, Mapping):
        if wanted in outputs:
            return outputs[wanted]
    elif isinstance(outputs, tuple | list):
        if str(wanted).lstrip("-").isdigit() and -len(outputs) <= int(wanted) < len(outputs):
            return outputs[int(wanted)]
        if wanted in getattr(outputs, "_fields", ()):  # a named tuple
            return getattr(outputs, str(wanted))
    elif not isinstance(outputs, Tensor) and isinstance(wanted, str) and hasattr(outputs, wanted):
        return getattr(outputs, wanted)
    raise UserError(f"model.output={wanted}: no such output; the model returns {listing(outputs)}")


def listing(outputs: Any) -> str:
    """A model's outputs in words: keys or indices with shapes."""
    if isinstance(outputs, Tensor):
        return f"a single tensor of shape {tuple(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return "a mapping with " + ", ".join(f"{key}: {_shape(value)}" for key, value in outputs.items())
    if isinstance(outputs, tuple | list):
        labels = getattr(outputs, "_fields", range(len(outputs)))
        entries = ", ".join(f"{label}: {_shape(value)}" for label, value in zip(labels, outputs, strict=True))
        return f"a {type(outputs).__name__} with {entries}"
    return f"an object of type {type(outputs).__name__}"


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
