"""Layers over the last axis of Keras's tensors, where torch has axis 1: dense, embedding."""

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
    """Tokens (N, ...) as whole numbers -> (N, C, ...)."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows)

    def forward(self, x: Tensor) -> Tensor:
        return to_torch(F.embedding(to_keras(x).long(), self.weight))


def embedding(layer: Layer, weights: Weights) -> nn.Module:
    rows = weights["embeddings"]
    require_shape(layer, "embeddings", rows, (layer.size("input_dim"), layer.size("output_dim")))
    return Embedding(rows)
