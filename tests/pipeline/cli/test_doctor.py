"""`dlshap doctor`: what bug reports need, and nothing that they must not hold."""

from __future__ import annotations

import importlib.metadata
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.cli.main import dispatch
from pipeline.execution import doctor


def test_what_is_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-mine")
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:a-secret-of-mine@head:8265")
    assert dispatch(["doctor", "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert found["dlshap"]["version"] == importlib.metadata.version("dlshap")
    assert found["libraries"]["zarr"] == importlib.metadata.version("zarr")
    assert {"devices", "memory", "disk", "limits", "python"} <= set(found)
    assert found["stores"]["credentials"] == ["AWS_SECRET_ACCESS_KEY"]
    assert dispatch(["doctor"]) == 0
    text += capsys.readouterr().out
    assert "secret-of-mine" not in text
    assert "libraries   ray " in text


def test_a_gpu_that_is_not_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def properties(number: int) -> Any:
        if number:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return SimpleNamespace(name="NVIDIA L4", total_memory=24 * 10**9)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    dispatch(["doctor", "--json"])
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert devices["cuda:0"] == "NVIDIA L4, 24.0 GB"
    assert devices["cuda:1"] == "cannot be asked: CUDA error: uncorrectable ECC error encountered"


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_version", {"torch": "1.0", "zarr": "3.1.6"}.get)
    assert dispatch(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "torch 1.0 is installed; expected" in out
    assert "numpy is not installed; expected" in out
    assert "h5py not installed (extra" in out
