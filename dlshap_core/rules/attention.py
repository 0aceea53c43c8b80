"""Attention spelled out: scores by matmul, softmax, values by matmul (midpoint products and the softmax rule)."""

import math

import torch
from torch import Tensor

from dlshap_core.rules.masks import is_mask


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T scale + mask) v, as torch.nn.functional.scaled_dot_product_attention defines it."""
    if dropout_p > 0:
        raise ValueError("attention with dropout_p > 0 draws random numbers in forward; pass 0 when not training")
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    query = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)  # smaller than the scores
    scores = query @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if is_mask(attn_mask) else scores + attn_mask
    return torch.softmax(scores, -1) @ value
