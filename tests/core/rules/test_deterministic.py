"""Forms of operations that CUDA has no deterministic kernel of: the values and gradients of torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.rules.deterministic import FORMS, running

N, C, LENGTH = 2, 3, 23
_upsample = torch._C._nn  # what interpolate calls

CASES: dict[str, tuple[str, Callable[..., Any], tuple[int, ...], tuple[Any, ...]]] = {
    "sum along the last axis": ("cumsum", torch.cumsum, (N, C, LENGTH), (-1,)),
    "sum along another axis": ("cumsum", torch.cumsum, (N, C, LENGTH), (1,)),
    "sum of one value": ("cumsum", torch.cumsum, (N, 1), (-1,)),
    "sum of none": ("cumsum", torch.cumsum, (N, 0), (-1,)),
    "product": ("cumprod", torch.cumprod, (N, LENGTH), (-1,)),
    "bins of one size": ("adaptive_avg_pool1d", F.adaptive_avg_pool1d, (N, C, 24), (6,)),
    "bins of two sizes": ("adaptive_avg_pool1d", F.adaptive_avg_pool1d, (N, C, LENGTH), (5,)),
    "more bins than values": ("adaptive_avg_pool1d", F.adaptive_avg_pool1d, (N, C, 5), (7,)),
    "one bin": ("adaptive_avg_pool1d", F.adaptive_avg_pool1d, (C, LENGTH), ([1],)),
    "bins of planes": ("adaptive_avg_pool2d", F.adaptive_avg_pool2d, (N, C, 7, 9), ((3, None),)),
    "bins of planes, both axes": ("adaptive_avg_pool2d", F.adaptive_avg_pool2d, (C, 7, 9), (4,)),
    "bins of volumes": ("adaptive_avg_pool3d", F.adaptive_avg_pool3d, (N, C, 5, 4, 7), ((2, 4, 3),)),
    "windows": ("avg_pool3d", F.avg_pool3d, (N, C, 5, 6, 7), (2,)),
    "windows with padding": ("avg_pool3d", F.avg_pool3d, (N, C, 5, 6, 7), (3, 2, 1, False, False)),
    "windows past the end": ("avg_pool3d", F.avg_pool3d, (N, C, 5, 6, 7), ((2, 3, 4), 2, (1, 0, 2), True, True)),
    "windows past the end, by what they hold": ("avg_pool3d", F.avg_pool3d, (C, 5, 6, 7), (3, 2, 1, True, False)),
    "windows by a divisor": ("avg_pool3d", F.avg_pool3d, (N, C, 5, 6, 7), (2, 2, 0, False, True, 5)),
    "linear": ("upsample_linear1d", _upsample.upsample_linear1d, (N, C, LENGTH), ([46], False, 2.0)),
    "linear by corners": ("upsample_linear1d", _upsample.upsample_linear1d, (N, C, LENGTH), ([40], True)),
    "linear to fewer": ("upsample_linear1d", _upsample.upsample_linear1d, (N, C, LENGTH), ([9], False)),
    "linear to one": ("upsample_linear1d", _upsample.upsample_linear1d, (N, C, LENGTH), ([1], True)),
    "linear by a factor": ("upsample_linear1d", _upsample.upsample_linear1d, (N, C, LENGTH), (None, False, [1.7])),
    "bilinear": ("upsample_bilinear2d", _upsample.upsample_bilinear2d, (N, C, 4, 7), ([9, 5], False, None)),
    "trilinear": ("upsample_trilinear3d", _upsample.upsample_trilinear3d, (N, C, 3, 4, 5), ([5, 4, 7], False, None)),
    "bicubic": ("upsample_bicubic2d", _upsample.upsample_bicubic2d, (N, C, 4, 7), ([9, 15], False, None)),
    "bicubic by corners": ("upsample_bicubic2d", _upsample.upsample_bicubic2d, (N, C, 6, 7), ([9, 5], True, None)),
    "mirrored": ("reflection_pad1d", _upsample.reflection_pad1d, (N, C, LENGTH), ([4, 22],)),
    "mirrored planes": ("pad", F.pad, (N, C, 5, 6), ((1, 2, 3, 0), "reflect")),
    "mirrored volumes": ("pad", F.pad, (N, C, 4, 5, 6), ((1, 2, 3, 0, 2, 2), "reflect")),
    "repeated ends": ("pad", F.pad, (N, C, 5, 6), ((1, 9, 3, 0), "replicate")),
    "repeated ends, cropped": ("pad", F.pad, (N, C, 5, 6), ((-1, 2, 3, -2), "replicate")),
    "zeros": ("pad", F.pad, (N, C, 6), ((1, 2), "constant", 0.5)),
    "median": ("median", torch.median, (N, C, LENGTH), (-1,)),
    "smallest but two": ("kthvalue", torch.kthvalue, (N, C, LENGTH), (3,)),
    "smallest of another axis": ("kthvalue", torch.kthvalue, (N, C, LENGTH), (1, 1, True)),
    "median of an even number": ("median", torch.median, (N, C, 8), (1, True)),
}


def values(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def both(case: str, x: Tensor) -> tuple[Tensor, Tensor]:
    name, plain, _, rest = CASES[case]
    return values(FORMS[name](x, *rest)), values(plain(x, *rest))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_torchs_own(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = CASES[case][2]
    axes = tuple(reversed(range(len(shape))))
    for x in (torch.randn(shape, dtype=dtype), torch.randn(shape[::-1], dtype=dtype).permute(axes)):
        x.requires_grad_()
        found, expected = both(case, x)
        close: dict[str, float] = (
            {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 3e-6}
        )
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, **close)
        weights = torch.randn(found.shape, dtype=dtype)
        gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)]
        torch.testing.assert_close(*gradients, **close)


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch(case: str) -> None:
    name, _, shape, rest = CASES[case]
    if len(shape) in (4, 5) and shape[0] == N:
        x = torch.randn(0, *shape[1:])
        assert values(FORMS[name](x, *rest)).shape[0] == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_goes_where_torch_takes_it(case: str, odd: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(CASES[case][2], dtype=torch.float64)
    if not x.numel():
        return
    x.view(-1)[x.numel() // 2 + 1 :: 7] = odd
    found, expected = both(case, x)
    is_finite = expected.isfinite()
    if "upsample" in CASES[case][0]:  # torch itself has NaN there or not, by the axis that it takes first
        is_finite &= found.isfinite()
        assert is_finite.any()
        torch.testing.assert_close(found[is_finite], expected[is_finite], rtol=1e-12, atol=1e-12)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_running_sum_takes_the_same_order_each_time_and_loses_little() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 5000)
    exact = x.double().cumsum(-1)
    found = running(x, -1, torch.add)
    assert torch.equal(found, running(x, -1, torch.add))
    assert ((found - exact).abs() / exact).max() < 13 * torch.finfo(torch.float32).eps
    assert torch.equal(FORMS["cumsum"](torch.arange(5), 0), torch.arange(5).cumsum(0)), "whole numbers are exact"


def test_half_precision_under_autocast_is_summed_in_float32() -> None:
    x = torch.rand(2, 300).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = FORMS["cumsum"](x, -1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x.float().cumsum(-1))
