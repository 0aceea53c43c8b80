"""The BPNets in a file that chrombpnet wrote: the bias, the accessibility, or both within one model.

The layers of the bias are called `bpnet_1st_conv`, `bpnet_1conv`, ...; those of the accessibility have `wo_bias_`
before that. No convolution pads: each way beside one is cropped by as much as it takes away. Where both are in one
file, their profile logits are added, and a Lambda is the logsumexp of their counts; it is known by its place and never
run.

Shape legend: L positions of the sequence, V of the last layer, W of the profile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.models.keras_files.architecture import Architecture, read_architecture, tensors
from pipeline.models.keras_files.architecture import Tensor as Place
from pipeline.models.keras_files.files import open_keras
from pipeline.models.keras_files.layer import LayerError
from pipeline.models.keras_files.layers.recurrent import part
from pipeline.models.keras_files.load import named
from pipeline.models.keras_files.weights import Weights, read_weights

ACCESSIBILITY, BIAS = "accessibility", "bias"
_FIRST = {"wo_bias_bpnet_1st_conv": ACCESSIBILITY, "bpnet_1st_conv": BIAS}
_COUNTS = "logcount_predictions"
_WAY_OUT = "model=keras reads a model of any layout"


@dataclass(frozen=True)
class KerasBPNet:
    """A BPNet of a file.

    Attributes:
        state: its weights, under the names of `pipeline.models.bpnet.BPNet`.
        settings: what its weights do not say: trimming, (L - W) / 2, and count_margin, (V - W) / 2.
    """

    state: dict[str, Tensor]
    settings: dict[str, int]


def read_bpnets(path: Path) -> tuple[dict[str, KerasBPNet], tuple[str, ...]]:
    """The BPNets of a file by what they are, and the types of weights that were made float32.

    Raises:
        UserError: the file is not of chrombpnet, or is laid out otherwise.
    """
    with open_keras(path) as file, named(path):
        model = read_architecture(file.config, file.major)
        found = dict(_bpnets(model, read_weights(file.weights, model)))
        if not found:
            raise LayerError(f"it has no layer {' or '.join(_FIRST)}, as files of chrombpnet have; {_WAY_OUT}")
        if len(found) > 1:
            _require_sums(model)
    return found, tuple(sorted(file.weights.stored_as))


def _bpnets(model: Architecture, weights: Sequence[Weights]) -> Iterator[tuple[str, KerasBPNet]]:
    """Of a model, and of the models within it."""
    for node, own in zip(model.nodes, weights, strict=True):
        if node.layer.name in _FIRST:
            yield _FIRST[node.layer.name], _Reader(model, weights).bpnet()
        elif node.inner is not None:
            yield from _bpnets(node.inner, [part(own, str(index)) for index in range(len(node.inner.nodes))])


class _Reader:
    """Follows the sequence through a model, layer by layer, and takes the weights on the way."""

    def __init__(self, model: Architecture, weights: Sequence[Weights]) -> None:
        self.model, self.weights = model, weights
        self.at = _place(model.inputs[0])
        self.state: dict[str, Tensor] = {}

    def bpnet(self) -> KerasBPNet:
        taken = self.convolve("iconv", self.go("Conv1D"), 1, "relu") // 2  # from either end
        n_layers = 0
        while self.find("Cropping1D", self.at) is not None:
            taken += self.residual(n_layers)
            n_layers += 1
        last = self.at
        self.go("GlobalAveragePooling1D")
        self.dense("linear", self.go("Dense"))
        counts_end = self.at
        margin = self.convolve("fconv", self.go("Conv1D", last), 1, "linear") // 2 + self.cropped(self.go("Cropping1D"))
        self.go("Flatten")
        if tuple(self.model.outputs) != (self.at, counts_end):
            raise LayerError(f"its outputs are not the profile, then the counts; {_WAY_OUT}")
        return KerasBPNet(self.state, {"trimming": taken + margin, "count_margin": margin})

    def find(self, kind: str, *taken: Place) -> int | None:
        """The layer of a kind that takes just these tensors; None where there is none."""
        for index, node in enumerate(self.model.nodes):
            if node.layer.kind == kind and [{*call.args} for call in node.calls] == [{*taken}]:
                return index
        return None

    def go(self, kind: str, *taken: Place) -> int:
        """To the layer of a kind that takes these tensors, or the one that the way has come to."""
        found = self.find(kind, *(taken or (self.at,)))
        if found is None:
            behind = self.model.nodes[self.at.layer].layer.shown
            raise LayerError(f"no {kind} follows on {behind}, where chrombpnet has one; {_WAY_OUT}")
        self.at = _place(found)
        return found

    def residual(self, number: int) -> int:
        """The dilated convolution after `number` of them, with the way beside it; what it takes from either end."""
        start = self.at
        conv, crop = self.go("Conv1D"), self.go("Cropping1D", start)
        taken = self.convolve(f"rconvs.{number}", conv, 2 ** (number + 1), "relu") // 2
        if self.cropped(crop) != taken:
            raise self.model.nodes[crop].layer.error(f"expected {taken} positions cropped from either end; {_WAY_OUT}")
        self.go("Add", _place(conv), _place(crop))
        return taken

    def convolve(self, name: str, index: int, dilation: int, activation: str) -> int:
        """Take the weights of a convolution; how many positions it takes away."""
        layer, weights = self.model.nodes[index].layer, self.weights[index]
        width = len(weights["kernel"])
        usual = {"dilation_rate": [dilation], "strides": [1], "padding": "valid", "activation": activation, "groups": 1}
        for key, wanted in usual.items():
            if layer.config.get(key, wanted) not in (wanted, wanted[0] if isinstance(wanted, list) else wanted):
                raise layer.wrong(key, f"{wanted}, as chrombpnet has it; {_WAY_OUT}")
        if width % 2 == 0 or (name.startswith("rconvs") and width != 3):
            raise layer.error(f"its kernel is {width} wide, which no BPNet's is; {_WAY_OUT}")
        self.state[f"{name}.weight"] = weights["kernel"].permute(2, 1, 0).contiguous()
        self.bias(name, weights)
        return (width - 1) * dilation

    def dense(self, name: str, index: int) -> None:
        self.model.nodes[index].layer.refuse(activation="linear")
        self.state[f"{name}.weight"] = self.weights[index]["kernel"].T.contiguous()
        self.bias(name, self.weights[index])

    def bias(self, name: str, weights: Weights) -> None:
        if "bias" in weights:
            self.state[f"{name}.bias"] = weights["bias"]

    def cropped(self, index: int) -> int:
        """How many positions a cropping takes from either end."""
        ((before, after),) = self.model.nodes[index].layer.ends("cropping", 1)
        if before != after:
            raise self.model.nodes[index].layer.wrong("cropping", f"as many positions at either end; {_WAY_OUT}")
        return before


def _place(index: int) -> Place:
    return Place(index, 0, 0)


def _require_sums(model: Architecture) -> None:
    """Raises LayerError where a model of both is not their sum: of profile logits, and of counts before the log."""
    parts = [index for index, node in enumerate(model.nodes) if node.inner is not None]
    profiles, counts = ({Place(index, 0, output) for index in parts} for output in (0, 1))
    ends = [model.nodes[tensor.layer] for tensor in model.outputs]
    joined = [{*tensors(call)} for node in ends for call in node.calls]
    last = [model.nodes[tensor.layer] for tensor in joined[1]] if len(joined) == 2 else []
    is_sum = len(ends) == 2 and ends[0].layer.kind == "Add" and joined[0] == profiles
    is_log = len(last) == 1 and last[0].layer.kind == "Concatenate" and {*last[0].calls[0].args} == counts
    if not (is_sum and is_log and ends[1].layer.name == _COUNTS):
        raise LayerError("the bias and the accessibility in it are not joined as chrombpnet joins them")
