"""What a model's `forward` takes beside the sequence: extra inputs (`dataset.args`), and arguments that are the same
for all sequences (`model.forward`)."""

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlshap_core.one_hot import one_hot
from dlshap_core.sequences import UNKNOWN, encode
from pipeline.config.model_input import PADS
from pipeline.messages.errors import UserError
from pipeline.messages.words import counted, did_you_mean
from pipeline.models.keras_files.model import KerasModel
from pipeline.models.layouts import InputLayout

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)


class Forward:
    """The arguments of a bare model's `forward`, and which of them is the sequence.

    Args:
        sequence: the name of that argument; None: the first.

    Raises:
        UserError: there is no such argument.
    """

    def __init__(self, module: nn.Module, sequence: str | None = None) -> None:
        self.parameters = _parameters(module)
        self._owner = type(module).__name__
        self.names = [parameter.name for parameter in self.parameters if parameter.kind in _NAMED]
        if sequence is not None:
            self.require(sequence, f"model.input={sequence}")
        self.sequence = sequence or next(iter(self.names), None)

    def __str__(self) -> str:
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in self.parameters]
        return f"{self._owner}.forward{inspect.Signature(bare)}"

    def has(self, *kinds: inspect._ParameterKind) -> bool:
        """Whether an argument is of one of these kinds."""
        return any(parameter.kind in kinds for parameter in self.parameters)

    def require(self, name: str, setting: str) -> None:
        """Raises UserError where no argument is called so."""
        if name not in self.names and not self.has(inspect.Parameter.VAR_KEYWORD):
            known = did_you_mean(name, self.names)
            raise UserError(f"{setting}: {self} has no argument {name!r}{known}")

    def left(self, constants: Collection[str]) -> list[inspect.Parameter]:
        """The arguments beside the sequence and the constants, in order: those of the extra inputs."""
        taken = {self.sequence, *constants}
        return [parameter for parameter in self.parameters if parameter.kind in _NAMED and parameter.name not in taken]

    @property
    def needs_names(self) -> bool:
        """Whether one must be given by its name."""
        kind = inspect.Parameter.KEYWORD_ONLY
        return any(one.kind is kind and one.default is inspect.Parameter.empty for one in self.parameters)


def wrong_number(
    module: nn.Module, names: list[str], sequence: str | None = None, constants: Collection[str] = ()
) -> str | None:
    """What is wrong where a bare model takes fewer extra inputs than `names` of `dataset.args`, or needs more; None
    where they fit."""
    try:
        forward = Forward(module, sequence)
    except (ValueError, TypeError) as error:  # not written in Python
        return str(error) if isinstance(error, UserError) else None
    left = forward.left(constants)
    needed = [parameter.name for parameter in left if parameter.default is inspect.Parameter.empty]
    given = f"dataset.args gives {len(names)} ({', '.join(names)})" if names else "dataset.args gives none"
    if len(names) < len(needed):
        missing = needed[len(names) :]
        return (
            f"{forward} needs {counted(len(needed), 'extra input')} and {given}; say where the values of "
            f"{', '.join(missing)} are: dataset.args=[{','.join([*names, '...'])}], or what is the same for all "
            f"sequences: model.forward.{missing[0]}=..."
        )
    if len(names) > len(left) and not forward.has(inspect.Parameter.VAR_POSITIONAL):
        most = counted(len(left), "extra input") if left else "no extra input"
        return f"{forward} takes {most} and {given}; leave out what is too much"
    return None


class Called(nn.Module):
    """A model whose `forward` is called by the names of its arguments: the sequence, what is the same for all
    sequences, and the extra inputs in the order of what is left.

    Args:
        sequence: the argument that the sequence is; None: the first.
        constants: `model.forward`.
        form: that sequences have in this model, without further channels.
        tokens: that the model takes instead, of A, C, G, T and perhaps N.

    Raises:
        UserError: there is no argument of such a name.
    """

    def __init__(
        self,
        model: nn.Module,
        sequence: str | None,
        constants: Mapping[str, Any],
        form: InputLayout,
        tokens: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        forward = Forward(model, sequence)
        for name in constants:
            forward.require(name, f"model.forward.{name}")
            if name == forward.sequence:
                raise UserError(
                    f"model.forward.{name}: {name} is the sequence itself; if another argument of {forward} is, add "
                    f"model.input=..."
                )
        self.model, self.sequence = model, forward.sequence
        self.extra = [parameter.name for parameter in forward.left(constants)]
        self.order = [one.name for one in forward.parameters if one.kind in _POSITIONAL]
        self.n_unnamed = sum(one.kind is inspect.Parameter.POSITIONAL_ONLY for one in forward.parameters)
        self.plain = {name: value for name, value in constants.items() if not isinstance(value, dict)}
        self.tensors = nn.ModuleDict(
            {name: _Constant(value, form, tokens) for name, value in constants.items() if isinstance(value, dict)}
        )

    def forward(self, x: Tensor, *args: Tensor) -> Any:
        """What the model returns."""
        values = dict(self.plain)
        values |= {name: constant(x) for name, constant in self.tensors.items()}
        values |= dict(zip(self.extra, args, strict=False))
        if self.sequence is None:
            return self.model(x, *args, **values)
        values[self.sequence] = x
        more = args[len(self.extra) :]
        n_by_place = len(self.order) if more else self.n_unnamed
        by_place = [values.pop(name) for name in self.order[:n_by_place] if name in values]
        return self.model(*by_place, *more, **values)


class _Constant(nn.Module):
    """A tensor that is the same for all sequences, with a row for each but for `tensor`; see config/model_input.py."""

    value: Tensor | None

    def __init__(self, given: Mapping[str, Any], form: InputLayout, tokens: Sequence[int] | None) -> None:
        super().__init__()
        ((self.kind, what),) = given.items()
        self.form, self.tokens, self.what = form, tokens, what
        value = None
        if self.kind != "sequence":
            value = torch.tensor([what] if self.kind == "rows" else what)
        elif what not in PADS:
            value = self._of_codes(torch.from_numpy(encode(what))[None])
        self.register_buffer("value", value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """For the sequences of the model's input."""
        value = self._as_long_as(x) if self.value is None else self.value
        value = value.to(x.device, x.dtype if value.is_floating_point() and self.tokens is None else value.dtype)
        return value if self.kind == "tensor" else value.repeat(len(x), *[1] * (value.ndim - 1))

    def _of_codes(self, codes: Tensor) -> Tensor:
        if self.tokens is None:
            return self.form.placed(one_hot(codes, torch.float32))
        return torch.tensor([token_of(int(code), self.tokens) for code in codes[0]])[None]

    def _as_long_as(self, x: Tensor) -> Tensor:
        if self.tokens is not None:
            return torch.full((1, x.shape[1]), token_of(UNKNOWN, self.tokens))
        fill = PADS[self.what]
        return self.form.placed(torch.full((1, 4, x.shape[self.form.position_axis]), fill))


def token_of(code: int, tokens: Sequence[int]) -> int:
    """Of a base, or of N. Raises UserError where there is none."""
    if code < len(tokens):
        return tokens[code]
    raise UserError(
        f"model.tokens=[{','.join(map(str, tokens))}] has no token for N; add it as the fifth, such as "
        f"model.tokens=[{','.join(map(str, (*tokens, 0)))}]"
    )


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


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Raises ValueError or TypeError where `forward` is not written in Python."""
    if isinstance(module, KerasModel):
        others = [name for index, name in enumerate(module.names) if index != module.sequence]
        kind = inspect.Parameter.POSITIONAL_ONLY
        return [inspect.Parameter(re.sub(r"\W", "_", name), kind) for name in (module.names[module.sequence], *others)]
    return list(inspect.signature(module.forward).parameters.values())
