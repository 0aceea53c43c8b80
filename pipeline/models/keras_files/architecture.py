"""What a file says of a model: its layers, and which tensor goes into which, as Keras 2 and 3 write it in JSON.

Keras 2   "inbound_nodes": [[["conv1d", 0, 0, {}], ...], ...]         a list for each call of the layer
Keras 3   "inbound_nodes": [{"args": [...], "kwargs": {...}}, ...]    each tensor is an object
Sequential models have no such entry: each layer takes what the one before it gives.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.models.keras_files.layer import Layer, LayerError

MODELS = ("Functional", "Model", "Sequential")
_KNOWN = ("crested>AttentionPool1D", "crested>MultiheadAttention")  # layers of others that are read
_OWN = (
    "keras", "tf_keras", "tensorflow", "builtins", "basenji", "baskerville",
)  # packages whose layers are those of the table  # fmt: skip
_ALIAS = "stored_as"  # in a piece of a configuration: the class that the file says, where another is taken for it
_MOST_CALLS = 10_000  # of layers in one pass through a model
_DEEPEST = 50  # models within models

_TAKES_NUMBERS = ("Add", "Subtract", "Multiply", "Maximum", "Minimum", "TrueDivide", "Divide", "Power")  # as operations

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Tensor:
    """One output of one call of a layer."""

    layer: int
    call: int
    output: int


@dataclass(frozen=True)
class Call:
    """A layer used once: its tensors and numbers in order, tensors that are given by name, and what else is."""

    args: tuple[Tensor | float, ...]
    named: tuple[tuple[str, Tensor], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Node:
    """A layer of a model, and its calls; `inner` where it is a model itself."""

    layer: Layer
    calls: tuple[Call, ...]
    inner: "Architecture | None" = None


@dataclass(frozen=True)
class Architecture:
    """A model.

    Attributes:
        nodes: its layers, in the order of the file.
        inputs: which of them are inputs, in order.
        shapes: of the inputs, as Keras has them, without the batch; None where the file does not say.
        outputs: the tensors that the model returns, in order.
        names: of these: of the layers, or the keys of a dict.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    shapes: tuple[Shape | None, ...]
    outputs: tuple[Tensor, ...]
    names: tuple[str, ...] = field(default=())

    @property
    def n_calls(self) -> int:
        """Of layers, in one pass through the model and the models within it."""
        return sum(len(node.calls) * (node.inner.n_calls if node.inner else 1) for node in self.nodes)


def read_architecture(found: Any, major: int) -> Architecture:
    """The model in a configuration. Raises LayerError, which names the layer, where it is not one that can be read."""
    kind = found.get("class_name") if isinstance(found, Mapping) else None
    if kind is not None and not isinstance(kind, str):
        kind = type(kind).__name__  # it may be nested without end
    if kind not in MODELS or not isinstance(found.get("config"), Mapping | list):
        raise LayerError(
            f"the file describes a {kind!r}; expected a Sequential or Functional model, whose layers the file lists "
            f"(a subclassed model is code of its own: save it as a Functional one)"
        )
    architecture = _model(found, major, 0)
    if architecture.n_calls > _MOST_CALLS:
        raise LayerError(f"its layers are called {architecture.n_calls} times; expected at most {_MOST_CALLS}")
    return architecture


def renamed(found: Any, kinds: Mapping[str, str]) -> Any:
    """A configuration with layers and activations of other names read as those of Keras's that they are.

    `kinds`: names of layers, of their classes or of activations -> those of Keras's.
    """
    if isinstance(found, list):
        return [renamed(one, kinds) for one in found]
    if not isinstance(found, Mapping):
        return found
    new = {key: renamed(value, kinds) for key, value in found.items()}
    kind, config = new.get("class_name"), new.get("config")
    name = config.get("name") if isinstance(config, Mapping) else None
    for known in (name, kind):
        if isinstance(known, str) and known in kinds and isinstance(config, Mapping):
            own = {"module": None, "registered_name": None, _ALIAS: kind}
            if kinds[known].islower():  # an activation
                return {**new, **own, "class_name": "Activation", "config": {"name": name, "activation": kinds[known]}}
            return {**new, **own, "class_name": kinds[known]}
    for key in ("activation", "recurrent_activation"):
        value = new.get(key)
        value = value.get("config") if isinstance(value, Mapping) else value
        name = value.rpartition(">")[2] if isinstance(value, str) else ""  # behind the package that registered it
        if name in kinds:
            new[key] = kinds[name]
    return new


def named_like(model: Architecture, other: Architecture) -> Architecture:
    """The model with the names of another's layers, where the two have the same layers in the same order: Keras counts
    the layers of all models that a process makes."""
    pairs = list(zip(model.nodes, other.nodes, strict=False))
    if len(model.nodes) != len(other.nodes) or any(a.layer.kind != b.layer.kind for a, b in pairs):
        return model
    nodes = tuple(
        Node(
            replace(a.layer, name=b.layer.name),
            a.calls,
            named_like(a.inner, b.inner) if a.inner and b.inner else a.inner,
        )
        for a, b in pairs
    )
    return replace(model, nodes=nodes, names=other.names if len(other.names) == len(model.names) else model.names)


def _model(found: Mapping[str, Any], major: int, depth: int) -> Architecture:
    if depth > _DEEPEST:
        raise LayerError(f"models are nested more than {_DEEPEST} deep")
    config = found["config"]
    layers = config if isinstance(config, list) else config.get("layers")
    if not isinstance(layers, list) or not layers or not all(isinstance(one, Mapping) for one in layers):
        raise LayerError(f"the {found['class_name']} has no list of layers")
    if found["class_name"] == "Sequential":
        return _sequential(config, layers, major, depth)
    return _functional(config, layers, major, depth)


def _read(found: Mapping[str, Any], major: int, depth: int) -> tuple[Layer, Architecture | None]:
    kind, config = found.get("class_name"), found.get("config")
    if not isinstance(kind, str) or not isinstance(config, Mapping | list):
        raise LayerError(f"a layer has no class_name and config: {str(found)[:60]}")
    own = config if isinstance(config, Mapping) else {}
    name = found.get("name") or own.get("name") or kind.lower()
    alias, known = found.get(_ALIAS), found.get("registered_name") in _KNOWN
    if known:
        alias, kind = kind, str(found["registered_name"])
    layer = Layer(str(name), kind, own, major, known or _is_own(found), alias if isinstance(alias, str) else None)
    return layer, _model(found, major, depth + 1) if kind in MODELS else None


def _is_own(found: Mapping[str, Any]) -> bool:
    """Whether a class of this name is Keras's; older files do not say."""
    module, registered = found.get("module"), found.get("registered_name")
    if isinstance(registered, str) and ">" in registered:
        return False
    return not isinstance(module, str) or module.partition(".")[0] in _OWN


def _shape(config: Mapping[str, Any]) -> Shape | None:
    for key in ("batch_shape", "batch_input_shape"):
        shape = config.get(key)
        if isinstance(shape, list) and all(size is None or (type(size) is int and size > 0) for size in shape):
            return tuple(shape[1:])
    return None


def _sequential(config: Any, layers: list[Mapping[str, Any]], major: int, depth: int) -> Architecture:
    nodes = [Node(layer, (), inner) for layer, inner in (_read(one, major, depth) for one in layers)]
    shape = _shape(nodes[0].layer.config) or (nodes[0].inner.shapes[0] if nodes[0].inner else None)
    if shape is None and isinstance(config, Mapping):
        shape = _shape({"batch_shape": config.get("build_input_shape")})
    if nodes[0].layer.kind != "InputLayer":
        nodes.insert(0, Node(Layer("input", "InputLayer", {}, major), ()))
    chained = [replace(node, calls=(Call((Tensor(index - 1, 0, 0),)),)) for index, node in enumerate(nodes) if index]
    last = len(nodes) - 1
    return Architecture((nodes[0], *chained), (0,), (shape,), (Tensor(last, 0, 0),), (nodes[last].layer.name,))


def _functional(config: Mapping[str, Any], layers: list[Mapping[str, Any]], major: int, depth: int) -> Architecture:
    read = [_read(one, major, depth) for one in layers]
    places = {layer.name: index for index, (layer, _) in enumerate(read)}
    if len(places) < len(read):
        raise LayerError("two layers have the same name")
    calls = [_calls(one.get("inbound_nodes"), layer, places) for one, (layer, _) in zip(layers, read, strict=True)]
    inputs = [tensor.layer for _, tensor in _ends(config, "input_layers", places)]
    outputs = _ends(config, "output_layers", places)
    first = _first_calls([*(t for many in calls for call in many for t in tensors(call)), *(t for _, t in outputs)])

    def renumbered(tensor: Tensor) -> Tensor:
        return replace(tensor, call=tensor.call - first[tensor.layer])

    nodes = tuple(
        Node(layer, tuple(_mapped(call, renumbered) for call in own), inner)
        for (layer, inner), own in zip(read, calls, strict=True)
    )
    ends = [(name, renumbered(tensor)) for name, tensor in outputs]
    for tensor in [*(t for node in nodes for call in node.calls for t in tensors(call)), *(t for _, t in ends)]:
        if tensor.layer not in inputs and tensor.call >= len(nodes[tensor.layer].calls):
            raise nodes[tensor.layer].layer.error(f"its output number {tensor.call} is used; it is called less often")
    if other := [node.layer for i, node in enumerate(nodes) if node.layer.kind == "InputLayer" and i not in inputs]:
        raise other[0].error("it is not among the inputs of the model")
    return Architecture(
        nodes,
        tuple(inputs),
        tuple(_shape(nodes[index].layer.config) for index in inputs),
        tuple(tensor for _, tensor in ends),
        tuple(name for name, _ in ends),
    )


def _first_calls(used: Sequence[Tensor]) -> dict[int, int]:
    """The number of each layer's first call: Keras counts those of a model within a model from 1, at times."""
    first: dict[int, int] = {}
    for tensor in used:
        first[tensor.layer] = min(first.get(tensor.layer, tensor.call), tensor.call)
    return first


def tensors(call: Call) -> list[Tensor]:
    """All that a call takes."""
    return [*(arg for arg in call.args if isinstance(arg, Tensor)), *(tensor for _, tensor in call.named)]


def _mapped(call: Call, function: Any) -> Call:
    return replace(
        call,
        args=tuple(function(arg) if isinstance(arg, Tensor) else arg for arg in call.args),
        named=tuple((name, function(tensor)) for name, tensor in call.named),
    )


def _ends(config: Mapping[str, Any], key: str, places: Mapping[str, int]) -> list[tuple[str, Tensor]]:
    """The inputs or outputs of a model: names and tensors, from a list, one alone, or a dict."""
    found = config.get(key)
    if isinstance(found, Mapping):
        named = [(str(name), _tensor(one, places)) for name, one in found.items()]
    else:
        many = [found] if _is_tensor(found) else found
        many = many if isinstance(many, list) else []
        named = [(one[0] if _is_tensor(one) else "", _tensor(one, places)) for one in many]
    if not named:
        raise LayerError(f"the model has no {key}")
    return named


def _is_tensor(found: Any) -> bool:
    """Whether something is [layer, call, output], and perhaps what else the call is given."""
    return isinstance(found, list) and len(found) in (3, 4) and isinstance(found[0], str) and type(found[1]) is int


def _tensor(found: Any, places: Mapping[str, int]) -> Tensor:
    if isinstance(found, Mapping) and found.get("class_name") == "__keras_tensor__":
        config = found.get("config")
        found = config.get("keras_history") if isinstance(config, Mapping) else None
    if not _is_tensor(found) or type(found[2]) is not int or min(found[1:3]) < 0:
        raise LayerError(f"expected a tensor as [layer, call, output], found {str(found)[:60]}")
    if found[0] not in places:
        raise LayerError(f"layer {found[0]!r} is used, and not described")
    return Tensor(places[found[0]], found[1], found[2])


def _calls(found: Any, layer: Layer, places: Mapping[str, int]) -> list[Call]:
    if not isinstance(found, list):
        raise layer.error("its inbound_nodes are missing")
    calls = []
    for one in found:
        if isinstance(one, Mapping):
            args, kwargs = one.get("args", []), one.get("kwargs", {})
        else:  # a list of tensors, or one tensor
            args = one if isinstance(one, list) and not _is_tensor(one) else [one]
            last = [tensor[3] for tensor in args if _is_tensor(tensor) and len(tensor) == 4]
            kwargs = last[0] if last else {}
        if not isinstance(args, list) or not isinstance(kwargs, Mapping):
            raise layer.error(f"its inbound_nodes hold {str(one)[:60]}")
        calls.append(_call(args, kwargs, layer, places))
    return calls


def _call(args: list[Any], kwargs: Mapping[str, Any], layer: Layer, places: Mapping[str, int]) -> Call:
    named: list[tuple[str, Tensor]] = []
    options: list[tuple[str, Any]] = []
    for key, value in kwargs.items():
        if value is None or value is False or value == []:
            continue
        if key in ("use_causal_mask", "return_attention_scores") and value is True:
            options.append((key, True))
        elif _refers(value, places) and key in ("query", "value", "key"):
            named.append((key, _tensor(value, places)))
        else:
            raise layer.error(f"it is called with {key}={str(value)[:60]}, which is not supported")
    if layer.kind == "GetItem" and len(args) == 2:
        options.append(("key", _key(args.pop(), layer)))
    return Call(tuple(_flat(args, layer, places)), tuple(named), tuple(options))


def _key(found: Any, layer: Layer) -> tuple[Any, ...]:
    """What is taken along each axis: (start, stop, step), a position, None for a new axis, or `...`."""
    return tuple(_place(one, layer) for one in (found if isinstance(found, list) else [found]))


def _place(found: Any, layer: Layer) -> Any:
    kind, config = (found.get("class_name"), found.get("config")) if isinstance(found, Mapping) else (None, None)
    if kind == "__ellipsis__":
        return ...
    if kind == "__slice__" and isinstance(config, Mapping):
        ends = tuple(map(config.get, ("start", "stop", "step")))
        if all(end is None or type(end) is int for end in ends) and ends[2] != 0:
            return ends
    elif found is None or type(found) is int:
        return found
    raise layer.error(f"it takes {str(found)[:60]} of a tensor, which is not supported")


def _refers(value: Any, places: Mapping[str, int]) -> bool:
    if isinstance(value, Mapping):
        return value.get("class_name") == "__keras_tensor__"
    return _is_tensor(value) and value[0] in places


def _flat(args: list[Any], layer: Layer, places: Mapping[str, int]) -> Iterator[Tensor | float]:
    for arg in args:
        if _refers(arg, places) or _is_tensor(arg):
            yield _tensor(arg, places)
        elif isinstance(arg, list):
            yield from _flat(arg, layer, places)
        elif type(arg) in (int, float) and layer.kind in _TAKES_NUMBERS:
            yield float(arg)
        elif arg is not None and arg is not False:
            raise layer.error(f"it is called with {str(arg)[:60]}, which is not supported")
