"""Devices that are not there are named; the record names processor and versions."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

from pipeline.execution.device import device_kind, require_numbers, resolve_device
from pipeline.execution.versions import describe
from pipeline.messages.errors import UserError


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


def test_numbers_that_a_device_does_not_have_are_refused() -> None:
    require_numbers("tf32", "cuda:1")
    require_numbers("float64", "cpu")
    with pytest.raises(UserError, match=r"engine\.dtype=tf32 is for NVIDIA GPUs, and the device is cpu; use"):
        require_numbers("tf32", "cpu")
