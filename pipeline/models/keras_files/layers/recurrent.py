"""Recurrent layers: torch's own where it computes the same, else the steps one by one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.keras_files.layer import Layer, Variable, own
from pipeline.models.keras_files.layers.activations import Weights, activation
from pipeline.models.keras_files.layers.composed import parameters, require_shape

_GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}
_CUDNN = "CuDNN"  # how layers of Keras 1 and 2 begin whose weights lie as cuDNN has them
KINDS = (*_GATES, f"{_CUDNN}LSTM", f"{_CUDNN}GRU")
_MERGES: dict[str | None, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda a, b: torch.cat([a, b], 1),
    "sum": torch.add,
    "mul": torch.mul,
    "ave": lambda a, b: (a + b) / 2,
}


class Steps(nn.Module):
    """A recurrent layer step by step: (N, L, C) -> outputs (N, L, units), and the states (N, units) after the last.

    Weights are as Keras has them, transposed; `bias` is (rows, gates * units): where there are two rows, the second
    is added to the recurrent part.
    """

    def __init__(self, weights: Weights, inner: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.inner, self.gate = inner, gate
        self.weight = nn.Parameter(weights["kernel"].T.contiguous())
        self.recurrent = nn.Parameter(weights["recurrent_kernel"].T.contiguous())
        bias = weights.get("bias", weights["kernel"].new_zeros(self.weight.shape[0]))
        self.bias = nn.Parameter(bias.reshape(-1, bias.shape[-1]).contiguous())

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        state = self.start(x.new_zeros(x.shape[0], self.recurrent.shape[1]))
        outputs = []
        for step in nn.functional.linear(x, self.weight, self.bias[0]).unbind(1):
            state = self.step(step, state)
            outputs.append(state[0])
        return torch.stack(outputs, 1), state

    def start(self, zeros: Tensor) -> tuple[Tensor, ...]:
        return (zeros,)

    def step(self, given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next state, from the input's share of all gates."""
        return (self.inner(given + nn.functional.linear(state[0], self.recurrent)),)


class LSTMSteps(Steps):
    def start(self, zeros: Tensor) -> tuple[Tensor, ...]:
        return zeros, zeros

    def step(self, given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, cell = state
        take, forget, candidate, put = (given + nn.functional.linear(hidden, self.recurrent)).chunk(4, 1)
        cell = self.gate(forget) * cell + self.gate(take) * self.inner(candidate)
        return self.gate(put) * self.inner(cell), cell


class GRUSteps(Steps):
    """`resets_after`: whether the reset gate multiplies the recurrent part behind its weights."""

    def __init__(self, weights: Weights, inner: nn.Module, gate: nn.Module, resets_after: bool) -> None:
        super().__init__(weights, inner, gate)
        self.resets_after = resets_after

    def step(self, given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,), n_units = state, self.recurrent.shape[1]
        bias = self.bias[1] if len(self.bias) > 1 else None
        if self.resets_after:
            update, reset, candidate = nn.functional.linear(hidden, self.recurrent, bias).chunk(3, 1)
            update, reset = self._gates(given, torch.cat([update, reset], 1))
            new = self.inner(given[:, 2 * n_units :] + reset * candidate)
        else:
            gates, last = self.recurrent.split([2 * n_units, n_units])
            update, reset = self._gates(given, nn.functional.linear(hidden, gates))
            new = self.inner(given[:, 2 * n_units :] + nn.functional.linear(reset * hidden, last))
        return (update * hidden + (1 - update) * new,)

    def _gates(self, given: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor]:
        update, reset = self.gate(given[:, : recurrent.shape[1]] + recurrent).chunk(2, 1)
        return update, reset


class Torch(nn.Module):
    """torch's own recurrent layer, with what `Steps` returns."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs, states = self.rnn(x)
        return outputs, tuple(state[0] for state in (states if isinstance(states, tuple) else (states,)))


class Recurrent(nn.Module):
    """(N, C, L) -> (N, units, L), or (N, units) at the last step; then the states, where they are returned."""

    def __init__(self, rnn: nn.Module, backwards: bool, sequences: bool, states: bool) -> None:
        super().__init__()
        self.rnn, self.backwards, self.sequences, self.states = rnn, backwards, sequences, states

    def forward(self, x: Tensor) -> Any:
        steps = x.transpose(1, 2)
        outputs, states = self.rnn(steps.flip(1) if self.backwards else steps)
        found = outputs.transpose(1, 2) if self.sequences else outputs[:, -1]
        return (found, *states) if self.states else found


class Bidirectional(nn.Module):
    """Two layers, one of which reads backwards, and what joins them."""

    def __init__(self, forth: Recurrent, back: Recurrent, merge: str | None) -> None:
        super().__init__()
        self.forth, self.back, self.merge = forth, back, merge

    def forward(self, x: Tensor) -> Any:
        (a, *a_states), (b, *b_states) = (_tuple(layer(x)) for layer in (self.forth, self.back))
        if self.back.sequences:
            b = b.flip(2)
        if self.merge is None:
            return (a, b, *a_states, *b_states)
        merged = _MERGES[self.merge](a, b)
        return (merged, *a_states, *b_states) if a_states else merged


def recurrent_variables(layer: Layer) -> Iterator[Variable]:
    names = ["kernel", "recurrent_kernel", *(["bias"] if layer.flag("use_bias", True) else [])]
    for variable in own(*names):
        yield Variable(variable.name, f"cell/{variable.place}")


def _plain(layer: Layer, weights: Weights) -> tuple[Layer, Weights]:
    """Of weights that lie as cuDNN has them, which their biases tell, those of the plain layer: the kernel of each gate
    is transposed, and the biases of the input lie before the recurrent ones."""
    kind = layer.kind.removeprefix(_CUDNN)
    if kind != layer.kind:
        config = {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True, **layer.config}
        layer = replace(layer, kind=kind, config=config)
    n_gates, n_units = _GATES[kind], layer.size("units")
    if kind == "SimpleRNN" or "bias" not in weights or weights["bias"].shape != (2 * n_gates * n_units,):
        return layer, weights
    gates = {name: weights[name].chunk(n_gates, -1) for name in _KERNELS}
    kernel = torch.cat([gate.reshape(n_units, -1).T for gate in gates["kernel"]], 1)
    recurrent_kernel = torch.cat([gate.T for gate in gates["recurrent_kernel"]], 1)
    rows = weights["bias"].reshape(2, -1)
    bias = rows if kind == "GRU" else rows.sum(0)
    return layer, {"kernel": kernel, "recurrent_kernel": recurrent_kernel, "bias": bias}


def recurrent(layer: Layer, weights: Weights) -> Recurrent:
    layer.refuse(time_major=False)
    if layer.flag("stateful"):
        raise layer.error(
            "stateful=True goes on from the batch before, so that a prediction depends on it; save the model with "
            "stateful=False"
        )
    n_units, n_gates = layer.size("units"), _GATES[layer.kind.removeprefix(_CUDNN)]
    require_shape(layer, "kernel", weights["kernel"], (None, n_gates * n_units))
    require_shape(layer, "recurrent_kernel", weights["recurrent_kernel"], (n_units, n_gates * n_units))
    layer, weights = _plain(layer, weights)
    rnn = _torch(layer, weights) or _steps(layer, weights)
    return Recurrent(rnn, layer.flag("go_backwards"), layer.flag("return_sequences"), layer.flag("return_state"))


def _names(layer: Layer) -> tuple[Any, Any]:
    gate = "hard_sigmoid" if layer.major < 3 and "recurrent_activation" not in layer.config else "sigmoid"
    return layer.config.get("activation") or "linear", layer.config.get("recurrent_activation", gate)


def _resets_after(layer: Layer) -> bool:
    return layer.flag("reset_after", layer.major > 2)


def _torch(layer: Layer, weights: Weights) -> nn.Module | None:
    """torch's own layer, where it computes the same."""
    inner, gate = _names(layer)
    shape = {"input_size": len(weights["kernel"]), "hidden_size": layer.size("units"), "batch_first": True}
    bias = weights.get("bias")
    rnn: nn.RNNBase
    if layer.kind == "SimpleRNN" and inner in ("tanh", "relu"):
        rnn = nn.RNN(nonlinearity=inner, bias=bias is not None, **shape)
        return _filled(layer, rnn, weights, bias, None)
    if (inner, gate) != ("tanh", "sigmoid"):
        return None
    if layer.kind == "LSTM":
        return _filled(layer, nn.LSTM(bias=bias is not None, **shape), weights, bias, None)
    if layer.kind == "GRU" and _resets_after(layer):
        given, recurrent = (None, None) if bias is None else _rows(layer, bias)
        rnn = nn.GRU(bias=bias is not None, **shape)
        return _filled(layer, rnn, {name: _swapped(weights[name]) for name in _KERNELS}, given, recurrent)
    return None


_KERNELS = ("kernel", "recurrent_kernel")


def _rows(layer: Layer, bias: Tensor) -> tuple[Tensor, Tensor]:
    require_shape(layer, "bias", bias, (2, 3 * layer.size("units")))
    return _swapped(bias[0]), _swapped(bias[1])


def _swapped(values: Tensor) -> Tensor:
    """The gates of a GRU in torch's order: reset before update."""
    update, reset, new = values.chunk(3, -1)
    return torch.cat([reset, update, new], -1)


def _filled(
    layer: Layer, rnn: nn.RNNBase, weights: Mapping[str, Tensor], bias: Tensor | None, recurrent: Tensor | None
) -> nn.Module:
    if bias is not None and recurrent is None:
        recurrent = torch.zeros_like(bias)
    values = {"weight_ih_l0": weights["kernel"].T, "weight_hh_l0": weights["recurrent_kernel"].T}
    parameters(layer, rnn, **values, bias_ih_l0=bias, bias_hh_l0=recurrent)
    rnn.flatten_parameters()
    return Torch(rnn)


def _steps(layer: Layer, weights: Weights) -> nn.Module:
    inner = activation(layer)
    if layer.kind == "SimpleRNN":
        return Steps(weights, inner, nn.Identity())
    _, name = _names(layer)
    gate = activation(
        Layer(layer.name, layer.kind, {"recurrent_activation": name}, layer.major), "recurrent_activation"
    )
    if layer.kind == "LSTM":
        return LSTMSteps(weights, inner, gate)
    after = _resets_after(layer)
    if "bias" in weights:
        require_shape(layer, "bias", weights["bias"], (*[2] * after, 3 * layer.size("units")))
    return GRUSteps(weights, inner, gate, after)


def _both(layer: Layer) -> Iterator[tuple[str, Layer]]:
    """The two layers of a Bidirectional; the one that reads backwards may be described by the other."""
    forth = layer.inner("layer")
    if forth.kind.removeprefix(_CUDNN) not in _GATES:
        raise layer.error(f"a {forth.kind} within it is not supported")
    yield "forward_layer", forth
    if layer.config.get("backward_layer") is not None:
        yield "backward_layer", layer.inner("backward_layer")
    else:
        backwards = not forth.flag("go_backwards")
        yield "backward_layer", Layer(forth.name, forth.kind, {**forth.config, "go_backwards": backwards}, layer.major)


def bidirectional_variables(layer: Layer) -> Iterator[Variable]:
    for place, inner in _both(layer):
        yield from (variable.within(place, place) for variable in recurrent_variables(inner))


def bidirectional(layer: Layer, weights: Weights) -> nn.Module:
    merge = layer.config.get("merge_mode", "concat")
    if merge is not None and merge not in _MERGES:
        raise layer.wrong("merge_mode", "concat, sum, mul, ave or null")
    forth, back = (recurrent(inner, part(weights, place)) for place, inner in _both(layer))
    return Bidirectional(forth, back, merge)


def part(weights: Weights, name: str) -> dict[str, Tensor]:
    """The weights of a layer within a layer."""
    found = weights.items()
    return {key.removeprefix(f"{name}/"): values for key, values in found if key.startswith(f"{name}/")}


def _tuple(found: Any) -> Sequence[Tensor]:
    return found if isinstance(found, tuple) else (found,)
