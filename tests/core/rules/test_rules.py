"""Rules on multipliers, not only on their sums: each against a twin that says the same in simpler operations.

Both members of a pair are run in the same place of the same network, in float64, with several references a batch and
with batches that split a sequence's references.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.toolbox import (
    Sandwich,
    explain,
    multipliers,
    relative_difference,
    seeded,
    sequences,
    shuffled,
    worst_delta,
)

Function = Callable[[Tensor], Tensor]


def so_far(z: Tensor, function: Function) -> Tensor:
    """Of the places up to each."""
    return torch.stack([function(z[..., : k + 1]) for k in range(z.shape[-1])], -1)


def standardised(z: Tensor, eps: float = 1e-5) -> Tensor:
    centred = z - z.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)


def in_place_residual(z: Tensor) -> Tensor:
    return F.relu_(z.add_(z.roll(1, -1)))


def in_place_views(z: Tensor) -> Tensor:
    """Written through views of parts, of chunks and transposed, some given by name; what was read before stays."""
    before = z.clone()
    torch.relu_(input=z[:, 1:])
    first, second = z.chunk(2, -1)
    second.tanh_()
    F.leaky_relu(input=first.mT, negative_slope=0.2, inplace=True)
    return z + before


def source_of_pieces(z: Tensor) -> Tensor:
    """Written into after it was taken apart."""
    pieces = z.unbind(1)
    z.tanh_()
    return torch.stack(pieces, 1)


def in_place_product(z: Tensor) -> Tensor:
    """Of a part; what flows to the rest of the activation stays."""
    z[:, 1:] *= z[:, :1].sigmoid()
    return z


def in_place_only_piece(z: Tensor) -> Tensor:
    for piece in z.split(z.shape[-1], -1):
        piece.tanh_()
    return z


def parts_out_of_place(z: Tensor) -> Tensor:
    first, second = torch.cat([z[:, :1], F.relu(z[:, 1:])], 1).chunk(2, -1)
    return torch.cat([F.leaky_relu(first, 0.2), second.tanh()], -1) + z


def attention(z: Tensor) -> Tensor:
    return torch.softmax(z @ z.mT / math.sqrt(z.shape[-1]), -1) @ z


def module_function(module: nn.Module) -> Function:
    return lambda z: module.eval().to(z.dtype)(z)


ONES = torch.ones(36, dtype=torch.float64)
SLOPES = torch.linspace(0, 1, 36, dtype=torch.float64)
BAND = torch.ones(3, 3, dtype=torch.float64).tril(1).triu(-1)[..., None]  # each channel and its neighbours
HALVES: tuple[slice, slice] = (slice(0, 18), slice(18, 36))
TWINS: dict[str, tuple[Function, Function]] = {
    # softmax and its kin
    "softmax over positions": (lambda z: z.softmax(-1), lambda z: z.log_softmax(-1).exp()),
    "softmax over channels": (lambda z: F.softmax(z, 1), lambda z: (z - z.logsumexp(1, keepdim=True)).exp()),
    "softmin": (lambda z: F.softmin(z, -1), lambda z: (-z).log_softmax(-1).exp()),
    "log_softmax": (lambda z: z.log_softmax(-1), lambda z: z - z.exp().sum(-1, keepdim=True).log()),
    "logsumexp": (lambda z: torch.logsumexp(z, -1), lambda z: z.exp().sum(-1).log()),
    "logsumexp of two axes": (lambda z: torch.logsumexp(z, (1, 2)), lambda z: z.exp().sum((1, 2)).log()),
    "logaddexp": (lambda z: torch.logaddexp(z, z.flip(-1)), lambda z: (z.exp() + z.flip(-1).exp()).log()),
    "logaddexp2": (
        lambda z: torch.logaddexp2(z, z.flip(-1)),
        lambda z: (torch.exp2(z) + torch.exp2(z.flip(-1))).log2(),
    ),
    "logcumsumexp": (lambda z: z.logcumsumexp(-1), lambda z: so_far(z, lambda part: part.logsumexp(-1))),
    "logcumsumexp of a wide range": (
        lambda z: torch.logcumsumexp(300 * z, -1),
        lambda z: so_far(300 * z, lambda part: part.logsumexp(-1)),
    ),
    "logcumsumexp of what is masked": (
        lambda z: z.masked_fill(torch.arange(36) < 3, -math.inf).logcumsumexp(-1)[..., 3:],
        lambda z: so_far(z[..., 3:], lambda part: part.logsumexp(-1)),
    ),
    "cummax": (lambda z: z.cummax(-1).values, lambda z: so_far(z, lambda part: part.amax(-1))),
    "cummax of many zeros": (
        lambda z: torch.cummax(z.relu(), -1)[0],
        lambda z: so_far(z.relu(), lambda part: part.amax(-1)),
    ),
    "cummin over channels": (lambda z: z.cummin(1).values, lambda z: so_far(z.mT, lambda part: part.amin(-1)).mT),
    "aminmax": (
        lambda z: torch.cat(torch.aminmax(z, dim=-1), 1),
        lambda z: torch.cat([z.amin(-1), z.amax(-1)], 1),
    ),
    "softmax of merged rows": (
        lambda z: z.reshape(-1, z.shape[-1]).softmax(-1).reshape(z.shape),
        lambda z: z.softmax(-1),
    ),
    "matrix times vector, one sequence at a time": (
        lambda z: torch.stack([one @ one.mean(0) for one in z]),
        lambda z: (z * z.mean(1, keepdim=True)).sum(-1),
    ),
    # activations
    "swish by hand": (lambda z: z * torch.sigmoid(1.7 * z), lambda z: F.silu(1.7 * z) / 1.7),
    "gelu by hand": (lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))), F.gelu),
    "mish by hand": (lambda z: z * torch.tanh(F.softplus(z)), F.mish),
    "glu": (lambda z: F.glu(z, -1), lambda z: z[..., HALVES[0]] * torch.sigmoid(z[..., HALVES[1]])),
    "relu by clamp": (lambda z: z.clamp(min=0), F.relu),
    "relu by maximum": (lambda z: torch.maximum(z, torch.zeros_like(z)), F.relu),
    "abs by sign": (lambda z: torch.sign(z) * z, torch.abs),
    "elu by where": (lambda z: torch.where(z > 0, z, torch.expm1(z.clamp(max=0))), F.elu),
    "exp2": (lambda z: 2**z, torch.exp2),
    "square": (lambda z: z**2, lambda z: z * z),
    "cube": (lambda z: z**3, lambda z: torch.pow(z, 3.0)),
    # normalisation
    "layer_norm": (lambda z: F.layer_norm(z, z.shape[-1:]), standardised),
    "layer_norm with weights": (
        lambda z: F.layer_norm(z, z.shape[-1:], SLOPES, ONES),
        lambda z: standardised(z) * SLOPES + 1,
    ),
    "rms_norm": (
        lambda z: F.rms_norm(z, z.shape[-1:], eps=1e-3),
        lambda z: z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-3),
    ),
    "group_norm": (lambda z: F.group_norm(z, 3), lambda z: F.instance_norm(z)),
    "instance_norm": (lambda z: F.instance_norm(z), standardised),
    "batch_norm": (
        lambda z: F.batch_norm(z, ONES[:3], 4 * ONES[:3], eps=0.0),
        lambda z: (z - 1) / 2,
    ),
    "std": (
        lambda z: z.std(-1),
        lambda z: torch.sqrt(((z - z.mean(-1, keepdim=True)) ** 2).sum(-1) / (z.shape[-1] - 1)),
    ),
    "var": (lambda z: torch.var(z, dim=1, correction=0), lambda z: (z**2).mean(1) - z.mean(1) ** 2),
    "normalize": (lambda z: F.normalize(z, dim=-1), lambda z: z / z.norm(dim=-1, keepdim=True)),
    "norm of order 3": (lambda z: torch.linalg.vector_norm(z, 3, -1), lambda z: (z.abs() ** 3).sum(-1) ** (1 / 3)),
    "local response norm": (
        lambda z: F.local_response_norm(z, 3, alpha=2.0, beta=0.5, k=1.5),
        lambda z: z / torch.sqrt(1.5 + 2 / 3 * F.conv1d(z**2, BAND)),
    ),
    # products and quotients
    "quotient": (lambda z: z / (1 + z * z), lambda z: z * torch.reciprocal(1 + z**2)),
    "einsum": (lambda z: torch.einsum("ncl,nck->nlk", z, z.tanh()), lambda z: z.transpose(1, 2) @ z.tanh()),
    "matmul": (lambda z: z @ z.mT, lambda z: (z[:, :, None] * z[:, None]).sum(-1)),
    "bmm": (lambda z: torch.bmm(z, z.mT), lambda z: z.matmul(z.transpose(-2, -1))),
    "addcmul": (lambda z: torch.addcmul(z, z, z.flip(-1), value=2), lambda z: z + 2 * (z * z.flip(-1))),
    "lerp": (lambda z: torch.lerp(z, z.flip(-1), 0.3), lambda z: 0.7 * z + 0.3 * z.flip(-1)),
    "cosine similarity": (
        lambda z: F.cosine_similarity(z[..., HALVES[0]], z[..., HALVES[1]], -1),
        lambda z: (F.normalize(z[..., HALVES[0]], dim=-1) * F.normalize(z[..., HALVES[1]], dim=-1)).sum(-1),
    ),
    "attention": (lambda z: F.scaled_dot_product_attention(z, z, z), attention),
    # masks
    "times its mask": (lambda z: z * (z > 0), F.relu),
    "times its mask as a number": (lambda z: z * (~(z <= 0)).float(), F.relu),
    "where": (lambda z: torch.where(z > 0, z, 0.1 * z), lambda z: F.leaky_relu(z, 0.1)),
    "masked_fill": (lambda z: z.masked_fill(z < 0, 0.0), F.relu),
    # maxima
    "amax": (lambda z: z.amax(-1), lambda z: z.max(-1).values),
    "amax of two axes": (lambda z: z.amax((1, 2)), lambda z: z.flatten(1).max(1).values),
    "max by pooling": (lambda z: z.amax(-1), lambda z: F.max_pool1d(z, z.shape[-1]).squeeze(-1)),
    "min": (lambda z: z.min(-1).values, lambda z: -(-z).amax(-1)),
    "minimum": (lambda z: torch.minimum(z, 1 - z), lambda z: -torch.maximum(-z, z - 1)),
    "adaptive even": (lambda z: F.adaptive_max_pool1d(z, 9), lambda z: F.max_pool1d(z, 4)),
    "adaptive uneven": (
        lambda z: F.adaptive_max_pool1d(z, 5),
        lambda z: torch.stack([z[..., a:b].amax(-1) for a, b in [(0, 8), (7, 15), (14, 22), (21, 29), (28, 36)]], -1),
    ),
    "pooling in two dimensions": (
        lambda z: F.max_pool1d(z, 5, 3, 2, 1, True),
        lambda z: F.max_pool2d(z[:, :, None], (1, 5), (1, 3), (0, 2), 1, True).squeeze(2),
    ),
    "pooling in three dimensions": (
        lambda z: F.max_pool1d(z, 4, 2),
        lambda z: F.max_pool3d(z[:, :, None, None], (1, 1, 4), (1, 1, 2)).flatten(2),
    ),
    "dilated pooling": (
        lambda z: F.max_pool1d(z, 3, 2, 0, 3),
        lambda z: torch.stack([z[..., 0:30:2], z[..., 3:33:2], z[..., 6:36:2]]).amax(0),
    ),
    "topk": (lambda z: z.topk(5, -1).values, lambda z: torch.sort(z, -1, descending=True)[0][..., :5]),
    "median": (lambda z: z.median(-1).values, lambda z: torch.kthvalue(z, 18, -1)[0]),
    # averages
    "average pooling": (lambda z: F.avg_pool1d(z, 4), lambda z: z.unfold(-1, 4, 4).mean(-1)),
    "adaptive average": (lambda z: F.adaptive_avg_pool1d(z, 1), lambda z: z.mean(-1, keepdim=True)),
    "power-average pooling": (
        lambda z: F.lp_pool1d(z.abs(), 3, 4),
        lambda z: (F.avg_pool1d(z.abs() ** 3, 4) * 4) ** (1 / 3),
    ),
    # shapes and in-place forms
    "in-place residual": (in_place_residual, lambda z: F.relu(z + z.roll(1, -1))),
    "in-place views": (in_place_views, parts_out_of_place),
    "in-place product of a part": (
        in_place_product,
        lambda z: torch.cat([z[:, :1], z[:, 1:] * z[:, :1].sigmoid()], 1),
    ),
    "in-place only piece": (in_place_only_piece, torch.tanh),
    "in-place source of pieces": (source_of_pieces, torch.tanh),
    "pieces": (
        lambda z: torch.cat([part.sigmoid() * part for part in z.split([7, 9, 20], -1)][:2], -1),
        lambda z: F.silu(z[..., :16]),
    ),
    "batch not first": (lambda z: F.relu(z.permute(2, 0, 1)).permute(1, 2, 0), F.relu),
    "one row at a time": (lambda z: torch.stack([F.gelu(row) for row in z]), F.gelu),
    "stacked reverse": (
        lambda z: sum(F.gelu(torch.cat([z, z.flip(-1)])).chunk(2)),
        lambda z: F.gelu(z) + F.gelu(z.flip(-1)),
    ),
    "in-place operators": (lambda z: z.mul_(2).sub_(0.5).sigmoid_(), lambda z: torch.sigmoid(2 * z - 0.5)),
    "named arguments": (lambda z: torch.relu(input=z), F.relu),
    "module of a function": (module_function(nn.Hardswish()), F.hardswish),
    # constants, and constants that are not
    "a constant of the input's dtype": (lambda z: z * torch.arange(36).to(z), lambda z: z * torch.arange(36.0)),
    "a constant of the input's type": (lambda z: z + torch.ones(36).type_as(z), lambda z: z + 1),
    "shift under no_grad": (
        lambda z: torch.exp(z - z.detach().amax(-1, keepdim=True)),
        lambda z: torch.exp(z - z.amax(-1, keepdim=True)),
    ),
}


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3)
    return X, shuffled(X, 4)


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_multipliers(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    first, second = (seeded(lambda f=f: Sandwich(f)) for f in TWINS[name])
    results = explain(first, *pairs), explain(second, *pairs, batch_size=3)
    for result in results:
        assert worst_delta(result) < 1e-9
    torch.testing.assert_close(results[0].prediction, results[1].prediction)
    assert results[0].multipliers is not None
    assert results[1].multipliers is not None
    assert relative_difference(results[0].multipliers, results[1].multipliers) < 1e-9


ACTIVATIONS = (
    *("ReLU", "ReLU6", "RReLU", "SELU", "CELU", "GELU", "SiLU", "Mish", "ELU", "LeakyReLU", "Sigmoid", "Tanh"),
    *("Softplus", "Softshrink", "LogSigmoid"),
)
# Where two exact rules differ, or the peer is the definition: against tangermeme's rule for the module.
MODULES: dict[str, Callable[[], nn.Module]] = {
    **{name: getattr(nn, name) for name in (*ACTIVATIONS, "PReLU")},
    "GELU tanh": lambda: nn.GELU("tanh"),
    "GLU": lambda: nn.GLU(-1),
    "MaxPool1d": lambda: nn.MaxPool1d(3),
    "MaxPool1d overlapping": lambda: nn.MaxPool1d(4, 2, 1),
    "MaxPool1d ceil": lambda: nn.MaxPool1d(5, ceil_mode=True),
    "Softmax": lambda: nn.Softmax(-1),
    "Softmax over channels": lambda: nn.Softmax(1),
    "LayerNorm": lambda: nn.LayerNorm(36),
    "RMSNorm": lambda: nn.RMSNorm(36),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_the_multipliers_of_the_peer(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    from tangermeme.deep_lift_shap import deep_lift_shap

    X, references = pairs
    model = seeded(lambda: Sandwich(MODULES[name]()))
    options: dict[str, Any] = {"references": references.double(), "device": "cpu", "raw_outputs": True}
    expected = deep_lift_shap(model, X.double(), **options)
    # The peer replaces a rule by the gradient where an input changes by less than 1e-6.
    assert relative_difference(multipliers(model, X, references), expected) < 1e-9


def test_unselected_branch_may_be_undefined(pairs: tuple[Tensor, Tensor]) -> None:
    guarded, safe = (
        seeded(lambda f=f: Sandwich(lambda z: torch.where(z > 0, f(z), 0.0 * z)))
        for f in (torch.sqrt, lambda z: z.clamp_min(0).sqrt())
    )
    result = explain(guarded, *pairs)
    assert result.hypothetical.isfinite().all()
    assert worst_delta(result) < 1e-9
    assert worst_delta(explain(safe, *pairs)) < 1e-9


@pytest.mark.parametrize(
    "function",
    [
        lambda z: z[..., :6].prod(-1),
        lambda z: torch.special.i0(z[..., :5]),
        lambda z: torch.atan2(z[:, :1], z[:, 1:2] ** 2 + 9),
        lambda z: torch.linalg.det(z @ z.mT + torch.eye(3, dtype=z.dtype)).unsqueeze(1),
    ],
    ids=["prod", "i0", "atan2", "det"],
)
def test_operations_without_a_rule_are_integrated(function: Function, pairs: tuple[Tensor, Tensor]) -> None:
    assert worst_delta(explain(seeded(lambda: Sandwich(function)), *pairs)) < 1e-6


def test_atan2_by_integration_is_the_secant_of_atan(pairs: tuple[Tensor, Tensor]) -> None:
    # With a constant denominator the path of the operation is one-dimensional, so the integral is the secant.
    integrated = seeded(lambda: Sandwich(lambda z: torch.atan2(z, torch.full_like(z, 3.0))))
    ruled = seeded(lambda: Sandwich(lambda z: torch.atan(z / 3.0)))
    assert relative_difference(multipliers(integrated, *pairs), multipliers(ruled, *pairs)) < 1e-6
