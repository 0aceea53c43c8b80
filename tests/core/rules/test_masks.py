"""Masks and values derived from the input: by value where the answer is a known activation, by sum otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.core.toolbox import (
    Apply,
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


def assign(z: Tensor) -> Tensor:
    z = z.clone()
    z[z < 0] = 0.0
    return z


def assign_to_slice(z: Tensor) -> Tensor:
    z = z.clone()
    z[:, 0] = F.relu(z[:, 0])
    z[:, 1:] = F.relu(z[:, 1:])
    return z


def negated_in_place(z: Tensor) -> Tensor:
    mask = z <= 0
    mask.logical_not_()
    return z * mask


def combined_in_place(z: Tensor) -> Tensor:
    mask, constant = z > -1, torch.ones_like(z, dtype=torch.bool)
    mask.logical_and_(z > 0)
    constant.logical_and_(mask)
    return z * constant


def of_a_number_of_another_dtype(z: Tensor) -> Tensor:
    return torch.where(z < 0, torch.zeros((), dtype=torch.float32), z)


RELUS: dict[str, Function] = {
    "negated in place": negated_in_place,
    "combined in place": combined_in_place,
    "where, of a number of another dtype": of_a_number_of_another_dtype,
    "times the mask": lambda z: z * (z > 0),
    "the mask first": lambda z: (z > 0) * z,
    "in place": lambda z: z.clone().mul_(z > 0),
    "as float": lambda z: (z > 0).float() * z,
    "as the dtype": lambda z: z * (z > 0).to(z.dtype),
    "as the type": lambda z: z * (z > 0).type(torch.float64),
    "ge": lambda z: z * torch.ge(z, 0),
    "method gt": lambda z: z * z.gt(0.0),
    "zero less than": lambda z: z * (z > 0),
    "negated": lambda z: z * ~(z <= 0),
    "logical_not": lambda z: z * torch.logical_not(z < 0),
    "and": lambda z: z * ((z > 0) & (z > -5)),
    "or": lambda z: z * ((z > 0) | (z > 7)),
    "xor": lambda z: z * ((z > 0) ^ (z > 1e9)),
    "detached": lambda z: z * (z > 0).detach(),
    "of a detached copy": lambda z: z * (z.detach() > 0),
    "where": lambda z: torch.where(z > 0, z, 0.0),
    "where with zeros": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "where by method": lambda z: z.where(z > 0, torch.zeros((), dtype=z.dtype)),
    "masked_fill": lambda z: z.masked_fill(z < 0, 0.0),
    "masked_fill in place": lambda z: z.clone().masked_fill_(z < 0, 0.0),
    "assignment": assign,
    "assignment to slices": assign_to_slice,
    "moved around": lambda z: z * (z.flip(-1) > 0).flip(-1),
    "unsqueezed": lambda z: (z.unsqueeze(1) * (z > 0).unsqueeze(1)).squeeze(1),
    "difference of masks": lambda z: z * (1 - (z < 0).to(z.dtype)),
}


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3)
    return X, shuffled(X, 4)


@pytest.mark.parametrize("name", RELUS)
def test_masks_that_spell_a_relu_have_its_multipliers(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    model, relu = seeded(lambda: Sandwich(RELUS[name])), seeded(lambda: Sandwich(F.relu))
    for batch_size in (64, 3):
        result = explain(model, *pairs, batch_size=batch_size)
        assert worst_delta(result) < 1e-9
        assert result.multipliers is not None
        assert relative_difference(result.multipliers[:, 0], multipliers(relu, *pairs)) < 1e-9


def under_no_grad(z: Tensor) -> Tensor:
    with torch.no_grad():
        mean = z.mean(-1, keepdim=True)
    return (z - mean) ** 2


def counted(z: Tensor) -> Tensor:
    return z.sum(-1) / (1 + (z > 0).sum(-1))


OTHERS: dict[str, Function] = {
    "mean under no_grad": under_no_grad,
    "count of a mask": counted,
    "mean of a mask": lambda z: (z > 0.3).double().mean(-1) + z.sum(-1),
    "masks of one another": lambda z: z * (z > z.mean(-1, keepdim=True)),
    "eq of a rounded value": lambda z: z.sum(-1) + torch.eq(z.round(), 1).double().sum(-1),
    "operators of equality": lambda z: z.sum(-1) + (z.round() == 1).sum(-1) - (z.floor() != 0).sum(-1),
    "round": lambda z: torch.round(z) + z,
    "sign and floor": lambda z: torch.sign(z) + torch.floor(2 * z) + z,
    "clamp by detached": lambda z: z.clamp(max=1.0) * z.detach(),
    "data": lambda z: z * z.data.sigmoid(),
    "both branches vary": lambda z: torch.where(z > z.flip(-1), z.exp(), z.tanh()),
    "log of the positive": lambda z: torch.where(z > 0, torch.log(z), 0.0 * z),
    "padding columns": lambda z: z * (z.abs().sum(1, keepdim=True) > 0.5),
}


@pytest.mark.parametrize("name", OTHERS)
def test_masks_and_steps_sum_to_the_difference(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    assert worst_delta(explain(seeded(lambda: Sandwich(OTHERS[name])), *pairs)) < 1e-9
    in_float32 = seeded(lambda: Sandwich(OTHERS[name]), dtype=torch.float32)
    assert worst_delta(explain(in_float32, *pairs, batch_size=5)) < 1e-4


def test_no_grad_and_detach_hide_nothing(pairs: tuple[Tensor, Tensor]) -> None:
    hidden, open_ = (
        seeded(lambda f=f: Sandwich(f)) for f in (under_no_grad, lambda z: (z - z.mean(-1, keepdim=True)) ** 2)
    )
    assert relative_difference(multipliers(hidden, *pairs), multipliers(open_, *pairs)) < 1e-9


def test_a_mask_of_the_one_hot_input_tells_unknown_bases() -> None:
    # A model may find padding in its input; at an N on both sides there is nothing to attribute.
    X = sequences(2)
    X[:, :, :6] = 0
    references = shuffled(sequences(2), 3)
    references[..., :6] = 0

    def masked_mean(x: Tensor) -> Tensor:
        known = (x.sum(1, keepdim=True) > 0).to(x.dtype)
        hidden = F.relu(F.conv1d(x, torch.ones(2, 4, 3, dtype=x.dtype).cumsum(1).cos(), padding=1))
        return (hidden * known).sum((1, 2)) / known.sum((1, 2))

    result = explain(Apply(masked_mean), X, references, dtype=torch.float64)
    assert worst_delta(result) < 1e-9
    # A base put where padding was would change the mask too: by nothing, since the mask is the same on both sides.
    assert result.hypothetical[..., :5].abs().max() == 0
    assert result.hypothetical[..., 6:].abs().max() > 0
