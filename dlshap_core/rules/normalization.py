"""Normalisations over positions and channels, spelled out: mean, square, mean, rsqrt, product.

Each part has an exact multiplier (mean: linear; square: x + r; rsqrt: closed secant; product: midpoint), so the whole
sums to delta; for layer and RMS norm this is the closed form of tangermeme's rules. Batch statistics would mix the
rows of a batch and are refused.
"""

import math
from typing import Any

import torch
from torch import Tensor


def layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """(x - mean) rsqrt(var + eps) over the last axes, then the affine map."""
    axes = tuple(range(-len(normalized_shape), 0))
    return _affine(_standardise(input, axes, eps), weight, bias)


def rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x rsqrt(mean x^2 + eps); eps defaults to the dtype's epsilon."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(input * torch.rsqrt(torch.square(input).mean(axes, keepdim=True) + eps), weight, None)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """(x - mean) rsqrt(var + eps) over each group of channels and all positions."""
    grouped = input.unflatten(1, (num_groups, -1))
    axes = tuple(range(2, grouped.ndim))
    return _affine(_standardise(grouped, axes, eps).flatten(1, 2), weight, bias, axis=1)


def instance_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """(x - mean) rsqrt(var + eps) over the positions of each channel; linear with running statistics."""
    if not use_input_stats:
        assert running_mean is not None and running_var is not None
        scale = torch.rsqrt(running_var + eps)
        return _affine(_affine(input, scale, -running_mean * scale, axis=1), weight, bias, axis=1)
    return _affine(_standardise(input, tuple(range(2, input.ndim)), eps), weight, bias, axis=1)


def var(
    input: Tensor,
    dim: int | tuple[int, ...] | bool | None = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """Mean squared distance from the mean, with Bessel's correction unless told otherwise."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if dim is None:
        raise ValueError("a variance over all axes mixes the sequences of a batch; give dim=")
    if correction is None:
        correction = 0 if unbiased is False else 1
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    centred = input - input.mean(axes, keepdim=True)
    degrees = math.prod(input.shape[axis] for axis in axes) - correction
    return torch.square(centred).sum(axes, keepdim=keepdim) / degrees


def std(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The square root of `var`, with its arguments."""
    return torch.sqrt(var(input, *args, **kwargs))


def var_mean(
    input: Tensor,
    dim: int | tuple[int, ...] | bool | None = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`var` and the mean."""
    variance = var(input, dim, unbiased, keepdim, correction=correction)
    return variance, input.mean(dim, keepdim=keepdim)


def std_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """`std` and the mean, with the arguments of `var_mean`."""
    variance, mean = var_mean(input, *args, **kwargs)
    return torch.sqrt(variance), mean


def vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """(sum |x|^p)^(1/p); at a norm of 0 on both sides the multiplier is 0."""
    if dim is None:
        raise ValueError("a norm over all axes mixes the sequences of a batch; give dim=")
    x = x if dtype is None else x.to(dtype)
    if ord == 2:
        return torch.sqrt(torch.square(x).sum(dim, keepdim=keepdim))
    if ord == 1:
        return torch.abs(x).sum(dim, keepdim=keepdim)
    if ord == math.inf:
        return torch.amax(torch.abs(x), dim, keepdim=keepdim)
    if ord == -math.inf:
        return torch.amin(torch.abs(x), dim, keepdim=keepdim)
    if ord == 0:
        raise ValueError("a norm of order 0 counts non-zero elements and jumps with its input")
    return torch.pow(torch.pow(torch.abs(x), ord).sum(dim, keepdim=keepdim), 1 / ord)


def linalg_norm(
    A: Tensor,
    ord: float | str | None = None,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Vector norms, and the Frobenius norm of matrices."""
    is_of_matrix = A.ndim == 2 if dim is None else not isinstance(dim, int) and len(dim) == 2
    if ord not in (None, "fro") and is_of_matrix:
        raise ValueError("norms of matrices but Frobenius's are not supported")
    return vector_norm(A, 2 if ord is None or isinstance(ord, str) else ord, dim, keepdim, dtype=dtype)


def matrix_norm(
    A: Tensor,
    ord: float | str = "fro",
    dim: tuple[int, int] = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The Frobenius norm; others are refused."""
    return linalg_norm(A, ord, dim, keepdim, dtype=dtype)


def norm(
    input: Tensor, p: float | str | None = 2, dim: int | tuple[int, ...] | None = None, keepdim: bool = False
) -> Tensor:
    """torch.norm, as a vector norm over its axes."""
    order = 2.0 if p in (None, "fro") else float(p)
    return vector_norm(input, order, dim, keepdim)


def _standardise(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(torch.square(centred).mean(axes, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, axis: int | None = None) -> Tensor:
    """x weight + bias, with weight and bias along `axis`, or as they broadcast."""
    for parameter, combine in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            if axis is not None:
                parameter = parameter.reshape(-1, *[1] * (x.ndim - axis - 1))
            x = combine(x, parameter)
    return x
