"""Extra inputs that a model takes beside the sequence (`dataset.args`)."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.messages.words import counted

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def wrong_number(module: nn.Module, names: list[str]) -> str | None:
    """What is wrong where a bare model takes fewer extra inputs than `dataset.args` names, or needs more; None where
    they fit."""
    try:
        signature = inspect.signature(module.forward)
    except (ValueError, TypeError):  # not written in Python
        return None
    parameters = list(signature.parameters.values())
    positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL][1:]  # behind the sequence
    needed = [parameter.name for parameter in positional if parameter.default is inspect.Parameter.empty]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    forward = f"{type(module).__name__}.forward{_shown(parameters)}"
    given = f"dataset.args gives {len(names)} ({', '.join(names)})" if names else "dataset.args gives none"
    if len(names) < len(needed):
        return (
            f"{forward} needs {counted(len(needed), 'extra input')} and {given}; say where the values of "
            f"{', '.join(needed[len(names) :])} are: dataset.args=[{','.join([*names, '...'])}]"
        )
    if len(names) > len(positional) and not takes_any:
        most = counted(len(positional), "extra input") if positional else "no extra input"
        return f"{forward} takes {most} and {given}; leave out what is too much"
    return None


class Filled(nn.Module):
    """A model of the sequence alone, of any length, with the extra inputs (1, ...) of one row; tracks are zero.

    `length`: of that row's sequence; an input with this last axis is a track.
    """

    def __init__(self, model: nn.Module, args: Sequence[Tensor], length: int) -> None:
        super().__init__()
        self.model, self._args, self._length = model, args, length

    def forward(self, x: Tensor) -> Any:
        """What the model returns for one sequence (1, 4, L)."""
        return self.model(x, *(self._fitting(arg, x) for arg in self._args))

    def _fitting(self, arg: Tensor, x: Tensor) -> Tensor:
        arg = arg.to(x) if arg.is_floating_point() else arg.to(x.device)
        is_track = arg.ndim > 1 and arg.shape[-1] == self._length
        return arg.new_zeros(*arg.shape[:-1], x.shape[-1]) if is_track else arg


def _shown(parameters: list[inspect.Parameter]) -> str:
    """The parameters without their types."""
    return str(inspect.Signature([parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]))
