"""The settings of a computation are those of its context, and gone afterwards."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

from pipeline.errors import UserError
from pipeline.hardware import describe, device_kind, repeatable, resolve_device


def settings() -> tuple[int, bool, bool, bool]:
    fills = bool(torch.utils.deterministic.fill_uninitialized_memory)
    are_deterministic, tf32 = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    return torch.get_num_threads(), are_deterministic, fills, tf32


def fail_within(threads: int) -> None:
    with repeatable(threads, True):
        assert settings() == (threads, True, False, False)
        with repeatable(threads, True, fills=True):
            assert settings() == (threads, True, True, False)
            assert torch.empty(3).isnan().all()
        raise KeyError


def test_settings_are_put_back_even_after_an_error() -> None:
    before = settings()
    with pytest.raises(KeyError):
        fail_within(before[0] + 1)
    assert settings() == before


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r"device=cuda, but torch finds no GPU here; use engine\.device=cpu or auto"):
        resolve_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_device("auto") == "cuda"
    with pytest.raises(UserError, match=r"engine\.device=cuda:2, but there are 2 GPUs"):
        resolve_device("cuda:2")


def test_the_record_names_processor_and_versions() -> None:
    assert torch.backends.cpu.get_cpu_capability() in device_kind("cpu")
    assert describe()["versions"]["torch"] == importlib.metadata.version("torch")
