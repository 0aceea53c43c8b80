"""Convolutions with the channels last in memory: nothing but the speed may depend on it."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core import memory_format
from dlshap_core.sequences import one_hot

from .toolbox import Apply, explain, multipliers, relative_difference, seeded, sequences, shuffled


@pytest.mark.parametrize(
    "share",
    [
        lambda h: h.to(memory_format=torch.channels_last),
        lambda h: h.float(memory_format=torch.contiguous_format),
        lambda h: (
            h.permute(0, 2, 3, 1) if h.permute(0, 2, 3, 1).is_contiguous() else h.permute(0, 2, 3, 1).contiguous()
        ),
    ],
    ids=["to", "float", "is_contiguous"],
)
def test_writes_into_a_view_or_a_copy(share) -> None:
    """The second sequence alone is clamped: nothing of the first batch tells that two tensors share their memory."""

    def forward(conv: nn.Module, x: Tensor) -> Tensor:
        h = conv(x.unsqueeze(2))
        share(h).clamp_(max=0.5)
        return h.sum((1, 2, 3), keepdim=True).flatten(1)

    def make() -> nn.Module:
        conv = nn.Conv2d(4, 3, (1, 5), bias=False)
        nn.init.constant_(conv.weight, 0.01)
        nn.init.constant_(conv.weight[:, 0], 0.2)  # five A in a row come to 1
        return Apply(forward, conv)

    codes = np.array([[1, 2, 3, 1, 2, 3, 1, 2], [0, 0, 0, 0, 0, 0, 1, 2], [1, 1, 2, 2, 3, 3, 1, 1]], dtype=np.uint8)
    X, references = one_hot(codes[:2]), one_hot(codes[[2, 2]]).unsqueeze(1)
    model = seeded(make, dtype=torch.float32)
    with torch.no_grad():
        expected = model(X.float())
    torch.testing.assert_close(explain(model, X, references, batch_size=1).prediction, expected)


def test_batch_norm_of_half_precision_keeps_single_precision_statistics() -> None:
    def make() -> nn.Module:
        norm = nn.BatchNorm1d(8)
        nn.init.constant_(norm.running_mean, 100)
        nn.init.constant_(norm.running_var, 1e-4)
        conv = nn.Conv1d(4, 8, 5)
        nn.init.constant_(conv.bias, 100)
        return Apply(lambda conv, norm, x: F.relu(norm(conv(x))).mean((1, 2)).unsqueeze(1), conv, norm)

    model, X = seeded(make, dtype=torch.float16), sequences()
    with torch.no_grad():
        expected = model(X.half())
    prediction = explain(model, X, shuffled(X)).prediction
    torch.testing.assert_close(prediction, expected, rtol=1e-3, atol=0)


def test_a_model_that_reads_strides_is_run_in_its_own_format() -> None:
    def forward(conv: nn.Module, x: Tensor) -> Tensor:
        h = F.gelu(conv(x))
        return (h * h.stride(1)).mean((1, 2)).unsqueeze(1)

    model, X = seeded(lambda: Apply(forward, nn.Conv1d(4, 8, 5)), dtype=torch.float32), sequences()
    references = shuffled(X)
    expected = multipliers(model, X, references, dtype=torch.float64)
    assert relative_difference(multipliers(model, X, references), expected) < 1e-5


@pytest.mark.parametrize("dim", [1, -2, 2])
def test_what_is_joined_keeps_the_format(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = []

    def convolve(input: Tensor, *rest: Any, **options: Any) -> Tensor:
        formats.append(memory_format.has_channels_last(input))
        return plain(input, *rest, **options)

    def forward(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        h = first(x)
        h = torch.cat([h, F.gelu(h), x[:, :, 4:]] if dim == 1 else [h, F.gelu(h)], dim=dim)
        return F.gelu(second(h)).mean((1, 2)).unsqueeze(1)

    plain = memory_format.convolve
    monkeypatch.setattr(memory_format, "convolve", convolve)
    n_channels = {1: 20, -2: 16}.get(dim, 8)
    model = seeded(lambda: Apply(forward, nn.Conv1d(4, 8, 5), nn.Conv1d(n_channels, 3, 5)), dtype=torch.float32)
    X = sequences()
    references = shuffled(X)
    found = multipliers(model, X, references)
    assert formats[1::2] == [True, True]
    assert relative_difference(found, multipliers(model, X, references, dtype=torch.float64)) < 1e-5
