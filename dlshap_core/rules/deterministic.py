"""Forms of operations that CUDA has no deterministic kernel of, forward or back, made of operations that it has.

They are used on a GPU under torch.use_deterministic_algorithms alone; a CPU has deterministic kernels of all of these.
torch's documentation of that setting lists the operations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.rules.call import Call

_CUBIC = -0.75  # torch's constant of bicubic interpolation


def is_needed(x: object) -> bool:
    """Whether CUDA would refuse an operation on it that it has no deterministic kernel of."""
    return isinstance(x, Tensor) and x.is_cuda and torch.are_deterministic_algorithms_enabled()


def with_form(call: Call) -> Call:
    """The call by a deterministic form, where it needs one and there is one."""
    first = call.args[0] if call.args else call.kwargs.get("input")
    form = FORMS.get(call.name)
    if form is None or not is_needed(first):
        return call

    def function(*args: Any, **kwargs: Any) -> Any:
        output = form(*args, **kwargs)
        return args[0].copy_(output) if call.in_place else output

    return Call(function, call.name, call.in_place, call.args, call.torch_names(), call.inputs)


def running(input: Tensor, dim: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The values combined with all before them along an axis, in log2(n) steps of the same order each time."""
    n, step = input.shape[dim] if input.ndim else 1, 1
    output = input.clone()
    while step < n:
        first, later = output.narrow(dim, 0, step), output.narrow(dim, step, n - step)
        output = torch.cat([first, combine(output.narrow(dim, 0, n - step), later)], dim)
        step *= 2
    return output


def _converted(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """As torch takes it into a running sum or product: under autocast in float32."""
    if dtype is None and x.dtype.itemsize == 2 and torch.is_autocast_enabled(x.device.type):
        dtype = torch.float32
    return x if dtype is None else x.to(dtype)


def cumsum(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    x = _converted(input, dtype)
    return running(x, dim, torch.add) if x.dtype.is_floating_point or x.is_complex() else torch.cumsum(x, dim)


def cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Its gradient by torch takes a running sum."""
    x = _converted(input, dtype)
    return running(x, dim, torch.mul) if x.dtype.is_floating_point or x.is_complex() else torch.cumprod(x, dim)


def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """With places, by sorting, which puts NaN last."""
    if dim is None:
        return torch.median(input)
    values, places = input.sort(dim=dim, stable=True)
    n = values.shape[dim] if values.ndim else 1
    has_nan = values.isnan().any(dim, keepdim=True)
    middle = torch.full_like(has_nan, (n - 1) // 2, dtype=torch.int64).masked_fill(has_nan, n - 1)
    value, place = (z.gather(dim, middle) for z in (values, places))
    return torch.return_types.median((value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim)))


def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """By sorting; some versions of torch have no deterministic kernel of it."""
    values, places = input.sort(dim=dim, stable=True)
    value, place = (z.narrow(dim, k - 1, 1) for z in (values, places))
    return torch.return_types.kthvalue((value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim)))


def running_sum(x: Tensor) -> Tensor:
    """Along the last axis, by torch where that is deterministic."""
    return cumsum(x, -1) if is_needed(x) else x.cumsum(-1)


def _weighted(x: Tensor, axis: int, places: Tensor, weights: Tensor, is_used: Tensor | None = None) -> Tensor:
    """Sums of weighted values of an axis; places, weights and whether they are used: (outputs, values of each)."""
    x = x.movedim(axis, -1)
    picked = x.index_select(-1, places.flatten()).unflatten(-1, places.shape)
    if is_used is not None:  # an infinite value times 0 is no number
        picked = picked.masked_fill(~is_used, 0.0)
    return (picked * weights).sum(-1).to(x.dtype).movedim(-1, axis)


def _mean_of_bins(x: Tensor, axis: int, n: int) -> Tensor:
    """Adaptive average pooling of one axis to n outputs."""
    n_in = x.shape[axis]
    if n_in % n == 0:
        return x.unflatten(axis, (n, n_in // n)).mean(axis + 1 if axis >= 0 else axis)
    width = max(-(-(i + 1) * n_in // n) - i * n_in // n for i in range(n))
    i = torch.arange(n, device=x.device)[:, None]
    starts, ends = i * n_in // n, ((i + 1) * n_in + n - 1) // n
    places = starts + torch.arange(width, device=x.device)
    weights = (1 / (ends - starts).to(_precise(x))).expand_as(places)
    return _weighted(x, axis, places.clamp_max(n_in - 1), weights, places < ends)


def _precise(x: Tensor) -> torch.dtype:
    """The numbers in which torch's kernels compute weights."""
    return torch.promote_types(x.dtype, torch.float32)


def adaptive_avg_pool(n_axes: int) -> Callable[..., Tensor]:
    """Of the last axes; sizes may be None: as they are."""

    def form(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
        sizes = [output_size] * n_axes if isinstance(output_size, int) else list(output_size)
        if len(sizes) == 1:
            sizes *= n_axes
        output = input
        for axis, size in zip(range(-n_axes, 0), sizes, strict=True):
            if size is not None and size != output.shape[axis]:
                output = _mean_of_bins(output, axis, size)
        return output if output is not input else input.clone()

    return form


def avg_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """First over the last two axes, then over the one before: what a window is divided by is a product."""
    kernel = _three(kernel_size)
    strides, pads = _three(stride) if stride else kernel, _three(padding)
    depth, height, width = input.shape[-3:]
    options: dict[str, bool] = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    planes = input.reshape(input.shape[:-2].numel(), 1, height, width)
    planes = F.avg_pool2d(
        planes, kernel[1:], strides[1:], pads[1:], divisor_override=None if divisor_override is None else 1, **options
    )
    size = planes.shape[-2:]
    columns = planes.reshape(input.shape[:-3].numel(), 1, depth, size.numel())
    each = (kernel[0], 1), (strides[0], 1), (pads[0], 0)
    columns = F.avg_pool2d(columns, *each, divisor_override=divisor_override, **options)
    return columns.reshape(*input.shape[:-3], columns.shape[-2], *size)


def _three(size: int | Sequence[int]) -> list[int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return sizes * 3 if len(sizes) == 1 else sizes


def _sources(n_in: int, n_out: int, x: Tensor, align_corners: bool, scale: float | None) -> Tensor:
    """Where the outputs of an interpolation lie between its inputs, in the numbers of torch's kernels: (n_out,)."""
    i = torch.arange(n_out, device=x.device, dtype=_precise(x))
    if align_corners:
        return i * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    return (i + 0.5) * (1 / scale if scale else n_in / n_out) - 0.5


def _linear(at: Tensor, n_in: int) -> tuple[Tensor, Tensor]:
    at = at.clamp(min=0)
    first = at.floor().clamp(max=n_in - 1)
    part = (at - first).clamp(0, 1)
    return torch.stack([first, (first + 1).clamp(max=n_in - 1)], -1), torch.stack([1 - part, part], -1)


def _cubic(at: Tensor, n_in: int) -> tuple[Tensor, Tensor]:
    first = at.floor()
    t = at - first

    def near(d: Tensor) -> Tensor:
        return ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((_CUBIC * d - 5 * _CUBIC) * d + 8 * _CUBIC) * d - 4 * _CUBIC

    places = torch.stack([first + k for k in range(-1, 3)], -1).clamp(0, n_in - 1)
    return places, torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], -1)


def upsample(n_axes: int, between: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Interpolation of the last axes, one after the other; arguments as of torch._C._nn.upsample_linear1d."""

    def form(
        input: Tensor,
        output_size: Sequence[int] | None,
        align_corners: bool,
        scale_factors: Sequence[float] | float | None = None,
        *more: float | None,
    ) -> Tensor:
        given = [*scale_factors] if isinstance(scale_factors, Sequence) else [scale_factors, *more][:n_axes]
        scales: list[float | None] = [*given, *[None] * (n_axes - len(given))]
        output = input
        for axis, scale, index in zip(range(-n_axes, 0), scales, range(n_axes), strict=True):
            n_in = output.shape[axis]
            n_out = output_size[index] if output_size is not None else math.floor(n_in * float(scale or 1))
            places, weights = between(_sources(n_in, n_out, input, align_corners, scale), n_in)
            output = _weighted(output, axis, places.long(), weights)
        return output

    return form


def reflection_pad(input: Tensor, padding: Sequence[int]) -> Tensor:
    """Each axis joined with what is mirrored of it; padding from the last axis on, as torch takes it."""
    output = input
    for axis, before, after in zip(range(-1, -4, -1), padding[::2], padding[1::2], strict=False):
        n = output.shape[axis]
        if not (0 <= before < n and 0 <= after < n):
            return F.pad(input, list(padding), "reflect")  # which crops, or says what is wrong
        left = output.narrow(axis, 1, before).flip(axis)
        right = output.narrow(axis, n - 1 - after, after).flip(axis)
        output = torch.cat([left, output, right], axis)
    return output


def replication_pad(input: Tensor, padding: Sequence[int]) -> Tensor:
    """Each axis with its ends repeated, or cropped where the padding is negative."""
    output = input
    for axis, before, after in zip(range(-1, -4, -1), padding[::2], padding[1::2], strict=False):
        n = output.shape[axis]
        places = torch.arange(-before, n + after, device=input.device).clamp(0, n - 1)
        output = output.index_select(axis, places)
    return output


def stft(
    input: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    **options: Any,
) -> Tensor:
    if center:
        input = pad(input.unsqueeze(0), [n_fft // 2, n_fft // 2], pad_mode).squeeze(0)
    return torch.stft(input, n_fft, hop_length, win_length, window, center=False, **options)


_PADDINGS = {"reflect": reflection_pad, "replicate": replication_pad}


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    form = _PADDINGS.get(mode)
    return F.pad(input, list(pad), mode, value) if form is None else form(input, pad)


FORMS: Mapping[str, Callable[..., Any]] = {
    "cumsum": cumsum,
    "cumprod": cumprod,
    **{f"adaptive_avg_pool{d}d": adaptive_avg_pool(d) for d in (1, 2, 3)},
    "median": median,
    "kthvalue": kthvalue,
    "avg_pool3d": avg_pool3d,
    "upsample_linear1d": upsample(1, _linear),
    "upsample_bilinear2d": upsample(2, _linear),
    "upsample_trilinear3d": upsample(3, _linear),
    "upsample_bicubic2d": upsample(2, _cubic),
    **{f"reflection_pad{d}d": reflection_pad for d in (1, 2, 3)},
    **{f"replication_pad{d}d": replication_pad for d in (1, 2, 3)},
    "pad": pad,
    "stft": stft,
}
