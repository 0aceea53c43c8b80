"""Attention, over the positions of (N, C, L)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.keras_files.axes import require_small, to_torch
from pipeline.models.keras_files.layer import Layer, Variable, own
from pipeline.models.keras_files.layers.activations import Weights
from pipeline.models.keras_files.layers.composed import parameters, require_shape
from pipeline.models.keras_files.layers.recurrent import part

_PARTS = {"query": "query_dense", "key": "key_dense", "value": "value_dense", "attention_output": "output_dense"}


def _shares(scores: Tensor, causal: bool) -> Tensor:
    """The softmax of scores (..., queries, keys); `causal`: of those up to the query alone."""
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1)


class MultiHeadAttention(nn.Module):
    def __init__(self, n_heads: int, projections: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key = projections["query"], projections["key"]
        self.value, self.output = projections["value"], projections["attention_output"]

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
    ) -> Any:
        given = {self.query: query, self.key: value if key is None else key, self.value: value}
        q, k, v = (self._heads(project(x.transpose(1, 2))) for project, x in given.items())
        require_small(self.n_heads, q.shape[2], k.shape[2])
        shares = _shares((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3), use_causal_mask)
        found = self.output((shares @ v).transpose(1, 2).flatten(2)).transpose(1, 2)
        return (found, to_torch(shares)) if return_attention_scores else found

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, heads * size) -> (N, heads, L, size)."""
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)


def multi_head_variables(layer: Layer) -> Iterator[Variable]:
    names = ["kernel", *(["bias"] if layer.flag("use_bias", True) else [])]
    for name, place in _PARTS.items():
        yield from (variable.within(name, place) for variable in own(*names))


def multi_head_attention(layer: Layer, weights: Weights) -> nn.Module:
    n_heads, key_size = layer.size("num_heads"), layer.size("key_dim")
    value_size = key_size if layer.config.get("value_dim") is None else layer.size("value_dim")
    layer.refuse(use_gate=False, sliding_window=None)
    if isinstance(n_out := layer.config.get("output_shape"), list | tuple) and len(n_out) != 1:
        raise layer.wrong("output_shape", "one size")
    if layer.config.get("attention_axes") not in (None, [1], 1):
        raise layer.wrong("attention_axes", "the positions")
    projections = {}
    for name in _PARTS:
        own_weights = part(weights, name)
        kernel, bias = own_weights["kernel"], own_weights.get("bias")
        size = value_size if name in ("value", "attention_output") else key_size
        if name == "attention_output":
            require_shape(layer, f"{name} kernel", kernel, (n_heads, size, None))
            kernel = kernel.flatten(0, 1)
        else:
            require_shape(layer, f"{name} kernel", kernel, (None, n_heads, size))
            kernel = kernel.flatten(1)
        projections[name] = nn.Linear(kernel.shape[0], kernel.shape[1], bias=bias is not None)
        parameters(layer, projections[name], weight=kernel.T, bias=None if bias is None else bias.flatten())
    return MultiHeadAttention(n_heads, projections)


class Attention(nn.Module):
    """Of [query, value], or [query, value, key]: by products, or by sums through tanh."""

    def __init__(self, scale: Tensor | None, additive: bool) -> None:
        super().__init__()
        self.scale = None if scale is None else nn.Parameter(scale)
        self.additive = additive

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
    ) -> Any:
        q, v = query.transpose(1, 2), value.transpose(1, 2)
        k = v if key is None else key.transpose(1, 2)
        require_small(q.shape[1], k.shape[1], q.shape[2] if self.additive else 1)
        if self.additive:
            joined = torch.tanh(q.unsqueeze(2) + k.unsqueeze(1))
            scores = (joined if self.scale is None else joined * self.scale).sum(-1)
        else:
            scores = q @ k.transpose(1, 2)
            scores = scores if self.scale is None else scores * self.scale
        shares = _shares(scores, use_causal_mask)
        found = (shares @ v).transpose(1, 2)
        return (found, to_torch(shares)) if return_attention_scores else found


def attention(layer: Layer, weights: Weights) -> nn.Module:
    layer.refuse(score_mode="dot")
    return Attention(weights.get("scale"), layer.kind == "AdditiveAttention")
