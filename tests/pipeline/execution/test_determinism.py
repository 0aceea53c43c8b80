"""The settings of a computation are those of its context, and gone afterwards."""

from __future__ import annotations

import pytest
import torch

from pipeline.execution.determinism import repeatable


def settings() -> tuple[int, bool, bool, bool]:
    fills = bool(torch.utils.deterministic.fill_uninitialized_memory)
    are_deterministic, mkldnn = torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled
    return torch.get_num_threads(), are_deterministic, fills, mkldnn


def fail_within(threads: int) -> None:
    with repeatable(threads, True):
        assert settings() == (threads, True, False, True)
        with repeatable(threads, True, fills=True):
            assert settings() == (threads, True, True, True)
            assert torch.empty(3).isnan().all()
        raise KeyError


def test_settings_are_put_back_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    before = settings()
    with pytest.raises(KeyError):
        fail_within(before[0] + 1)
    assert settings() == before
