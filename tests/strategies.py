"""Hypothesis strategies: sequences, references, and small networks assembled from the rule set.

Shape legend: N sequences, R references of each, A alphabet, L length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from dlshap_core.one_hot import one_hot


@st.composite
def codes(draw: st.DrawFn, min_length: int = 1, max_length: int = 60, largest: int = 4) -> np.ndarray:
    """(L,) uint8 codes, unknown bases among them."""
    return np.array(draw(st.lists(st.integers(0, largest), min_size=min_length, max_size=max_length)), dtype=np.uint8)


@st.composite
def one_hot_sequences(draw: st.DrawFn, max_n: int = 4, length: int = 24) -> Tensor:
    """(N, 4, L) int8 one-hot sequences of one length."""
    n, seed = draw(st.integers(1, max_n)), draw(st.integers(0, 2**32 - 1))
    return one_hot(np.random.RandomState(seed).randint(0, 4, (n, length)).astype(np.uint8))


# Layers of (B, C, W) -> (B, C, W'), each made for (channels, width); the widths stay large enough for the next ones.
LAYERS: dict[str, Callable[[int, int], nn.Module | Callable[[Tensor], Tensor]]] = {
    "conv": lambda c, w: nn.Conv1d(c, c, 3, padding=1),
    "depthwise": lambda c, w: nn.Conv1d(c, c, 3, padding=2, dilation=2, groups=c),
    "relu": lambda c, w: nn.ReLU(),
    "relu_function": lambda c, w: F.relu,
    "leaky_relu": lambda c, w: nn.LeakyReLU(0.2),
    "elu": lambda c, w: nn.ELU(),
    "gelu": lambda c, w: nn.GELU(),
    "silu": lambda c, w: nn.SiLU(inplace=True),
    "softplus": lambda c, w: nn.Softplus(),
    "tanh": lambda c, w: torch.tanh,
    "mask": lambda c, w: lambda z: z * (z > 0.1),
    "where": lambda c, w: lambda z: torch.where(z > 0, z, 0.3 * z),
    "gate": lambda c, w: lambda z: z * torch.sigmoid(z.flip(1)),
    "swish_residual": lambda c, w: lambda z: z + z * torch.sigmoid(1.5 * z),
    "squeeze_excite": lambda c, w: lambda z: z * z.mean(-1, keepdim=True).sigmoid(),
    "batch_norm": lambda c, w: nn.BatchNorm1d(c),
    "layer_norm": lambda c, w: lambda z: F.layer_norm(z, z.shape[-1:], eps=1e-2),
    "group_norm": lambda c, w: nn.GroupNorm(2, c, eps=1e-2),
    "softmax": lambda c, w: lambda z: z.softmax(-1) * z,
    "log_softmax": lambda c, w: lambda z: z.log_softmax(1),
    "attention": lambda c, w: lambda z: F.scaled_dot_product_attention(z, z.tanh(), z),
    "max_pool": lambda c, w: nn.MaxPool1d(2) if w >= 8 else nn.MaxPool1d(3, 1, 1),
    "overlapping_max_pool": lambda c, w: nn.MaxPool1d(3, 1, 1),
    "avg_pool": lambda c, w: nn.AvgPool1d(3, 1, 1),
    "permute": lambda c, w: lambda z: z.flip(-1).roll(3, -1),
}


@dataclass(frozen=True)
class Recipe:
    """A network by its layers' names and the seed of its weights; small and readable when an example fails."""

    layers: tuple[str, ...]
    readout: str
    seed: int


class Network(nn.Module):
    """A convolution, the layers of the recipe, and a readout to two values."""

    def __init__(self, recipe: Recipe, length: int, channels: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.stem = nn.Conv1d(4, channels, 5, padding=2)
            self.layers = []
            width = length
            for name in recipe.layers:
                layer = LAYERS[name](channels, width)
                width = width // 2 if name == "max_pool" and width >= 8 else width
                self.layers.append(layer)
            self.modules_of_layers = nn.ModuleList(layer for layer in self.layers if isinstance(layer, nn.Module))
            self.readout = recipe.readout
            self.head = nn.Linear(channels * width if recipe.readout == "flatten" else channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for layer in self.layers:
            hidden = layer(hidden)
        if self.readout == "flatten":
            return self.head(hidden.flatten(1))
        return self.head(hidden.mean(-1) if self.readout == "mean" else hidden.amax(-1))


def recipes(max_layers: int = 5) -> st.SearchStrategy[Recipe]:
    """Networks of up to `max_layers` layers."""
    return st.builds(
        Recipe,
        layers=st.lists(st.sampled_from(sorted(LAYERS)), max_size=max_layers).map(tuple),
        readout=st.sampled_from(["flatten", "mean", "amax"]),
        seed=st.integers(0, 1000),
    )
