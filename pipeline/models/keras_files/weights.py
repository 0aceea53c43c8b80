"""Which of a file's tensors is which weight of which layer.

Keras 1 and 2   a group for each layer of the model, with the names of its weights in order; those of a model within the
                model follow each other there, trained ones first
Keras 3         `layers/conv1d_1/vars/0`: a group for each layer, called by its class and counted, and numbered weights
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from pipeline.models.keras_files.architecture import Architecture, Node
from pipeline.models.keras_files.hdf5 import Hdf5
from pipeline.models.keras_files.layer import Layer, LayerError, Variable
from pipeline.models.keras_files.layers.table import TABLE

Weights = dict[str, Tensor]
Array = tuple[str, Any]  # the name of a weight in the file, and its dataset
_OF_2_13 = "_layer_checkpoint_dependencies"  # what Keras 2.13 calls `layers`
_BASES = (
    "kernel",
    "bias",
    "gamma",
    "beta",
    "moving_mean",
    "moving_variance",
    "recurrent_kernel",
    "embeddings",
    "alpha",
)


def variables(node: Node) -> list[Variable] | None:
    """The weights of a layer, and of a model those of its layers; None of a layer of the user's own."""
    if node.inner is not None:
        found: list[Variable] = []
        for index, (inner, place) in enumerate(zip(node.inner.nodes, _places(node.inner), strict=True)):
            own = variables(inner)
            if own is None:
                return None
            found += [variable.within(str(index), place) for variable in own]
        return found
    own = _of_layer(node.layer)
    if own is not None and node.layer.config.get("trainable") is False:
        return [Variable(variable.name, variable.place, False) for variable in own]
    return own


def _of_layer(layer: Layer) -> list[Variable] | None:
    if layer.kind == "TimeDistributed":
        inner = _of_layer(layer.inner("layer"))
        return None if inner is None else [variable.within("layer", "layer") for variable in inner]
    if layer.kind in ("InputLayer", "Masking"):
        return []
    return list(TABLE[layer.kind].variables(layer)) if layer.kind in TABLE and layer.is_own else None


def _places(architecture: Architecture) -> Iterator[str]:
    """Where Keras 3 keeps each layer: by its class, counted."""
    counts: Counter[str] = Counter()
    for node in architecture.nodes:
        name = _snake(node.layer.stored_as)
        yield f"layers/{name}_{counts[name]}" if counts[name] else f"layers/{name}"
        counts[name] += 1


def _snake(name: str) -> str:
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def read_weights(file: Hdf5, architecture: Architecture) -> list[Weights]:
    """The weights of each layer of a model, by the names of `variables`; those of a layer of the user's own by number.

    Raises:
        LayerError, UserError: a weight that is missing or of a kind that is not known.
    """
    legacy = file.find(file.root, "model_weights")
    if legacy is None and {"layer_names", "layer_names0"} & {*file.root.attrs}:
        legacy = file.root
    if legacy is not None:
        return _legacy(file, legacy, architecture)
    return [_numbered(file, node, place) for node, place in zip(architecture.nodes, _places(architecture), strict=True)]


def _numbered(file: Hdf5, node: Node, place: str) -> Weights:
    found = variables(node)
    if found is None and node.inner is None:
        group = _find(file, f"{place}/vars")
        names = [] if group is None else sorted(group, key=lambda name: (len(name), name))
        return {name: file.tensor(file.find(group, name), f"{node.layer.shown}, {name}") for name in names}
    if found is None:
        assert node.inner is not None
        inner = [
            _numbered(file, each, f"{place}/{below}")
            for each, below in zip(node.inner.nodes, _places(node.inner), strict=True)
        ]
        return _joined(inner)
    return {
        variable.name: file.tensor(_find(file, f"{place}/{variable.place}"), f"{variable.name} of {node.layer.shown}")
        for variable in found
    }


def _joined(parts: Sequence[Weights]) -> Weights:
    return {f"{index}/{name}": values for index, part in enumerate(parts) for name, values in part.items()}


def _find(file: Hdf5, path: str) -> Any:
    """A place in Keras 3's order, under any of the names that its versions gave it."""
    private = re.sub(r"(query|key|value|output)_dense", r"_\1_dense", path)
    tried = (path, private, path.replace("layers/", f"{_OF_2_13}/"), private.replace("layers/", f"{_OF_2_13}/"))
    return next((found for one in tried if (found := file.find(file.root, one)) is not None), None)


def _legacy(file: Hdf5, group: Any, architecture: Architecture) -> list[Weights]:
    """By the layers' names; where these differ, as between a JSON file and its weights, by the order of those with
    weights."""
    saved = {name: list(_arrays(file, file.group(group, name))) for name in file.names(group, "layer_names")}
    saved = {name: arrays for name, arrays in saved.items() if arrays}
    wanted = [node for node in architecture.nodes if variables(node) != []]
    if {node.layer.name for node in wanted if variables(node)} <= {*saved} <= {node.layer.name for node in wanted}:
        chosen = {node.layer.name: saved.get(node.layer.name, []) for node in wanted}
    elif len(saved) == len(wanted):
        chosen = {node.layer.name: arrays for node, arrays in zip(wanted, saved.values(), strict=True)}
    else:
        raise LayerError(
            f"the file has weights for {len(saved)} layers ({_listed(saved)}), the model {len(wanted)} layers with "
            f"weights ({_listed([node.layer.name for node in wanted])})"
        )
    return [
        {name: file.tensor(dataset, f"{name} of {node.layer.shown}") for name, dataset in named}
        for node in architecture.nodes
        for named in [_named(node, chosen.get(node.layer.name, []))]
    ]


def _arrays(file: Hdf5, group: Any) -> Iterator[Array]:
    for name in file.names(group, "weight_names"):
        yield name, file.find(group, name)


def _named(node: Node, arrays: list[Array]) -> list[Array]:
    """A layer's arrays under the names of its weights; of a model within the model by the names of its layers, and
    where these do not tell, by their order."""
    if node.inner is not None and (found := _by_layer(node.inner, arrays)) is not None:
        return found
    wanted = variables(node)
    if wanted is None:
        if node.inner is not None:
            raise node.layer.error(f"its {len(arrays)} weights in the file do not belong to its layers by their names")
        return [(str(index), dataset) for index, (_, dataset) in enumerate(arrays)]
    ordered = sorted(wanted, key=lambda variable: not variable.is_trained)
    if len(ordered) != len(arrays) or not all(map(_may_be, ordered, arrays)):
        raise node.layer.error(
            f"it has {len(arrays)} weights in the file ({_listed([name for name, _ in arrays])}); expected "
            f"{len(wanted)} ({_listed([variable.name for variable in ordered])})"
        )
    return [(variable.name, dataset) for variable, (_, dataset) in zip(ordered, arrays, strict=True)]


def _by_layer(model: Architecture, arrays: list[Array]) -> list[Array] | None:
    """The arrays of a model by the names of its layers; None where these do not tell all."""
    found = []
    for index, inner in enumerate(model.nodes):
        own = [(name, dataset) for name, dataset in arrays if inner.layer.name in name.split("/")[:-1]]
        if (wanted := variables(inner)) is not None and len(wanted) != len(own):
            return None
        found += [(f"{index}/{name}", dataset) for name, dataset in _named(inner, own)]
    return found if len(found) == len(arrays) else None


def _may_be(variable: Variable, array: Array) -> bool:
    """Whether an array of this name in a file can be a variable; older files have names of their own."""
    wanted, found = variable.name.split("/")[-1], array[0].split("/")[-1].split(":")[0]
    return found == wanted or found not in _BASES or wanted not in _BASES


def _listed(names: Any) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
