"""Normalisations over positions and channels: mean, square, mean, rsqrt, product, and then the affine map.

Each part has an exact multiplier (mean: linear; square: x + r; rsqrt: closed secant; product: midpoint), so the whole
sums to delta; for layer and RMS norm this is the closed form of tangermeme's rules. What divides by a size has its
multipliers in one formula (`_standardise_rule`), the rest is spelled out. Batch statistics would mix the rows of a
batch and are refused.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from dlshap_core.kernels import fused
from dlshap_core.kernels.memory_format import has_channels_last
from dlshap_core.rules import operators
from dlshap_core.rules.call import is_varying
from dlshap_core.rules.gradients import pull_back
from dlshap_core.rules.kinds import PairRule
from dlshap_core.rules.rows import RowPairing
from dlshap_core.rules.secants import finite_or_zero


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """x scale + shift of (B, C, ...) with statistics, weight and bias (C,): on a CPU one pass over memory there and one
    back, in any memory format.

    In single precision at least, as torch has it: what is left of a mean in half precision may be larger than the rest.
    """
    if input.device.type != "cpu" or running_mean is None or running_var is None:
        return torch.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    mean, variance = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (running_mean, running_var))
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    along = (-1, *[1] * (input.ndim - 2))
    return torch.addcmul(shift.view(along), input, scale.view(along)).to(input.dtype)


def layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """(x - mean) rsqrt(var + eps) over the last axes, then the affine map."""
    if not (is_varying(weight) or is_varying(bias)):
        return standardise(input, len(normalized_shape), eps, True, weight, bias)
    return _affine(standardise(input, len(normalized_shape), eps), weight, bias)


def rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x rsqrt(mean x^2 + eps); eps defaults to the epsilon of what torch computes in, single precision at least."""
    eps = torch.finfo(torch.promote_types(input.dtype, torch.float32)).eps if eps is None else eps
    if not is_varying(weight):
        return standardise(input, len(normalized_shape), eps, False, weight)
    return _affine(standardise(input, len(normalized_shape), eps, False), weight, None)


def _are_groups_one(input: Tensor, *parameters: Tensor | None) -> bool:
    """Whether a norm of groups and its affine map, which does not vary, are taken as one."""
    return (operators.is_for(input) or fused.takes(input)) and not any(map(is_varying, parameters))


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """(x - mean) rsqrt(var + eps) over each group of channels and all positions."""
    if _are_groups_one(input, weight, bias):
        return standardise_groups(input, num_groups, eps, weight, bias)
    grouped = input.unflatten(1, (num_groups, -1))
    return _affine(standardise(grouped, grouped.ndim - 2, eps).flatten(1, 2), weight, bias, axis=1)


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
    if _are_groups_one(input, weight, bias):
        return standardise_groups(input, input.shape[1], eps, weight, bias)
    return _affine(standardise(input, input.ndim - 2, eps), weight, bias, axis=1)


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
    return _variance(input, axes, correction, keepdim)


def _variance(x: Tensor, axes: tuple[int, ...], correction: float, keepdim: bool) -> Tensor:
    if has_torch_function_unary(x):
        return handle_torch_function(_variance, (x,), x, axes, correction, keepdim)
    return torch.var(x, axes, correction=correction, keepdim=keepdim)


def _variance_rule(
    rows: RowPairing,
    observed: Tensor,
    reference: Tensor,
    axes: tuple[int, ...],
    correction: float,
    keepdim: bool,
) -> Tensor:
    """Secant c + c0 of the squares of c = x - mean; the mean's own part is 0, as is the sum of c."""
    value = _variance(reference.detach(), axes, correction, keepdim)
    degrees = math.prod(reference.shape[axis] for axis in axes) - correction
    kept = [1 if axis in (dim % reference.ndim for dim in axes) else n for axis, n in enumerate(reference.shape)]
    dtype = reference.dtype

    def pullback(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
        both = torch.add(operators.at_least_float32(x), r).reshape(shape)
        both.sub_(both.mean(axes, keepdim=True))
        return both.mul_(gradient.reshape(kept) / degrees).to(dtype)

    shape = reference.shape
    x, r = rows.paired(observed, reference.detach())
    return pull_back(reference, value, pullback, x, rows.keep(r))


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
    A: Tensor, ord: float | str = "fro", dim: tuple[int, int] = (-2, -1), *rest: Any, **named: Any
) -> Tensor:
    """The Frobenius norm; others are refused."""
    return linalg_norm(A, ord, dim, *rest, **named)


def norm(
    input: Tensor, p: float | str | None = 2, dim: int | tuple[int, ...] | None = None, keepdim: bool = False
) -> Tensor:
    """torch.norm, as a vector norm over its axes."""
    order = 2.0 if p in (None, "fro") else float(p)
    return vector_norm(input, order, dim, keepdim)


def standardise(
    x: Tensor,
    n_axes: int,
    eps: float,
    centres: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """(x - mean) rsqrt(var + eps) over the last axes, or without a mean x rsqrt(mean x^2 + eps), times a weight and
    plus a bias of these axes."""
    if has_torch_function_unary(x):
        return handle_torch_function(standardise, (x,), x, n_axes, eps, centres, weight, bias)
    shape = list(x.shape[-n_axes:])
    return F.layer_norm(x, shape, weight, bias, eps) if centres else torch.rms_norm(x, shape, weight, eps)


def _parts(x: Tensor, n_axes: int, eps: float, centres: bool) -> tuple[Tensor, Tensor, Tensor]:
    """c s, with c = x - mean, and s = rsqrt(mean c^2 + eps), and c."""
    if centres:
        value, mean, scale = torch.native_layer_norm(x, x.shape[-n_axes:], None, None, eps)
        return value, scale, x - mean
    scale = _scale_of_squares(x, n_axes, eps)
    return x * scale, scale, x


def _scale_of_squares(x: Tensor, n_axes: int, eps: float) -> Tensor:
    """rsqrt(mean x^2 + eps) over the last axes, which are kept."""
    return torch.rsqrt(torch.square(x).mean(tuple(range(-n_axes, 0)), keepdim=True) + eps)


def _standardise_rule(
    rows: RowPairing,
    observed: Tensor,
    reference: Tensor,
    n_axes: int,
    eps: float,
    centres: bool,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """y = c s: midpoint product, secant of rsqrt in the variance, secant x + r of the square in c.

    With q = c + c0 and n the number of elements, a gradient g at y flows to c as

        g (s + s0)/2 + q k sum(g q) / 2n,    k = (s - s0) / (v - v0) = -(s s0)^2 / (s + s0),  v = mean c^2 + eps,

    and to x less its mean; q has a mean of 0.
    """
    axes, dtype = tuple(range(-n_axes, 0)), reference.dtype
    if not fused.takes(observed, reference):  # on a GPU, or of too few digits for the squares
        value = standardise(reference.detach(), n_axes, eps, centres, weight, bias)

        def pull_back_late(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
            found = _back_through_norm(gradient.reshape(r.shape), x, r, weight, n_axes, eps, centres)
            return found.reshape(gradient.shape)

        x, r = rows.paired(observed, reference.detach())
        return pull_back(reference, value, pull_back_late, x, rows.keep(r))
    if not rows.is_one_pair:  # for which memory is dear
        return _standardise_by_kernel(rows, observed, reference, n_axes, eps, centres, weight, bias)
    value, s_r, c_r = _parts(reference.detach(), n_axes, eps, centres)
    _, s_x, c_x = _parts(observed, n_axes, eps, centres)
    scale_x, scale_r = rows.paired(s_x, s_r)
    slope, bend = (z.reshape(s_r.shape) for z in _slope_and_bend(scale_x, scale_r))
    bend = bend / (2 * reference.shape[-n_axes:].numel())
    both = torch.add(*rows.paired(c_x, c_r)).reshape(reference.shape)

    def pullback(gradient: Tensor, slope: Tensor, bend: Tensor, both: Tensor) -> Tensor:
        gradient = gradient if weight is None else gradient * weight
        return _through(gradient, slope, bend, both, axes, centres).to(dtype)

    return pull_back(reference, _affine(value, weight, bias), pullback, slope, bend, both)


def _standardise_by_kernel(
    rows: RowPairing,
    observed: Tensor,
    reference: Tensor,
    n_axes: int,
    eps: float,
    centres: bool,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """`_standardise_rule` by a kernel of a CPU, while going back."""

    def statistics(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The norm, and the mean and scale of each row."""
        shape = list(z.shape[-n_axes:])
        if centres:
            return torch.native_layer_norm(z, shape, weight, bias, eps)
        scale = _scale_of_squares(z, n_axes, eps)
        return torch.rms_norm(z, shape, weight, eps), torch.zeros_like(scale), scale

    value, *of_r = statistics(reference.detach(), weight, bias)
    x, r = rows.paired(observed, reference.detach())
    _, *of_x = statistics(x, None, None)

    def pullback(gradient: Tensor, x: Tensor, r: Tensor, *of_both: Tensor) -> Tensor:
        n_inner, (x_rows, r_rows, gradient_rows) = operators.as_rows(n_axes, x, r, gradient.reshape(r.shape))
        mine = None if weight is None else weight.reshape(-1)
        found = fused.normalise(gradient_rows, x_rows, r_rows, mine, of_both, n_inner, centres)
        return found.view(gradient.shape)

    return pull_back(reference, value, pullback, x, rows.keep(r), *of_x, *of_r)


def standardise_groups(
    x: Tensor, n_groups: int, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """(x - mean) rsqrt(var + eps) of (B, C, ...) over each group of channels and all positions, times a weight and
    plus a bias (C,)."""
    if has_torch_function_unary(x):
        return handle_torch_function(standardise_groups, (x,), x, n_groups, eps, weight, bias)
    # Of any number of axes: torch subtracts the square of the mean from that of the squares.
    if fused.takes(x) and not x.is_contiguous() and x.movedim(1, -1).is_contiguous():
        value = _in_format(fused.group_norm(_by_channel(x), n_groups, eps, weight, bias)[0], x)
        return pull_back(x, value, _refuse_gradient) if x.requires_grad else value
    return torch.group_norm(x, n_groups, weight, bias, eps)


def _refuse_gradient(gradient: Tensor) -> Tensor:
    raise RuntimeError("nothing goes back through the pass over the sequences")


def _by_channel(z: Tensor) -> Tensor:
    """(B, positions, C)."""
    return z.detach().movedim(1, -1).flatten(1, -2).contiguous()


def _in_format(z: Tensor, like: Tensor) -> Tensor:
    """What is by channel in the format that it came from."""
    return z.unflatten(1, like.shape[2:]).movedim(-1, 1)


def _groups_rule(
    rows: RowPairing,
    observed: Tensor,
    reference: Tensor,
    n_groups: int,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """`_standardise_rule` of each group; on a CPU with the channels last in memory by a kernel, while going back."""
    if operators.is_for(reference):
        value = torch.group_norm(reference.detach(), n_groups, weight, bias, eps)
        if weight is not None:
            weight = weight.view(n_groups, -1, *[1] * (reference.ndim - 2))
        groups = rows.paired(*(z.unflatten(1, (n_groups, -1)) for z in (observed, reference.detach())))

        def pull_back_late(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
            found = _back_through_norm(gradient.reshape(r.shape), x, r, weight, gradient.ndim - 1, eps, True)
            return found.reshape(gradient.shape)

        return pull_back(reference, value, pull_back_late, groups[0], rows.keep(groups[1]))
    axis = rows.axis(observed, reference)
    if not has_channels_last(reference) or axis not in (0, None) or rows.is_one_pair:
        grouped = observed.unflatten(1, (n_groups, -1)), reference.unflatten(1, (n_groups, -1))
        value = _standardise_rule(rows, *grouped, reference.ndim - 1, eps, True)
        return _affine(value.flatten(1, 2), weight, bias, axis=1)

    x, r = observed.narrow(0, 0, len(reference) // rows.n_references), reference.detach()
    _, *of_x = fused.group_norm(_by_channel(x), n_groups, eps, None, None)
    value, *of_r = fused.group_norm(_by_channel(r), n_groups, eps, weight, bias)

    def pullback(gradient: Tensor, x: Tensor, r: Tensor, *of_both: Tensor) -> Tensor:
        found = fused.normalise_groups(_by_channel(gradient), _by_channel(x), _by_channel(r), weight, of_both)
        return _in_format(found, r)

    return pull_back(reference, _in_format(value, r), pullback, x, rows.keep(r), *of_x, *of_r)


def _slope_and_bend(scale_x: Tensor, scale_r: Tensor) -> tuple[Tensor, Tensor]:
    total, product = scale_x + scale_r, scale_x * scale_r
    return total / 2, finite_or_zero(-product * (product / total))  # its square may be no number that can be written


def _through(
    gradient: Tensor, slope: Tensor, bend: Tensor, both: Tensor, axes: tuple[int, ...], centres: bool
) -> Tensor:
    spread = bend * (gradient * both).sum(axes, keepdim=True)
    if centres:
        gradient = gradient - gradient.mean(axes, keepdim=True)
    return (gradient * slope).addcmul_(both, spread)


def _norm_by_torch(
    gradient: Tensor, x: Tensor, r: Tensor, weight: Tensor | None, n_axes: int, eps: float, centres: bool
) -> Tensor:
    dtype = r.dtype
    gradient, x, r = (operators.at_least_float32(z) for z in (gradient, x, r))
    _, s_x, c_x = _parts(x, n_axes, eps, centres)
    _, s_r, c_r = _parts(r, n_axes, eps, centres)
    slope, bend = _slope_and_bend(s_x, s_r)
    gradient = gradient if weight is None else gradient * weight
    bend = bend / (2 * r.shape[-n_axes:].numel())
    return _through(gradient, slope, bend, c_x + c_r, tuple(range(-n_axes, 0)), centres).to(dtype)


def _norm_by_triton(
    gradient: Tensor, x: Tensor, r: Tensor, weight: Tensor | None, n_axes: int, eps: float, centres: bool
) -> Tensor:
    from dlshap_core.kernels import triton_rows

    n_inner, (x_rows, r_rows, gradient_rows) = operators.as_rows(n_axes, x, r, gradient)
    n_groups = 1 if weight is None or weight.ndim == n_axes else len(weight)
    weight = None if weight is None else weight.contiguous().view(-1)
    return triton_rows.normalise(gradient_rows, x_rows, r_rows, weight, n_groups, eps, centres, n_inner).view(r.shape)


# Over the last axes, each with a weight, or over these of each group of channels: (groups, channels, 1, ...).
_back_through_norm = operators.define(
    "normalise(Tensor gradient, Tensor x, Tensor r, Tensor? weight, int n_axes, float eps, bool centres) -> Tensor",
    _norm_by_torch,
    _norm_by_triton,
)


standardise.dlshap_kind = PairRule(_standardise_rule, "normalisation")  # type: ignore[attr-defined]
_variance.dlshap_kind = PairRule(_variance_rule, "normalisation")  # type: ignore[attr-defined]
standardise_groups.dlshap_kind = PairRule(  # type: ignore[attr-defined]
    _groups_rule, "normalisation", in_own_format=lambda z: z.contiguous() if z.ndim == 3 else z
)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, axis: int | None = None) -> Tensor:
    """x weight + bias, with weight and bias along `axis`, or as they broadcast."""
    for parameter, combine in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            if axis is not None:
                parameter = parameter.reshape(-1, *[1] * (x.ndim - axis - 1))
            x = combine(x, parameter)
    return x
