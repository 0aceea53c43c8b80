"""What a steady batch costs on a GPU, beside the two passes forward and the one back that no method can do without.

Counted on the pretended GPU, where an operator is one kernel that reads its arguments and writes its results, as its
Triton form does.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from benchmarks.models import SUBJECTS, build
from torch import Tensor, nn

from dlshap_core import attribute

pytestmark = pytest.mark.gpu
S, K = 2, 5


class Gated(nn.Module):
    """Attention pooling and activations written out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 32, 15, padding=7)
        self.norm = nn.BatchNorm1d(32)
        self.to_logits = nn.Conv1d(32, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.conv(x)))
        weights = self.to_logits(x).unflatten(-1, (-1, 2)).softmax(-1)
        x = (x.unflatten(-1, (-1, 2)) * weights).sum(-1)
        x = torch.where(x > 0, x, 0.1 * x)
        x = F.softplus(x) / (1 + x.abs())
        return self.head(F.silu(x).mean(-1))


class InPlace(nn.Module):
    """Activations that overwrite what they are given, as in residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 32, 15, padding=7)
        self.second = nn.Sequential(nn.BatchNorm1d(32), nn.ReLU(inplace=True), nn.Conv1d(32, 32, 3, padding=1))
        self.last = nn.ELU(inplace=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.last(x + self.second(x)).mean(-1))


class Chain(nn.Module):
    """Functions of an activation between convolutions, and one that takes it to channels."""

    def __init__(self, *functions: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 32, 15, padding=7)
        self.rest = nn.ModuleList(nn.Conv1d(32, 32, 5, padding=2) for _ in functions)
        self.functions = functions
        self.layers = nn.ModuleList(f for f in (*functions, head) if isinstance(f, nn.Module))
        self.last = head
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for function, convolution in zip(self.functions, self.rest, strict=True):
            x = convolution(function(x))
        return self.head(self.last(x))


def masked() -> Chain:
    return Chain(
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: torch.where(x > 0.1, x, 0.0),
        lambda x: x.masked_fill(x < 0, 0.5),
        head=lambda x: x.logsumexp(-1),
    )


def normed() -> Chain:
    return Chain(
        nn.GroupNorm(4, 32),
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
        nn.InstanceNorm1d(32, affine=True),
        lambda x: x / x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-6),
        nn.PReLU(32),
        head=lambda x: x.mean(-1) + x.std(-1),
    )


OWN: dict[str, Callable[[], nn.Module]] = {"gated": Gated, "in place": InPlace, "masked": masked, "normed": normed}


def model(name: str, length: int) -> nn.Module:
    torch.manual_seed(0)
    if name in OWN:
        return OWN[name]().eval()
    return build(SUBJECTS[name], length, 10, torch.device("cpu"))


def one_hot(*shape: int) -> Tensor:
    codes = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0))
    return F.one_hot(codes, 4).transpose(-1, -2).float()


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 16, 9, padding=4)
        self.layer = kind(16, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(torch.relu(self.conv(x)), 4)
        return self.head(self.layer(x.transpose(1, 2))[0].mean(1))


def counted(pretended: ModuleType, run: Callable[[int], object]) -> tuple[float, float, dict[str, int]]:
    """Kernels, bytes and synchronisations of a batch, after the first ones."""
    taken = []
    for n in (2, 2, 4):
        pretended.reset()
        run(n)
        taken.append(pretended.counts())
    few, more = taken[1:]
    waits = {why: n - few.syncs.get(why, 0) for why, n in more.syncs.items() if n != few.syncs.get(why, 0)}
    return (more.kernels - few.kernels) / 2, (more.bytes - few.bytes) / 2, waits


# Kernels and bytes, as shares of the floor's: the goals.
@pytest.mark.parametrize(
    ("name", "length", "kernels", "n_bytes"),
    [
        ("bpnet64", 128, 1.5, 1.15),
        ("deepsea", 200, 1.5, 1.15),
        ("splice", 200, 1.5, 1.15),
        ("transformer", 128, 2.5, 1.6),
        ("gated", 128, 2.5, 1.6),
        ("masked", 128, 1.5, 1.15),
        ("normed", 128, 1.5, 1.15),
        ("in place", 128, 1.8, 1.25),  # what is overwritten is copied before
    ],
)
def test_a_batch_costs_little_more_than_its_floor(
    name: str, length: int, kernels: float, n_bytes: float, pretended: ModuleType
) -> None:
    on_cpu, on_gpu = model(name, length), model(name, length).cuda().requires_grad_(False)
    X, references = one_hot(8 * S, length), one_hot(8 * S, K, length)

    def engine(n: int) -> Tensor:
        return attribute(on_gpu, X[: n * S], references[: n * S], device="cuda", batch_size=S * K).hypothetical

    def floor(n: int) -> None:
        for i in range(n):
            rows = slice(i * S, (i + 1) * S)
            with torch.no_grad():
                on_gpu(X[rows].cuda())
            leaf = references[rows].flatten(0, 1).cuda().requires_grad_()
            torch.autograd.grad(on_gpu(leaf)[:, 0].sum(), leaf)

    expected = attribute(on_cpu, X[:S], references[:S], device="cpu", batch_size=S * K).hypothetical
    torch.testing.assert_close(engine(2)[:S], expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())

    found, least = counted(pretended, engine), counted(pretended, floor)
    assert found[0] <= kernels * least[0]
    assert found[1] <= n_bytes * least[1]
    assert found[2] == {}, "nothing waits for the device"


# Of which the layers themselves are four steps of a cell for each of 32 places here; cuDNN has one for all.
@pytest.mark.parametrize(("kind", "kernels"), [(nn.LSTM, 1_500), (nn.GRU, 1_100), (nn.RNN, 1_020)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")
def test_recurrent_layers_are_not_unrolled(
    kind: type[nn.Module], kernels: int, dtype: torch.dtype | None, pretended: ModuleType
) -> None:
    torch.manual_seed(0)
    on_gpu = Recurrent(kind).eval().cuda().requires_grad_(False)
    X, references = one_hot(8 * S, 128), one_hot(8 * S, K, 128)

    def engine(n: int) -> object:
        return attribute(on_gpu, X[: n * S], references[: n * S], device="cuda", batch_size=S * K, dtype=dtype)

    found = counted(pretended, engine)
    assert found[0] <= kernels
    assert found[2] == {}, "nothing waits for the device"
