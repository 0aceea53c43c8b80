"""`deep_lift_shap(batch_size="auto")` on a GPU: batches as large as keep it busy and as fit the memory that is free."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlshap_core import deep_lift_shap
from dlshap_core.batch_size import FEW, auto_batch_size

pytestmark = pytest.mark.gpu
N, R, LENGTH = 40, 5, 64
ROWS: list[int] = []


class Counting(nn.Module):
    """Notes the rows that it is given, where no call puts back what was there before."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, width, 5, padding=2)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        ROWS.append(len(x))
        return self.head(torch.relu(self.conv(x)).mean(-1))


def sequences(n: int = N) -> Tensor:
    codes = torch.randint(0, 4, (n, LENGTH), generator=torch.Generator().manual_seed(0))
    return nn.functional.one_hot(codes, 4).transpose(1, 2).float()


def attributed(model: nn.Module, X: Tensor, batch_size: Any = "auto", **options: Any) -> Any:
    given = {"n_shuffles": R, "random_state": 0, "device": "cuda", **options}
    return deep_lift_shap(model, X, batch_size=batch_size, **given)


def test_values_are_those_of_any_batch_size() -> None:
    model, X = Counting().eval(), sequences()
    expected = attributed(model, X, 10, device="cpu")
    torch.testing.assert_close(attributed(model, X), expected, rtol=1e-4, atol=1e-6)


def test_batches_keep_the_device_busy(pretended: ModuleType) -> None:
    model, X = Counting().eval(), sequences(64)
    ROWS.clear()
    attributed(model, X)
    assert max(ROWS) == auto_batch_size(LENGTH, R, "cuda") == 64 * R


@pytest.mark.parametrize("targets", [0, [0] * 8])
def test_batches_fit_the_memory_that_is_free(targets: Any, pretended: ModuleType) -> None:
    """In a memory in which 64 sequences with their references do not fit."""
    model, X = Counting().eval(), sequences(70)
    with pretended.memory_of(pretended.held() + 6_000_000):
        with pytest.raises(torch.OutOfMemoryError):
            attributed(model, X, 64 * R, target=targets)
        ROWS.clear()
        found = attributed(model, X, target=targets)
    assert 3 * R <= max(ROWS) < 64 * R
    assert torch.isfinite(found).all()


def test_where_little_fits_little_is_tried(pretended: ModuleType) -> None:
    model, X = Counting().eval(), sequences(3)
    with pretended.memory_of(pretended.held() + 400_000):
        attributed(model, X)
    assert max(ROWS[-10:]) <= FEW


def test_nothing_is_drawn_to_find_it() -> None:
    """A function without a seed draws from the process's generators, which go on as with any batch size."""
    calls: list[int] = []

    def draw(x: Tensor, n: int) -> Tensor:
        calls.append(n)
        return x.roll(1, -1).unsqueeze(1).expand(-1, n, -1, -1)

    attributed(Counting().eval(), sequences(), references=draw, random_state=None)
    assert calls == [R]
