"""The Triton forms of the fused rules, in Triton's interpreter, against the rules by torch's operations in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.rules import masks, maxima, normalization, operators, products, secants, softmaxes

if torch.cuda.is_available():
    pytest.skip("kernels are compiled here, not interpreted", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, and when a kernel is defined
pytest.importorskip("triton", reason="comes with torch's builds for GPUs: pip install triton")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
NUMBERS = {
    "leaky_relu": [0.1],
    "clamp": [-0.7, 0.9],
    "softshrink": [0.5],
    "elu": [1.3, 0.9, 0.7],
    "softplus": [1.5, 20.0],
    "jump": [0.0, 1.0, 3.0, 0.1],
}
# Relative to the multiplier, at most, in float32; where it is a small difference of the values of f, beside those.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 1e-5}
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-11, torch.bfloat16: 1e-2}  # of results in the dtype itself
SPECIAL = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 1e30, 88.0, -88.0, 100.0, -100.0, 1e-30])


def activations(*shape: int, n_references: int = 2) -> tuple[Tensor, Tensor]:
    """(S, 1, ...) and (S, R, ...), some alike, some nearly alike."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(3, 1, *shape, generator=generator)
    r = 2 * torch.randn(3, n_references, *shape, generator=generator)
    n = shape[-1] // 4
    r[:, 0, ..., :n] = x[:, 0, ..., :n]
    r[:, 0, ..., n : 2 * n] = x[:, 0, ..., n : 2 * n] * (1 + 1e-6)
    r[:, -1, ..., :n] = x[:, 0, ..., :n] + 0.01
    return x, r


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype, least: float = 1.0) -> None:
    bound = TOLERANCE[dtype] * expected.abs().clamp_min(least)
    assert ((found.double() - expected).abs() <= bound).all(), (found.double() - expected).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", sorted(operators.SECANTS))
def test_secants(rule: str, dtype: torch.dtype) -> None:
    x, r = (z.to(dtype) for z in activations(300))
    numbers = NUMBERS.get(rule, [])
    expected = getattr(secants, rule)(x.double(), r.double(), *numbers)
    found = operators._secant_by_triton(None, x, r, rule, numbers)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    is_tame = expected.abs() < 1e6
    assert_near(found[is_tame], expected[is_tame], dtype, 1.0)
    gradient = torch.randn(r.shape, dtype=torch.float64).to(dtype)
    taken = operators._secant_by_triton(gradient, x, r, rule, numbers)
    torch.testing.assert_close(
        taken, (gradient * found).to(dtype), rtol=1e-6 if dtype != torch.bfloat16 else 1e-2, atol=0
    )


@pytest.mark.parametrize("rule", sorted(operators.SECANTS))
def test_secants_of_special_values(rule: str) -> None:
    x, r = (z.contiguous().view(1, -1) for z in torch.broadcast_tensors(SPECIAL[:, None], SPECIAL))
    numbers = NUMBERS.get(rule, [])
    expected = getattr(secants, rule)(x, r, *numbers)
    found = operators._secant_by_triton(None, x, r, rule, numbers)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, equal_nan=True)
    if rule == "jump":
        assert found.isfinite().all()


@pytest.mark.parametrize("case", ["one row", "no rows", "no elements", "strided", "other order", "second axis"])
def test_layouts_of_activations(case: str) -> None:
    x, r = activations(6, 8)
    if case == "one row":
        x, r = x[:1], r[:1, :1]
    elif case == "no rows":
        x, r = x[:0], r[:0]
    elif case == "no elements":
        x, r = x[..., :0], r[..., :0]
    elif case == "strided":
        x, r = x[..., ::2], r[..., ::2]
    elif case == "other order":
        x, r = (z.transpose(-1, -2).contiguous().transpose(-1, -2) for z in (x, r))
    elif case == "second axis":
        x, r = x.permute(2, 0, 1, 3), r.permute(2, 0, 1, 3)
    gradient = torch.randn(r.shape)
    found = operators._secant_by_triton(gradient, x, r, "tanh", [])
    torch.testing.assert_close(found, gradient * secants.tanh(x, r))
    if case != "no elements":
        forms = softmaxes._softmax_by_triton, softmaxes._softmax_by_torch
        found, expected = (form(gradient, x, r, "softmax") for form in forms)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        found = normalization._norm_by_triton(gradient, x, r, None, 1, 1e-5, True)
        expected = normalization._norm_by_torch(gradient, x, r, None, 1, 1e-5, True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


SOFTMAXES = ["softmax", "log_softmax", "logsumexp"]


def gradient_of(kind: str, r: Tensor) -> Tensor:
    shape = (*r.shape[:-1], 1) if kind == "logsumexp" else r.shape
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(r.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (2,), (5, 17), (2, 5000)])
@pytest.mark.parametrize("kind", SOFTMAXES)
def test_softmaxes(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, r = (z.to(dtype) for z in activations(*shape))
    gradient = gradient_of(kind, r)
    expected = softmaxes._softmax_by_torch(gradient.double(), x.double(), r.double(), kind)
    for form in (softmaxes._softmax_by_triton, softmaxes._softmax_on_cpu):
        found = form(gradient, x, r, kind)
        assert found.dtype == dtype
        bound = ROUNDING[dtype] * expected.abs().amax().clamp_min(1).item()
        torch.testing.assert_close(found.double(), expected, rtol=ROUNDING[dtype], atol=bound)


@pytest.mark.parametrize("kind", SOFTMAXES)
def test_softmaxes_of_masked_and_far_logits(kind: str) -> None:
    x, r = activations(4, 16)
    x[..., -3:] = r[..., -3:] = -math.inf  # masked on both sides
    x[:, :, 0, 2] = -math.inf  # and on one
    x[:, :, 1] *= 100
    x[:, :, 2] = r[:, :, 2] = -math.inf
    gradient = gradient_of(kind, r)
    expected = softmaxes._softmax_by_torch(gradient.double(), x.double(), r.double(), kind)
    there = gradient[:, :, 2]  # of equal logits
    mean = there.mean(-1, keepdim=True)
    equal = {"softmax": (there - mean) / 16, "log_softmax": there - mean, "logsumexp": mean / 16}
    expected[:, :, 2] = equal[kind]
    forms = [softmaxes._softmax_by_triton]
    if kind != "softmax":  # whose own value is no number there
        forms.append(softmaxes._softmax_on_cpu)
    for form in forms:
        torch.testing.assert_close(form(gradient, x, r, kind).double(), expected, rtol=1e-4, atol=1e-6)
    x[0, 0, 0, 0] = math.nan
    assert softmaxes._softmax_by_triton(gradient, x, r, kind)[0, :, 0].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (4, 7), (3, 5000)])
@pytest.mark.parametrize("centres", [True, False])
def test_norms(shape: tuple[int, ...], dtype: torch.dtype, centres: bool) -> None:
    x, r = (3 + z.to(dtype) for z in activations(*shape))
    r[0] = r[0, :, ..., :1]  # a row without variance
    gradient, weight = (torch.randn(s, dtype=torch.float64).to(dtype) for s in (r.shape, shape[-1:]))
    wide = (gradient.double(), x.double(), r.double(), weight.double())
    expected = normalization._norm_by_torch(*wide, 1, 1e-5, centres)
    found = normalization._norm_by_triton(gradient, x, r, weight, 1, 1e-5, centres)
    assert found.dtype == dtype
    scale = 1 + expected.abs().amax(-1, keepdim=True)
    assert ((found.double() - expected).abs() <= ROUNDING[dtype] * scale).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n_groups", "n_channels", "length"), [(4, 2, 5), (6, 1, 7), (1, 3, 2000), (3, 4, 1)])
def test_norms_of_groups(n_groups: int, n_channels: int, length: int, dtype: torch.dtype) -> None:
    x, r = (z.to(dtype).unflatten(-1, (n_channels, length)) for z in activations(n_groups, n_channels * length))
    weight = torch.randn(n_groups, n_channels, 1, dtype=torch.float64).to(dtype)
    gradient = torch.randn(r.shape, dtype=torch.float64).to(dtype)
    wide = (gradient.double(), x.double(), r.double(), weight.double())
    expected = normalization._norm_by_torch(*wide, 2, 1e-2, True)
    found = normalization._norm_by_triton(gradient, x, r, weight, 2, 1e-2, True)
    scale = 1 + expected.abs().amax((-1, -2), keepdim=True)
    assert ((found.double() - expected).abs() <= ROUNDING[dtype] * scale).all()


OPERANDS = {"mean": 1, "product": 2, "quotient": 2, "quotient of a constant": 2, "select": 3}
OPERANDS |= {"select or a constant": 3, "select a constant": 3, "select a number": 3, "select by a step": 3}
OPERANDS |= {"select the source": 3, "select or the source": 3}
STEPS = ["select by a step", "select the source", "select or the source"]


def both_forms(name: str, operands: list[tuple[Tensor, Tensor]], gradient: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """By Triton, and by torch in float64."""
    forms: list[Callable[..., list[Tensor]]]
    if name == "mean":
        forms = [
            lambda _, x, r: [products._mean_by_triton(x, r)],
            lambda _, x, r: [products._mean_by_torch(x, r)],
        ]
    elif name == "product":
        forms = [products._product_by_triton, products._product_by_torch]
    elif name.startswith("quotient"):
        forms = [products._quotient_by_triton, products._quotient_by_torch]
    else:
        forms = [masks._select_by_triton, masks._select_by_torch]
    sides = sides_of(name, operands)
    wide = [z.double() if isinstance(z, Tensor) else z for z in sides]
    return forms[0](gradient, *sides), forms[1](gradient.double(), *wide)


def sides_of(name: str, operands: list[tuple[Tensor, Tensor]]) -> list[Any]:
    """The arguments of an operator behind the gradient."""
    sides: list[Any] = [z for pair in operands for z in pair]
    constant = {"quotient of a constant": 0, "select a constant": 2, "select or a constant": 4, "select a number": 2}
    if name in constant:
        sides[constant[name]] = None
    if name == "select a number":
        sides[3] = torch.full((), 0.5, dtype=sides[3].dtype)
    source = {"select the source": slice(2, 4), "select or the source": slice(4, 6)}
    if name in source:
        sides[source[name]] = None, None
    if name.startswith("select"):
        sides.append([1.0, 1.0, 0.0, 0.25] if name in STEPS else [])
    return sides


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OPERANDS)
def test_rules_of_several_operands(name: str, dtype: torch.dtype) -> None:
    operands = [activations(4, 50, n_references=3) for _ in range(OPERANDS[name])]
    operands[-1] = operands[-1][0].flip(-1), operands[-1][1].flip(-1).transpose(-1, -2).contiguous().transpose(-1, -2)
    if name.startswith("select") and name not in STEPS:
        operands[0] = (operands[0][0] > 0).float(), (operands[0][1] > 0.5).float()
    operands = [(x.to(dtype), r.to(dtype)) for x, r in operands]
    gradient = torch.randn(operands[0][1].shape, dtype=torch.float64).to(dtype)
    found, expected = both_forms(name, operands, gradient)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("name", OPERANDS)
def test_several_operands_of_special_values(name: str) -> None:
    """As torch's form in single precision, with one reference; nothing in both is empty."""
    n = OPERANDS[name]
    generator = torch.Generator().manual_seed(0)
    drawn = SPECIAL[torch.randint(0, len(SPECIAL), (n, 2, 1, 4000), generator=generator)]
    operands = [(x, r) for x, r in drawn]
    if name.startswith("select") and name not in STEPS:
        operands[0] = (operands[0][0] > 0).float(), (operands[0][1] > 0).float()
    gradient = torch.randn(1, 4000, generator=generator)
    sides = sides_of(name, operands)
    kind = name.partition(" ")[0]
    module = masks if kind == "select" else products
    given = sides if kind == "mean" else [gradient, *sides]
    found, expected = (getattr(module, f"_{kind}_by_{form}")(*given) for form in ("triton", "torch"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n_channels", "length", "size"), [(40, 21, 4), (3, 150, 2), (1, 9, 9), (5, 7, 3), (2, 3, 4)])
def test_max_pooling_of_blocks(n_channels: int, length: int, size: int, dtype: torch.dtype) -> None:
    x, r = (z.flatten(0, 1) for z in activations(n_channels, length))
    x[:, :, ::3] = x[:, :, ::3].relu()
    r[:, :, ::3] = r[:, :, ::3].relu()
    r[::2, :, length // 2 :] = x[:, :, length // 2 :] * (1 + 1e-7)  # stands still, but for rounding
    x, r = x.to(dtype), r.to(dtype)
    gradient = torch.randn(len(r), n_channels, length // size, dtype=torch.float64).to(dtype)
    found = maxima._blocks_by_triton(gradient, x, r, size)
    expected = maxima._blocks_by_torch(gradient, x, r, size) if length >= size else torch.zeros_like(r)
    torch.testing.assert_close(found, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


# Kernel size, stride, padding, dilation and whether the last window may be shorter.
WINDOWS = [
    ((3,), (2,), (1,), (1,), False),
    ((4,), (1,), (2,), (1,), False),
    ((3,), (2,), (0,), (3,), True),
    ((21,), (21,), (0,), (1,), False),
    ((2,), (5,), (0,), (1,), False),
    ((3, 2), (2, 1), (1, 1), (1, 2), False),
    ((2, 3), (2, 3), (0, 0), (1, 1), True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("window", WINDOWS)
def test_max_pooling_of_windows(window: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> None:
    size, stride, padding, dilation, ceil_mode = window
    inputs = (21,) if len(size) == 1 else (7, 9)
    pool = F.max_pool1d_with_indices if len(size) == 1 else F.max_pool2d_with_indices
    x, r = (z.flatten(0, 1).to(dtype) for z in activations(5, torch.Size(inputs).numel()))
    x[:, :, ::3], r[:, :, ::3] = x[:, :, ::3].relu(), r[:, :, ::3].relu()
    r[::2, :, 10:] = x[:, :, 10:] * (1 + 1e-7)  # stands still, but for rounding
    x[0, :, 4], r[1, 2, 3] = -math.inf, -math.inf
    x, r = x.unflatten(-1, inputs), r.unflatten(-1, inputs)
    (_, places_x), (out, places_r) = (pool(z, size, stride, padding, dilation, ceil_mode) for z in (x, r))
    gradient = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    spans = [1 + (n - 1) * step for n, step in zip(size, dilation, strict=True)]
    given = gradient, x, r, places_x, places_r, spans, [*stride], [*padding]
    expected = maxima._windows_by_torch(*given)
    torch.testing.assert_close(maxima._windows_by_triton(*given), expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    if dtype != torch.bfloat16:
        torch.testing.assert_close(maxima._windows_on_cpu(*given), expected)
    assert expected.count_nonzero() > out.numel() / 4


def test_max_pooling_of_ties_and_infinities() -> None:
    finite = SPECIAL[~SPECIAL.isnan()]
    drawn = finite[torch.randint(0, len(finite), (3, 10, 200), generator=torch.Generator().manual_seed(0))]
    x, r = drawn[:1], drawn[1:]
    gradient = torch.randn(2, 10, 50)
    found, expected = (form(gradient, x, r, 4) for form in (maxima._blocks_by_triton, maxima._blocks_by_torch))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # half a minute for each generation of GPUs
@pytest.mark.parametrize("capability", [70, 80, 90])
def test_every_kernel_compiles_for_real_gpus(capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_triton.py"), str(capability)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    kernels = ["_mean", "_normalise", "_pool", "_product", "_quotient", "_route"]
    kernels += ["_secants", "_select", "_softmax", "_standing"]
    assert done.stdout.split() == kernels
