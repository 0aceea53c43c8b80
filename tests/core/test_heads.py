"""Heads: each profile convention by value against its formula, and which of them sum to the difference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dlshap_core.heads import HEADS, INCOMPLETE, head
from tests.core.toolbox import explain, multipliers, relative_difference, seeded, sequences, shuffled, worst_delta

STRANDS, WIDTH = 2, 12


class Profile(nn.Module):
    """BPNet in small: logits (N, strands, width) and log counts (N, 1), both linear in the sequence if asked."""

    def __init__(self, is_linear: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 5, 5)
        self.activation = nn.Identity() if is_linear else nn.ReLU()
        self.logits = nn.Linear(5 * 36, STRANDS * WIDTH)
        self.counts = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.activation(2 * self.conv(x))
        return 3 * self.logits(x.flatten(1)).unflatten(1, (STRANDS, WIDTH)), self.counts(x.mean(-1))


def explained(name: str, is_linear: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    return seeded(lambda: nn.Sequential(Profile(is_linear), head(name)), dtype=dtype)


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3)
    return X, shuffled(X, 4)


def normalised(output: tuple[Tensor, Tensor]) -> Tensor:
    logits = output[0].flatten(1)
    return logits - logits.mean(-1, keepdim=True)


def test_every_profile_head_predicts_the_same(pairs: tuple[Tensor, Tensor]) -> None:
    X = pairs[0].double()
    profile, counts = explained("none")(X)
    logits = profile.flatten(1) - profile.flatten(1).mean(1, keepdim=True)
    expected = (torch.softmax(logits, 1) * logits).sum(1, keepdim=True)
    for name in HEADS:
        if name.startswith("profile"):
            torch.testing.assert_close(explained(name)(X), expected)
    torch.testing.assert_close(explained("counts")(X), counts)


def elementwise(x: Tensor, r: Tensor) -> Tensor:
    return (x * x.softmax(-1) - r * r.softmax(-1)) / (x - r)


def stopgrad(x: Tensor, r: Tensor) -> Tensor:
    return (x.softmax(-1) + r.softmax(-1)) / 2


def detached(x: Tensor, r: Tensor) -> Tensor:
    return x.softmax(-1)


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "profile_elementwise": elementwise,
    "profile_stopgrad": stopgrad,
    "profile_detached": detached,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_conventions_by_value(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    # Below the head all is linear, so the multipliers are the convention's on the logits times a constant Jacobian.
    X, references = pairs
    model = explained(name, is_linear=True)
    body = model[0]
    zero = torch.zeros(1, 4, 40, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: normalised(body(x))[0], zero)[:, 0]  # (logits, 4, L)
    with torch.no_grad():
        x = normalised(body(X.double()))[:, None]
        r = normalised(body(references.double().flatten(0, 1))).unflatten(0, (3, 4))
    expected = torch.einsum("nrw,wal->nral", FORMULAS[name](x, r).expand_as(r), jacobian)
    for batch_size in (64, 3):
        assert relative_difference(multipliers(model, X, references, batch_size=batch_size), expected) < 1e-9


def test_the_midpoint_convention_is_the_product_and_the_softmax_written_out(pairs: tuple[Tensor, Tensor]) -> None:
    class WrittenOut(nn.Module):
        def forward(self, output: tuple[Tensor, Tensor]) -> Tensor:
            logits = normalised(output)
            return (logits * torch.softmax(logits, -1)).sum(-1, keepdim=True)

    written_out = seeded(lambda: nn.Sequential(Profile(), WrittenOut()))
    expected = multipliers(written_out, *pairs)
    assert relative_difference(multipliers(explained("profile_midpoint"), *pairs), expected) < 1e-9


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"none"}))
def test_which_conventions_sum_to_the_difference(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    result = explain(explained(name), *pairs)
    if name in INCOMPLETE:
        assert worst_delta(result) > 1e-3
    else:
        assert worst_delta(result) < 1e-9
        assert worst_delta(explain(explained(name, dtype=torch.float32), *pairs)) < 1e-4


def test_the_conventions_that_do_not_sum_are_two() -> None:
    assert {"profile_stopgrad", "profile_detached"} == INCOMPLETE


def test_conventions_differ(pairs: tuple[Tensor, Tensor]) -> None:
    names = ["profile_midpoint", *FORMULAS]
    values = [multipliers(explained(name), *pairs) for name in names]
    for i in range(len(names)):
        for j in range(i):
            assert relative_difference(values[i], values[j]) > 1e-2, (names[i], names[j])


def test_the_elementwise_convention_where_nothing_changes_is_the_gradient() -> None:
    X = sequences(2)
    model = explained("profile_elementwise")
    leaf = X.double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf)
    actual = multipliers(model, X, X[:, None])
    assert relative_difference(actual[:, 0], gradient) < 1e-9


@pytest.mark.parametrize("name", ["profile_midpoint", "profile_stopgrad", "profile_detached", "counts"])
def test_float32_agrees_with_float64(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    exact = explain(explained(name), *pairs).hypothetical
    in_float32 = explain(explained(name, dtype=torch.float32), *pairs).hypothetical
    assert relative_difference(in_float32, exact) < 2e-5


def test_heads_take_the_part_they_explain() -> None:
    profile, counts = torch.randn(3, STRANDS, WIDTH), torch.randn(3, 1)
    for name in ("profile_midpoint", "profile_elementwise", "profile_stopgrad", "profile_detached"):
        whole, part = head(name)((profile, counts)), head(name)(profile)
        assert torch.equal(whole, part)
        assert whole.shape == (3, 1)
    assert torch.equal(head("counts")((profile, counts)), counts)
    assert torch.equal(head("counts")([profile, counts]), counts)
    assert torch.equal(head("counts")(counts), counts)
    assert head("counts")(torch.randn(3, 2, 1)).shape == (3, 2)


def test_a_shift_of_all_logits_changes_nothing() -> None:
    profile = torch.randn(3, STRANDS, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(head("profile_midpoint")(profile + 5), head("profile_midpoint")(profile))


@pytest.mark.parametrize(
    "output", [{"profile": torch.zeros(1, 2, 3)}, (torch.zeros(1), torch.zeros(1), torch.zeros(1))]
)
def test_outputs_that_no_head_takes(output: object) -> None:
    for name, what in [("counts", "counts"), ("profile_midpoint", "profile")]:
        with pytest.raises(ValueError, match=f"the {what} head takes a tensor or a pair"):
            head(name)(output)


def test_an_unknown_head_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="no head is called 'profile'; there are none, counts, profile_midpoint"):
        head("profile")
