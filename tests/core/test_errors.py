"""Memory that is short is told from what a model does wrong, however the device says it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from dlshap_core import attribute, audit
from dlshap_core.engine import resolve_device
from dlshap_core.errors import is_out_of_memory
from tests.core.toolbox import sequences, shuffled

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    MemoryError(),
]
OTHER = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    ValueError("the file tells of a run that was out of memory"),
    None,
]
CALLS: list[int] = []


class Failing(nn.Module):
    """Fails where its operations are followed, and not by itself, as where memory is just enough for that."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(len(x))
        y = x.relu()
        if len(CALLS) == 1:
            raise self.error
        return y.mean((1, 2)).unsqueeze(1)


@pytest.mark.parametrize("error", [*SHORT, *OTHER], ids=str)
def test_short_memory_is_told_from_other_errors(error: Exception | None) -> None:
    assert is_out_of_memory(error) is (error in SHORT)


@pytest.mark.parametrize("error", SHORT[:4], ids=str)
def test_a_model_that_finds_no_memory_is_neither_run_again_nor_refused(error: Exception) -> None:
    """An audit that refused it would be kept, and the model refused for good."""
    X = sequences(2)
    for call in (lambda model: attribute(model, X, shuffled(X, 2), device="cpu"), lambda model: audit(model, X)):
        CALLS.clear()
        with pytest.raises(RuntimeError, match=re.escape(str(error))) as caught:
            call(Failing(error))
        assert caught.value is error
        assert len(CALLS) == 1


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(RuntimeError, match="device 'cuda:2' was asked for, but there are 2 GPUs here, counted from 0"):
        resolve_device("cuda:2")
