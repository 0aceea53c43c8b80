"""Under torch.use_deterministic_algorithms a GPU refuses what its documentation lists, and models do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core import attribute
from pipeline.config.schema import Config
from pipeline.execution.preflight import run_preflight
from pipeline.messages.errors import UserError
from tests.pipeline.execution.test_preflight import CODES, loaded_model

pytestmark = pytest.mark.gpu
S, K, LENGTH = 2, 3, 24

LISTED: dict[str, Callable[[Tensor], Any]] = {
    "AvgPool3d": lambda x: F.avg_pool3d(x.view(2, 2, 3, 4), 2),
    "AdaptiveAvgPool2d": lambda x: F.adaptive_avg_pool2d(x.view(2, 4, 6), 3),
    "AdaptiveAvgPool3d": lambda x: F.adaptive_avg_pool3d(x.view(2, 2, 3, 4), 2),
    "AdaptiveMaxPool2d": lambda x: F.adaptive_max_pool2d(x.view(2, 4, 6), 3),
    "FractionalMaxPool2d": lambda x: F.fractional_max_pool2d(x.view(2, 4, 6), 2, output_size=2),
    "FractionalMaxPool3d": lambda x: F.fractional_max_pool3d(x.view(1, 3, 4, 4), 2, output_size=1),
    "MaxUnpool1d": lambda x: F.max_unpool1d(*F.max_pool1d(x.view(2, 24), 2, return_indices=True), 2),
    "MaxUnpool2d": lambda x: F.max_unpool2d(*F.max_pool2d(x.view(2, 4, 6), 2, return_indices=True), 2),
    "interpolate linear": lambda x: F.interpolate(x.view(2, 4, 6), scale_factor=2, mode="linear"),
    "interpolate bicubic": lambda x: F.interpolate(x.view(2, 2, 3, 4), scale_factor=2, mode="bicubic"),
    "ReflectionPad1d": lambda x: F.pad(x.view(2, 4, 6), (2, 2), "reflect"),
    "ReflectionPad2d": lambda x: F.pad(x.view(2, 2, 3, 4), (1, 1, 1, 1), "reflect"),
    "ReflectionPad3d": lambda x: F.pad(x.view(1, 2, 2, 3, 4), (1, 1, 1, 1, 1, 1), "reflect"),
    "EmbeddingBag": lambda x: F.embedding_bag(torch.arange(4, device=x.device).view(2, 2), x.view(12, 4), mode="max"),
    "put_": lambda x: (x * 1).put_(torch.arange(3, device=x.device), x[:3]),
    "histc": lambda x: x.detach().histc(4),
    "bincount": lambda x: torch.bincount(torch.arange(48, device=x.device) % 3, x.detach()),
    "median": lambda x: x.view(2, 24).median(1).values,
    "grid_sample": lambda x: F.grid_sample(
        x.view(1, 2, 4, 6), torch.zeros(1, 2, 3, 2, device=x.device), align_corners=False
    ),
    "cumsum": lambda x: x.cumsum(0),
    "scatter_reduce": lambda x: torch.ones(3, device=x.device).scatter_reduce(
        0, torch.arange(48, device=x.device) % 3, x, "prod"
    ),
}
NOT_LISTED: dict[str, Callable[[Tensor], Any]] = {
    "conv1d": lambda x: F.conv1d(x.view(2, 4, 6), torch.ones(3, 4, 3, device=x.device)),
    "MaxPool3d": lambda x: F.max_pool3d(x.view(2, 2, 3, 4), 2),
    "ReplicationPad1d": lambda x: F.pad(x.view(2, 4, 6), (2, 2), "replicate"),
    "AdaptiveAvgPool1d(1)": lambda x: F.adaptive_avg_pool1d(x.view(2, 4, 6), 1),
    "interpolate nearest": lambda x: F.interpolate(x.view(2, 4, 6), scale_factor=2),
    "interpolate bilinear": lambda x: F.interpolate(x.view(2, 2, 3, 4), scale_factor=2, mode="bilinear"),
    "index_add": lambda x: torch.zeros_like(x).index_add(0, torch.arange(48, device=x.device) % 3, x),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(0, torch.arange(48, device=x.device) % 3, x),
    "gather": lambda x: x.gather(0, torch.arange(48, device=x.device) % 3),
    "sort": lambda x: x.sort().values,
    "topk": lambda x: x.topk(3).values,
    "kthvalue": lambda x: x.kthvalue(3).values,
    "median of all": lambda x: x.median(),
    "EmbeddingBag": lambda x: F.embedding_bag(torch.arange(4, device=x.device).view(2, 2), x.view(12, 4), mode="sum"),
    "bincount": lambda x: torch.bincount(torch.arange(48, device=x.device) % 3),
    "cumsum of whole numbers": lambda x: torch.arange(48, device=x.device).cumsum(0),
    "scatter_reduce": lambda x: torch.ones(3, device=x.device).scatter_reduce(
        0, torch.arange(48, device=x.device) % 3, x, "sum"
    ),
}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def there_and_back(function: Callable[[Tensor], Any]) -> None:
    x = torch.linspace(1, 2, 48, device="cuda", requires_grad=True)
    y = function(x)
    if y.requires_grad:
        torch.autograd.grad(y.sum(), x)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", LISTED)
def test_what_is_listed_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        there_and_back(LISTED[name])


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", NOT_LISTED)
def test_and_nothing_else(name: str) -> None:
    there_and_back(NOT_LISTED[name])


class Model(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv1d(4, 8, 5, padding=2), function

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(2 * self.conv(x)).flatten(1)
        return (h * torch.linspace(-1, 2, h.shape[1], dtype=h.dtype, device=h.device).cos()).sum(1, keepdim=True)


USED: dict[str, Callable[[Tensor], Tensor]] = {
    "AdaptiveAvgPool1d": lambda x: F.adaptive_avg_pool1d(x, 5),
    "AdaptiveAvgPool1d, divides": lambda x: F.adaptive_avg_pool1d(x, 6),
    "AdaptiveAvgPool2d": lambda x: F.adaptive_avg_pool2d(x.unsqueeze(1), (3, 7)),
    "AvgPool3d": lambda x: F.avg_pool3d(x.unflatten(1, (1, 2, 4)), 2),
    "interpolate linear": lambda x: F.interpolate(x, scale_factor=1.5, mode="linear"),
    "interpolate bilinear": lambda x: F.interpolate(x.unsqueeze(2), scale_factor=2, mode="bilinear"),
    "interpolate bicubic": lambda x: F.interpolate(x.unsqueeze(1), scale_factor=2, mode="bicubic"),
    "reflect": lambda x: F.pad(x, (3, 2), "reflect"),
    "replicate": lambda x: F.pad(x, (3, 2), "replicate"),
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(3, -1).values,
    "median": lambda x: x.median(-1).values,
    "kthvalue": lambda x: x.kthvalue(3, -1).values,
    "cumsum": lambda x: x.cumsum(-1),
    "cumsum in place": lambda x: (x * 1).cumsum_(-1),
    "cumsum by numpy's names": lambda x: x.cumsum(axis=-1),
    "cumsum of a constant": lambda x: x * torch.ones(LENGTH, device=x.device).cumsum(0),
    "cumprod": lambda x: (x * 0.1 + 1).cumprod(-1),
    "MaxPool1d": lambda x: F.max_pool1d(x, 4),
}


def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (3 * S, 1 + K, LENGTH), generator=generator)
    codes[0, 1] = codes[0, 0]
    both = F.one_hot(codes, 4).transpose(-1, -2).float()
    return both[:, 0], both[:, 1:]


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", USED)
def test_models_have_the_values_of_a_cpu(name: str) -> None:
    X, references = pairs()
    found, expected, exact = (
        attribute(Model(USED[name]).eval(), X, references, device=device, batch_size=S * K, dtype=dtype).hypothetical
        for device, dtype in (("cuda", torch.float32), ("cpu", torch.float32), ("cpu", torch.float64))
    )
    scale = exact.abs().max()
    assert (found - exact).abs().max() <= 4 * (expected - exact).abs().max() + 1e-6 * scale


LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "grid_sampler": lambda x: F.grid_sample(
        x.unsqueeze(2), torch.zeros(len(x), 1, 4, 2, device=x.device, dtype=x.dtype), align_corners=False
    ),
    "histc": lambda x: x * torch.arange(8.0, device=x.device).histc(4).sum(),
    "bincount": lambda x: x * torch.bincount(torch.arange(3, device=x.device), torch.ones(3, device=x.device)).sum(),
    "put": lambda x: (x * 1).put_(torch.arange(3, device=x.device), x.flatten()[:3]),
    "scatter_reduce": lambda x: torch.ones_like(x).scatter_reduce(1, torch.zeros_like(x, dtype=torch.int64), x, "prod"),
    "nll_loss_nd": lambda x: F.nll_loss(
        x.log_softmax(1), torch.ones(len(x), x.shape[-1], dtype=torch.int64, device=x.device), reduction="none"
    ),
    "cumulative_trapezoid": lambda x: torch.cumulative_trapezoid(x, dim=-1),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_is_refused_by_name_before_anything_is_spent(name: str) -> None:
    loaded = replace(loaded_model(name), folds=(Model(LEFT[name]).eval(),))
    with pytest.raises(UserError) as caught:
        run_preflight(loaded, CODES, "s0", Config(), "cuda")
    for words in (
        f"operation {name!r} in the model",
        "deterministic implementation",
        "with engine.deterministic=false",
    ):
        assert words in str(caught.value)
