"""Layers over the last axis of Keras's tensors, where torch has axis 1: dense, embedding."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.keras_files.axes import to_keras, to_torch
from pipeline.models.keras_files.layer import Layer
from pipeline.models.keras_files.layers.activations import Weights, activation
from pipeline.models.keras_files.layers.composed import composed, parameters, require_shape


class Dense(nn.Linear):
    """Over the features of (N, C) or (N, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return F.conv1d(x, self.weight.unsqueeze(-1), self.bias)
        return to_torch(super().forward(to_keras(x)))


def dense(layer: Layer, weights: Weights) -> nn.Module:
    kernel = weights["kernel"]  # (features in, features out)
    require_shape(layer, "kernel", kernel, (None, layer.size("units")))
    inner = Dense(kernel.shape[0], kernel.shape[1], bias="bias" in weights)
    parameters(layer, inner, weight=kernel.T, bias=weights.get("bias"))
    return composed(dense=inner, activation=activation(layer))


class Embedding(nn.Module):
    """Tokens (N, ...) as whole numbers -> (N, C, ...); or one-hot (N, 4, L) -> (N, C, L), `tokens` being those of the
    bases: the product with the matrix is the same, and what is explained stays one-hot."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows)
        self.tokens: list[int] | None = None

    def take_bases(self, tokens: Sequence[int] | None) -> None:
        """Take one-hot sequences from here on. Raises ValueError where the tokens of A, C, G, T are not known."""
        n_rows = len(self.weight)
        known = list(range(n_rows)) if tokens is None and n_rows == 4 else list(tokens or ())
        if len(known) != 4 or not all(type(token) is int and 0 <= token < n_rows for token in known):
            raise ValueError(
                f"the model takes sequences as whole numbers below {n_rows}; say which stand for A, C, G and T, such "
                f"as model.tokens=[1,2,3,4]"
            )
        self.tokens = known

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens is not None:
            return F.conv1d(x, self.weight[self.tokens].T.unsqueeze(-1))
        return to_torch(F.embedding(to_keras(x).long(), self.weight))


def embedding(layer: Layer, weights: Weights) -> nn.Module:
    rows = weights["embeddings"]
    require_shape(layer, "embeddings", rows, (layer.size("input_dim"), layer.size("output_dim")))
    return Embedding(rows)
