"""The engine on a GPU: values arrive before they are read, whichever device and stream they come from."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlshap_core import attribute

pytestmark = pytest.mark.gpu
S, K, LENGTH = 2, 3, 20


def model() -> nn.Module:
    torch.manual_seed(0)
    flat = nn.Flatten(), nn.Linear(8 * LENGTH, 2)
    return nn.Sequential(nn.Conv1d(4, 8, 5, padding=2), nn.ReLU(), *flat).eval().requires_grad_(False)


def pairs(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (n, 1 + K, LENGTH), generator=generator)
    both = nn.functional.one_hot(codes, 4).transpose(-1, -2).float()
    return both[:, 0], both[:, 1:]


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("default", ["cpu", "cuda"])
def test_values_are_those_of_a_cpu(device: str, default: str) -> None:
    if torch.cuda.device_count() < 2 and device == "cuda:1":
        pytest.skip("one GPU")
    X, references = pairs()
    expected = attribute(model(), X, references, device="cpu", batch_size=S * K)
    on_gpu = model()
    torch.set_default_device(default)
    try:
        found = attribute(on_gpu, X, references, device=device, batch_size=S * K)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(found.hypothetical, expected.hypothetical, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.reference_prediction, expected.reference_prediction, rtol=1e-4, atol=1e-5)


def test_a_system_without_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that may lock none: values are right, and take longer."""
    X, references = pairs()
    expected = attribute(model(), X, references, device="cpu", batch_size=S * K)
    empty, refused = torch.empty, torch.AcceleratorError("CUDA error: out of memory")

    def pageable(*args: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if pin_memory:
            raise refused
        return empty(*args, **options)

    def pin(x: Tensor) -> Tensor:
        raise refused

    monkeypatch.setattr(torch, "empty", pageable)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    found = attribute(model(), X, references, device="cuda", batch_size=S * K)
    torch.testing.assert_close(found.hypothetical, expected.hypothetical, rtol=1e-4, atol=1e-6)


def test_references_are_drawn_on_the_stream_of_the_caller() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    X, references = pairs()
    streams: list[Any] = []

    class Drawn:
        n = K

        def __call__(self, rows: slice, ks: slice) -> Tensor:
            streams.append((torch.cuda.current_device(), torch.cuda.current_stream(device)))
            return references[rows, ks].to(torch.device("cuda"))

    own = torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.cuda.stream(own):
        attribute(model(), X, Drawn(), device=device, batch_size=S * K)
    assert streams == [(device.index, own)] * 6


def test_a_steady_batch_waits_for_nothing(pretended: ModuleType) -> None:
    """No synchronisation, and little more than the 40 kernels and 143 KiB of when this was written."""
    X, references = pairs(16)
    on_gpu, taken = model().cuda(), []
    for n in (2, 4, 8):
        pretended.reset()
        attribute(on_gpu, X[: n * S], references[: n * S], device="cuda", batch_size=S * K)
        taken.append(pretended.counts())
    few, more = taken[1:]
    assert more.syncs == few.syncs
    assert sum(more.syncs.values()) <= 5, "one for each check of a call, whatever it looks at"
    assert (more.kernels - few.kernels) / 4 <= 42
    assert (more.bytes - few.bytes) / 4 <= 150 * 1024
