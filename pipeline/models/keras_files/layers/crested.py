"""Layers of CREsted's Enformer and Borzoi, of its own but without code in the file.

Attention with relative positions is that of Avsec et al. 2021 (Enformer, https://doi.org/10.1038/s41592-021-01252-x)
and of Linder et al. 2025 (Borzoi). What distances give is computed in float32, as there.
Legend: N sequences, C channels, L positions, H heads, K and V sizes of keys and values.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.models.keras_files.axes import require_small
from pipeline.models.keras_files.layer import Layer, Variable, own
from pipeline.models.keras_files.layers.activations import Weights
from pipeline.models.keras_files.layers.composed import parameters, require_shape
from pipeline.models.keras_files.layers.recurrent import part

_PROJECTIONS = ("q_layer", "k_layer", "v_layer", "embedding_layer", "r_k_layer")
_LEAST_HALF_LIFE = 3.0  # of Enformer's exponentials: 2 ** 3 positions


class AttentionPool(nn.Module):
    """The mean of so many neighbours, weighted by the softmax of a product of each with a matrix."""

    def __init__(self, size: int, weight: Tensor) -> None:
        super().__init__()
        self.size, self.weight = size, nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % self.size:
            raise ValueError(f"{x.shape[2]} positions are not whole groups of {self.size}")
        x = x.transpose(1, 2).unflatten(1, (-1, self.size))  # (N, L / size, size, C)
        return (x * (x @ self.weight).softmax(2)).sum(2).transpose(1, 2)


def pool_variables(_: Layer) -> Iterator[Variable]:
    return own("att_pool_weight")


def attention_pool(layer: Layer, weights: Weights) -> nn.Module:
    return AttentionPool(layer.size("pool_size", 2), weights["att_pool_weight"])


class RelativeAttention(nn.Module):
    """Attention whose scores are products of queries with keys, and with what the distance of the two gives."""

    def __init__(self, n_heads: int, key_size: int, scaled: bool, parts: dict[str, nn.Linear], features: str) -> None:
        super().__init__()
        self.n_heads, self.scale = n_heads, key_size**-0.5 if scaled else 1.0
        self.features = features
        self.n_features = parts["r_k_layer"].in_features if features else 0
        self.parts = nn.ModuleDict(parts)
        self.content_bias = nn.Parameter(torch.empty(1, n_heads, 1, key_size))
        self.distance_bias = nn.Parameter(torch.empty(1, n_heads, 1, key_size))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        length = x.shape[1]
        require_small(self.n_heads, length, 2 * length)
        q, k, v = (self._heads(self.parts[name](x)) for name in ("q_layer", "k_layer", "v_layer"))
        q = q * self.scale
        scores = (q + self.content_bias) @ k.transpose(2, 3)
        if self.features:
            of_distances = self.parts["r_k_layer"](self._of_distances(length).to(x))
            keys = of_distances.unflatten(1, (self.n_heads, -1)).permute(1, 2, 0)  # (H, K, 2 L - 1)
            scores = scores + _by_distance((q + self.distance_bias) @ keys)
        return self.parts["embedding_layer"]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, H * size) -> (N, H, L, size)."""
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)

    def _of_distances(self, length: int) -> Tensor:
        """(2 L - 1, features) of the distances -L + 1 to L - 1: some of their size, and the same with their sign."""
        distances = torch.arange(1 - length, length, dtype=torch.float32)
        n = self.n_features // (6 if self.features == "enformer" else 2)
        far = distances.abs().unsqueeze(1)
        found = torch.cat(_enformer(far, n, length), 1) if self.features == "enformer" else _borzoi(far, n, length)
        return torch.cat([found, distances.sign().unsqueeze(1) * found], 1)


def _borzoi(far: Tensor, n: int, length: int) -> Tensor:
    """Whether a distance is below widths that grow to the length."""
    rate = torch.tensor(math.exp(math.log(length + 1) / n), dtype=torch.float32)
    return (rate ** torch.arange(1, n + 1, dtype=torch.float32) - 1 > far).float()


def _enformer(far: Tensor, n: int, length: int) -> list[Tensor]:
    """Exponentials, whether it is below powers of 2, and gamma densities, of n sizes each."""
    half_lives = 2 ** torch.linspace(_LEAST_HALF_LIFE, math.log2(length), n)
    below = (2.0 ** torch.arange(1, n + 1) - 1 > far).float()
    deviation, means = length / (2 * n), torch.linspace(length / n, length, n)
    shape, rate = (means / deviation) ** 2, means / deviation**2
    logarithm = (shape - 1) * far.log() - rate * far
    densities = torch.exp(logarithm - (torch.lgamma(shape) - shape * rate.log())) + 1e-8
    return [torch.exp(-math.log(2) / half_lives * far), below, densities / densities.amax(0)]


def _by_distance(x: Tensor) -> Tensor:
    """(N, H, L, 2 L - 1), a column for each distance -> (N, H, L, L), where [i, j] is that of the distance j - i."""
    length = x.shape[2]
    x = nn.functional.pad(x, (1, 0)).reshape(*x.shape[:2], 2 * length, length)
    return x[:, :, 1:].reshape(*x.shape[:2], length, 2 * length - 1)[..., :length]


def relative_variables(layer: Layer) -> Iterator[Variable]:
    """The two biases, then the projections; the last of these is there with relative positions alone."""
    yield from own("r_w_bias", "r_r_bias")
    for name in _PROJECTIONS if layer.config.get("num_position_features") != 0 else _PROJECTIONS[:-1]:
        names = ["kernel", *(["bias"] if name == "embedding_layer" else [])]
        yield from (variable.within(name, f"_{name}") for variable in own(*names))


def relative_attention(layer: Layer, weights: Weights) -> nn.Module:
    layer.refuse(relative_position_symmetric=False, absolute_positions=False)
    n_heads, key_size, value_size = layer.size("heads"), layer.size("key_size"), layer.size("value_size")
    features = layer.choice("relative_position_functions", "borzoi", ("borzoi", "enformer"))
    sizes = {"v_layer": value_size, "embedding_layer": value_size}
    parts = {}
    for name in _PROJECTIONS:
        if not (of_part := part(weights, name)):
            features = ""
            continue
        kernel, bias = of_part["kernel"], of_part.get("bias")
        require_shape(layer, f"{name} kernel", kernel, (None, n_heads * sizes.get(name, key_size)))
        parts[name] = nn.Linear(kernel.shape[0], kernel.shape[1], bias=bias is not None)
        parameters(layer, parts[name], weight=kernel.T, bias=bias)
    module = RelativeAttention(n_heads, key_size, layer.flag("scaling", True), parts, features)
    parameters(layer, module, content_bias=weights["r_w_bias"], distance_bias=weights["r_r_bias"])
    return module
