"""A model of a file as a torch module: the layers, and the order in which tensors go through them."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from pipeline.models.keras_files import architecture
from pipeline.models.keras_files.architecture import Architecture, Node
from pipeline.models.keras_files.axes import to_keras, to_torch
from pipeline.models.keras_files.layer import Layer, LayerError
from pipeline.models.keras_files.layers import recurrent
from pipeline.models.keras_files.layers.recurrent import part
from pipeline.models.keras_files.layers.table import TABLE

Weights = Mapping[str, Tensor]
Makers = Mapping[str, Callable[[dict[str, Any], list[Tensor]], nn.Module]]
_READS_MASKS = (
    *recurrent.KINDS, "Bidirectional", "TimeDistributed", "GlobalAveragePooling1D", "MultiHeadAttention",
    "Attention", "AdditiveAttention",
)  # fmt: skip
_OF_SHAPES = (RuntimeError, ValueError, IndexError, TypeError)  # what layers raise that do not fit each other
_ENDS_MASKS = ("Conv", "Separable", "Depthwise", "Max", "Average", "Global", "Flatten", "Reshape", "Permute", "Crop")


class Step(NamedTuple):
    """One call of a layer: the places of tensors that it takes, or numbers (floats); where its outputs go; and which
    tensors are not needed behind it."""

    layer: str
    args: tuple[int | float, ...]
    named: tuple[tuple[str, int], ...]
    options: tuple[tuple[str, Any], ...]
    outputs: tuple[int, ...]
    done: tuple[int, ...]


class Network(nn.Module):
    """Tensors with the features at axis 1 -> one such tensor, or a tuple where there are several outputs."""

    def __init__(
        self, layers: Mapping[str, nn.Module], steps: Sequence[Step], inputs: Sequence[int], outputs: Sequence[int]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.steps, self.inputs, self.outputs = tuple(steps), tuple(inputs), tuple(outputs)

    def forward(self, *inputs: Tensor) -> Any:
        held = dict(zip(self.inputs, inputs, strict=True))
        for step in self.steps:
            named: dict[str, Any] = {name: held[place] for name, place in step.named}
            args = [arg if isinstance(arg, float) else held[arg] for arg in step.args]
            try:
                found = self.layers[step.layer](*args, **named, **dict(step.options))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if type(error) in _OF_SHAPES:
                    raise type(error)(f"layer {step.layer!r}: {error}") from error
                raise
            several = found if isinstance(found, tuple) else (found,)
            if len(several) < len(step.outputs):
                used = len(step.outputs) - 1
                raise ValueError(f"layer {step.layer!r} has {len(several)} outputs, and number {used} is used")
            held.update(zip(step.outputs, several, strict=False))  # outputs that nothing takes are left out
            for place in step.done:
                del held[place]
        found = tuple(held[place] for place in self.outputs)
        return found[0] if len(found) == 1 else found


class EachStep(nn.Module):
    """A layer applied to every position of Keras's (N, L, ...) by itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x = to_keras(x)
        rows = to_keras(self.inner(to_torch(x.flatten(0, 1))))
        return to_torch(rows.unflatten(0, x.shape[:2]))


def network(model: Architecture, weights: Sequence[Weights], own: Makers) -> Network:
    """The module of a model.

    Args:
        model: its layers.
        weights: of each, by `weights.variables`.
        own: what makes layers of the user's own of their settings and weights, by the layer's name or its class's.

    Raises:
        LayerError: a layer that is not known, or whose weights do not fit.
    """
    keys = _keys([node.layer.name for node in model.nodes])
    modules = {
        keys[index]: module_of(node, weights[index], own)
        for index, node in enumerate(model.nodes)
        if node.layer.kind != "InputLayer"
    }
    order = _order(model)
    _require_no_masks(model, order)
    places: dict[architecture.Tensor, int] = {}

    def place(tensor: architecture.Tensor) -> int:
        tensor = architecture.Tensor(tensor.layer, 0, 0) if tensor.layer in model.inputs else tensor
        return places.setdefault(tensor, len(places))

    inputs = [place(architecture.Tensor(index, 0, 0)) for index in model.inputs]
    outputs = [place(tensor) for tensor in model.outputs]
    used = {tensor for node in model.nodes for call in node.calls for tensor in architecture.tensors(call)}
    n_outputs = {(t.layer, t.call): 0 for t in [*used, *model.outputs]}
    for t in [*used, *model.outputs]:
        n_outputs[t.layer, t.call] = max(n_outputs[t.layer, t.call], t.output + 1)
    steps = []
    for layer, number in order:
        call = model.nodes[layer].calls[number]
        steps.append(
            Step(
                keys[layer],
                tuple(place(arg) if isinstance(arg, architecture.Tensor) else arg for arg in call.args),
                tuple((name, place(tensor)) for name, tensor in call.named),
                call.options,
                tuple(place(architecture.Tensor(layer, number, o)) for o in range(n_outputs.get((layer, number), 0))),
                (),
            )
        )
    return Network(modules, _forgetting(steps, {*outputs}), inputs, outputs)


def module_of(node: Node, weights: Weights, own: Makers) -> nn.Module:
    """The module of one layer."""
    layer = node.layer
    if node.inner is not None:
        inner = [part(weights, str(index)) for index in range(len(node.inner.nodes))]
        return network(node.inner, inner, own)
    made = own.get(layer.name, own.get(layer.stored_as))
    if made is not None:
        return made(dict(layer.config), list(weights.values()))
    if layer.kind == "TimeDistributed":
        inside = layer.inner("layer")
        if inside.kind in architecture.MODELS:
            raise layer.error(
                f"a model within it is not supported; write it as a torch module and give that: "
                f"model.layers.{layer.name}=package.Class, made with (config, weights) and called with (N, C, ...)"
            )
        module = module_of(Node(inside, ()), part(weights, "layer"), own)
        return module if inside.kind in _EACH_ANYWAY else EachStep(module)
    if layer.kind == "Masking":
        if layer.number("mask_value", 0.0) != 0:
            raise layer.error("a mask_value other than 0 is not supported")
        return nn.Identity()  # what it masks is zero before and behind it
    if layer.is_own and layer.kind in TABLE:
        return TABLE[layer.kind].make(layer, weights)
    raise unknown(layer)


_EACH_ANYWAY = ("Dense", "Activation", "Dropout", "ReLU", "LeakyReLU", "ELU")  # for which EachStep changes nothing


def unknown(layer: Layer) -> LayerError:
    """The error for a layer that is not Keras's own, with the way out."""
    name = layer.name if layer.kind == "Lambda" else layer.kind
    if layer.kind == "Lambda":
        what = "it is code of its own, which is not run"
        way = f"write it as a torch module and give that: model.layers.{name}=package.Class"
    else:
        what = "its class is not one of Keras's own that are known here"
        way = (
            f"give what it is: model.layers.{name}=Conv1D, say, where it is one of Keras's by another name, or a torch "
            f"module, model.layers.{name}=package.Class"
        )
    return layer.error(f"{what}; {way}, made with (config, weights) and called with (N, C, L)")


def _keys(names: Sequence[str]) -> list[str]:
    """Names of submodules: those of the layers, but for what torch does not allow."""
    taken: set[str] = set()
    keys = []
    for name in names:
        key = "".join(c if c.isalnum() or c in "_- " else "_" for c in name) or "layer"
        while key in taken or hasattr(nn.ModuleDict, key):
            key += "_"
        taken.add(key)
        keys.append(key)
    return keys


def _order(model: Architecture) -> list[tuple[int, int]]:
    """Every call (layer, number) after those whose outputs it takes, otherwise as in the file."""
    waits: dict[tuple[int, int], int] = {}
    behind: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, node in enumerate(model.nodes):
        for number, call in enumerate(node.calls):
            before = {(t.layer, t.call) for t in architecture.tensors(call) if t.layer not in model.inputs}
            waits[index, number] = len(before)
            for one in before:
                behind.setdefault(one, []).append((index, number))
    ready = [call for call, count in waits.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for one in behind.get(order[-1], []):
            waits[one] -= 1
            if waits[one] == 0:
                heapq.heappush(ready, one)
    if len(order) < len(waits):
        stuck = sorted({model.nodes[layer].layer.name for layer, number in waits.keys() - {*order}})
        raise LayerError(f"layers take each other's outputs in a circle: {', '.join(stuck[:5])}")
    return order


def _forgetting(steps: Sequence[Step], kept: set[int]) -> list[Step]:
    """With the tensors that each step is the last to take, so that they need no memory behind it."""
    last = {place: index for index, step in enumerate(steps) for place in _taken(step)}
    unused = {place: index for index, step in enumerate(steps) for place in step.outputs if place not in last}
    done: dict[int, list[int]] = {}
    for place, index in {**last, **unused}.items():
        if place not in kept:
            done.setdefault(index, []).append(place)
    return [step._replace(done=tuple(sorted(done.get(index, ())))) for index, step in enumerate(steps)]


def _taken(step: Step) -> list[int]:
    return [*(arg for arg in step.args if isinstance(arg, int)), *(place for _, place in step.named)]


def _require_no_masks(model: Architecture, order: Sequence[tuple[int, int]]) -> None:
    """Raises LayerError where positions that are masked would be left out by a layer."""
    masked: dict[tuple[int, int], str] = {}
    for index, number in order:
        layer = model.nodes[index].layer
        sources = [masked.get((t.layer, t.call)) for t in architecture.tensors(model.nodes[index].calls[number])]
        source = next(filter(None, sources), None)
        if layer.kind == "Masking" or (layer.kind == "Embedding" and layer.flag("mask_zero")):
            source = layer.name
        elif source and (layer.kind in _READS_MASKS or model.nodes[index].inner):
            raise layer.error(f"it leaves out positions that {source!r} masks, which is not supported")
        if source and not layer.kind.startswith(_ENDS_MASKS):
            masked[index, number] = source
