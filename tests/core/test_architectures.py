"""Small architectures of every kind: contributions sum to the difference of predictions, in float64 and float32."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.core.toolbox import Apply, explain, relative_difference, seeded, sequences, shuffled, worst_delta

L = 40


class SubclassedReLU(nn.ReLU):
    """Found by its class alone, this would be missed."""


class DilatedBlocks(nn.Module):
    """BPNet's body: dilated convolutions with residual sums, a counts head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 6, 7, padding=3)
        self.blocks = nn.ModuleList(nn.Conv1d(6, 6, 3, padding=2**i, dilation=2**i) for i in range(1, 4))
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = x + F.relu(block(x))
        return self.head(x.mean(-1))


class ResidualNetwork(nn.Module):
    """Batch norm before activation, `+=` and an in-place ReLU after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 6, 5, padding=2)
        self.norm = nn.BatchNorm1d(6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 2)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        out = self.conv(x)
        out += x
        return self.head(self.relu(out).mean(-1))


class DenseNetwork(nn.Module):
    """Concatenated features."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(4 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.head = nn.Linear(13, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.cat([x, F.elu(conv(x))], 1)
        return self.head(x.amax(-1))


class ConvNeXt(nn.Module):
    """Depthwise convolution, layer norm over channels, GELU, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 6, 3, padding=1)
        self.depthwise = nn.Conv1d(6, 6, 7, padding=3, groups=6)
        self.norm = nn.LayerNorm(6)
        self.wide, self.narrow = nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.full((6,), 0.3))
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 1))
        x = x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 2, 1)
        return self.head(x.mean(-1))


class Enformer(nn.Module):
    """Attention pooling, and self-attention with a relative position term and learned keys."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 8, 5, padding=2)
        self.pool = nn.Linear(8, 8, bias=False)
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.relative = nn.Parameter(torch.randn(20, 20) / 3)
        self.bias = nn.Parameter(torch.randn(2, 1, 4))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x)).mT.unflatten(1, (-1, 2))
        x = (x * self.pool(x).softmax(2)).sum(2)
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        logits = torch.einsum("bhid,bhjd->bhij", q / 2 + self.bias, k) + self.relative
        return self.head((logits.softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


class Siamese(nn.Module):
    """Two halves of the input through one network, compared."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Sequential(nn.Conv1d(4, 6, 5), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.twin(x[..., :20]), self.twin(x[..., 20:])
        return torch.cat([(left * right).sum(1, keepdim=True), (left - right).abs().sum(1, keepdim=True)], 1)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 5, 5)
        self.bilinear = nn.Bilinear(5, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.bilinear(x.mean(-1), x.amax(-1))


class Hyena(nn.Module):
    """Gated long convolution, with products of three branches."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv1d(4, 15, 3, padding=1)
        self.long = nn.Conv1d(5, 5, 31, padding=15, groups=5)
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.project(x).chunk(3, 1)
        return self.head((a * self.long(b * c)).mean(-1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose1d(6, 6, 2, 2)
        self.head = nn.Conv1d(12, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.leaky_relu(self.down(x), 0.2)
        deep = F.silu(self.middle(F.max_pool1d(wide, 2)))
        nearest = F.interpolate(deep, scale_factor=2, mode="nearest")
        joined = torch.cat([wide, self.up(deep) + nearest], 1)
        return F.softplus(self.head(joined)).sum((1, 2), keepdim=True).flatten(1)


def head(features: int, targets: int = 2) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(features, targets)


def convolutional(*middle: nn.Module, channels: int = 6, out: int = 6) -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, channels, 5, padding=2), *middle, *head(out))


def conv_then(function: Callable[[Tensor], Tensor], features: int = 6) -> nn.Module:
    return Apply(
        lambda conv, linear, x: linear(function(conv(x)).reshape(len(x), -1)),
        nn.Conv1d(4, 6, 5, padding=2),
        nn.Linear(features, 2),
    )


def shared_block(conv: nn.Module, block: nn.Module, linear: nn.Module, x: Tensor) -> Tensor:
    x = conv(x)
    for _ in range(3):
        x = x + block(x)
    return linear(x.mean(-1))


def complement_sum(network: nn.Module, x: Tensor) -> Tensor:
    return network(x) + network(x.flip(-1, -2))


def complement_mean(network: nn.Module, x: Tensor) -> Tensor:
    return torch.sigmoid(torch.stack([network(x), network(x.flip((1, 2)))]).mean(0))


def embedding_by_matmul(linear: nn.Module, x: Tensor) -> Tensor:
    kmers = torch.einsum("bal,bcl->bacl", x[..., :-1], x[..., 1:]).flatten(1, 2)  # dinucleotides, one-hot
    return linear(torch.sqrt(1 + kmers.cumsum(-1)).mean(-1))


def accessibility_and_bias(accessibility: nn.Module, bias: nn.Module, x: Tensor) -> Tensor:
    return torch.logsumexp(torch.stack([accessibility(x), bias(x)]), 0)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "multilayer perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(4 * L, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)
    ),
    "DeepSEA": lambda: nn.Sequential(
        *(nn.Conv1d(4, 6, 5), nn.ReLU(), nn.MaxPool1d(4, 4), nn.Dropout(0.2), nn.Conv1d(6, 8, 3), nn.ReLU()),
        *(nn.MaxPool1d(3, 3, ceil_mode=True), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid()),
    ),
    "max-pooling before activation": lambda: convolutional(nn.MaxPool1d(5, 2, 1), nn.ReLU()),
    "activation twice, pools of several kinds": lambda: convolutional(
        nn.ReLU(), nn.AvgPool1d(3, 2, 1), nn.MaxPool1d(3, 1, dilation=2), nn.LPPool1d(2, 2), nn.ReLU()
    ),
    "two dimensions": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 4)), nn.Conv2d(1, 6, (4, 5)), nn.ReLU6(), nn.MaxPool2d((1, 3)), nn.Conv2d(6, 3, (1, 3))),
        *(nn.BatchNorm2d(3), nn.ELU(), nn.Flatten(), nn.Linear(30, 2)),
    ),
    "dilated blocks": DilatedBlocks,
    "residual, batch norm, in place": ResidualNetwork,
    "dense": DenseNetwork,
    "ConvNeXt": ConvNeXt,
    "Enformer": Enformer,
    "Siamese": Siamese,
    "bilinear": Bilinear,
    "Hyena": Hyena,
    "UNet": UNet,
    "subclassed ReLU": lambda: convolutional(SubclassedReLU(), nn.Conv1d(6, 6, 3), SubclassedReLU()),
    "one activation used twice": lambda: (lambda act: convolutional(act, nn.Conv1d(6, 6, 3), act))(nn.ReLU()),
    "shared block": lambda: Apply(
        shared_block, nn.Conv1d(4, 6, 3), nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.Tanh()), nn.Linear(6, 2)
    ),
    "sum over strands": lambda: Apply(complement_sum, convolutional(nn.ReLU())),
    "mean over strands, sigmoid": lambda: Apply(complement_mean, convolutional(nn.GELU())),
    "k-mers by einsum": lambda: Apply(embedding_by_matmul, nn.Linear(16, 2)),
    "ChromBPNet": lambda: Apply(accessibility_and_bias, convolutional(nn.ReLU()), convolutional(nn.Softplus())),
    "smooth activations": lambda: convolutional(
        *(nn.SELU(), nn.CELU(0.5), nn.SiLU(), nn.Conv1d(6, 6, 3), nn.Mish(), nn.Tanh(), nn.Conv1d(6, 6, 3)),
        nn.Softsign(),
    ),
    "smooth activations of one sign": lambda: convolutional(nn.Sigmoid(), nn.Conv1d(6, 6, 3), nn.LogSigmoid()),
    "smooth and flat activations": lambda: convolutional(nn.Tanhshrink(), nn.Conv1d(6, 6, 3), nn.Softplus()),
    "every piecewise activation": lambda: convolutional(
        *(nn.LeakyReLU(0.1), nn.PReLU(6), nn.Hardtanh(-1, 2), nn.Hardswish(), nn.Softshrink(0.1), nn.RReLU()),
        *(nn.Hardsigmoid(), nn.Threshold(0.55, 0.1), nn.Hardshrink(0.2)),
    ),
    "group norm": lambda: convolutional(nn.GroupNorm(3, 6), nn.ReLU()),
    "instance norm": lambda: convolutional(nn.InstanceNorm1d(6, affine=True), nn.ReLU(), nn.MaxPool1d(3)),
    "instance norm, running statistics": lambda: convolutional(
        nn.InstanceNorm1d(6, track_running_stats=True), nn.ReLU()
    ),
    "local response norm": lambda: convolutional(nn.LocalResponseNorm(3, alpha=1.0), nn.ReLU()),
    "RMS norm": lambda: convolutional(nn.RMSNorm(L, eps=1e-6), nn.ReLU()),
    "weight and spectral norm": lambda: nn.Sequential(
        weight_norm(nn.Conv1d(4, 6, 5)), nn.ReLU(), spectral_norm(nn.Conv1d(6, 6, 3)), nn.ReLU(), *head(6)
    ),
    "channel shuffle and grouped": lambda: convolutional(
        nn.ChannelShuffle(3), nn.Conv1d(6, 6, 3, groups=3), nn.ReLU(), nn.ConstantPad1d(2, 0.3), nn.CircularPad1d(3)
    ),
    "softmax class": lambda: nn.Sequential(convolutional(nn.ReLU()), nn.Softmax(1)),
    "log-softmax class": lambda: nn.Sequential(convolutional(nn.ReLU()), nn.LogSoftmax(-1)),
    "squeeze and excite": lambda: conv_then(lambda z: (z * z.mean(-1, keepdim=True).sigmoid()).amax(-1)),
    "GLU": lambda: conv_then(lambda z: F.glu(z, 1).mean(-1), 3),
    "hand-written gate": lambda: conv_then(lambda z: (torch.tanh(z[:, :3]) * torch.sigmoid(z[:, 3:])).mean(-1), 3),
    "second-order pooling": lambda: conv_then(lambda z: torch.einsum("bcl,bdl->bcd", z, z) / L, 36),
    "standard deviation pooling": lambda: conv_then(lambda z: torch.cat([z.std(-1), z.var(-1)], 1), 12),
    "L2 normalised": lambda: conv_then(lambda z: z.mean(-1) / z.mean(-1).norm(dim=1, keepdim=True)),
    "log-mean-exp pooling": lambda: conv_then(lambda z: torch.logsumexp(3 * z, -1) - math.log(L)),
    "top positions": lambda: conv_then(lambda z: z.topk(3, -1).values.mean(-1)),
    "generalised mean": lambda: conv_then(lambda z: (z.clamp(min=1e-3) ** 2.5).mean(-1) ** 0.4),
    "exponential first layer": lambda: conv_then(lambda z: F.max_pool1d(torch.exp(z), 5).flatten(1), 48),
    "ratio of branches": lambda: conv_then(lambda z: z[:, :3].exp().mean(-1) / (1 + z[:, 3:].abs().sum(-1)), 3),
    "counts as exponentials": lambda: conv_then(lambda z: torch.log1p(torch.expm1(F.softplus(z)).sum(-1))),
    "positional encoding": lambda: conv_then(lambda z: F.silu(z + torch.arange(L, dtype=z.dtype).sin()).mean(-1)),
    "quantised and clamped": lambda: conv_then(lambda z: z.clamp(-0.3, 0.4).sum(-1) + z.round().mean(-1)),
    "cumulative sums": lambda: conv_then(lambda z: torch.relu(z.cumsum(-1)).mean(-1)),
    "unfolded windows": lambda: conv_then(lambda z: F.relu(z.unfold(-1, 8, 4).sum(-1)).mean(-1)),
    "bare numpy-like indexing": lambda: conv_then(lambda z: F.gelu(z[:, [3, 1, 0, 5, 2, 4], ::2][..., -6:]).sum(-1)),
    "three factors in one operation": lambda: conv_then(
        lambda z: torch.einsum("bcl,bcl,bkl->bc", z, z.tanh(), z.flip(1)) / L
    ),
    "trilinear": lambda: conv_then(lambda z: (z * z.flip(-1) * z.roll(3, -1)).mean(-1)),
    "checked by an assertion": lambda: conv_then(lambda z: z.mean(-1) if torch.isfinite(z).all() else z.sum(-1)),
    "module list in place": lambda: convolutional(nn.ReLU(inplace=True), nn.Conv1d(6, 6, 3), nn.SiLU(inplace=True)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_contributions_sum_to_the_difference(name: str) -> None:
    X = sequences(3, L, seed=7)
    references = shuffled(X, 4)
    model = seeded(ARCHITECTURES[name])
    exact = explain(model, X, references, targets="all")
    assert worst_delta(exact) < 1e-9
    assert worst_delta(explain(model, X, references, targets="all", batch_size=3)) < 1e-9
    in_float32 = explain(seeded(ARCHITECTURES[name], dtype=torch.float32), X, references, targets="all")
    differences = (exact.prediction[..., None] - exact.reference_prediction).abs()
    rounding = 4 * torch.finfo(torch.float32).eps * exact.prediction.abs().max() / differences.max()
    assert worst_delta(in_float32) < 1e-4 + rounding  # where predictions hardly differ, their own rounding shows
    assert relative_difference(in_float32.hypothetical, exact.hypothetical) < 1e-3
