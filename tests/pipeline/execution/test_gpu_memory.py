"""Pairs that fit into a GPU's memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.device import numbers, require_numbers
from pipeline.execution.gpu_memory import FEW, MORE, USED, fitting, pairs_that_fit
from pipeline.messages.errors import UserError


@given(st.integers(1 << 17, 1 << 30), st.integers(0, 1 << 30), st.integers(1 << 28, 1 << 37), st.floats(0.1, 1))
def test_what_fits_fits_and_one_more_does_not(of_pair: int, fixed: int, free: int, share: float) -> None:
    n = fitting(fixed + FEW * of_pair, fixed + MORE * of_pair, free, share)
    assert n >= 1
    assert n == 1 or fixed + n * of_pair <= USED * share * free * (1 + 1e-9)
    assert fixed + (n + 1) * of_pair > USED * share * free * (1 - 1e-9)


def test_batches_that_take_nothing_have_a_limit_too() -> None:
    assert 1 <= fitting(0, 0, 1 << 34, 1.0) < 1 << 20


def test_a_cpu_is_not_asked() -> None:
    assert pairs_that_fit(lambda n: pytest.fail("it was run"), "cpu") is None


@pytest.mark.gpu
def test_the_batch_found_runs_on_a_gpu() -> None:
    def run(n: int) -> None:
        torch.zeros(n, 1 << 24, device="cuda").add_(1)

    n = pairs_that_fit(run, "cuda")
    assert n is not None
    run(n)


def test_tf32_is_float32_that_a_gpu_may_round() -> None:
    assert numbers("tf32") == {"dtype": torch.float32, "allow_tf32": True}
    assert numbers("bfloat16") == {"dtype": torch.bfloat16}
    require_numbers("tf32", "cuda:1")
    require_numbers("float64", "cpu")
    with pytest.raises(UserError, match=r"engine\.dtype=tf32 is for NVIDIA GPUs, and the device is cpu; use"):
        require_numbers("tf32", "cpu")
