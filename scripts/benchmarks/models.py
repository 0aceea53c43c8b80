"""Models that are benchmarked: the shapes in use, with random weights, made of modules so that every peer sees them.

Shape legend: B rows, T targets, C channels, L length. All take (B, 4, L) and return (B, T).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class BPNet(nn.Module):
    """BPNet's trunk with a counts head: a wide convolution, eight dilated residual ones, the mean over positions."""

    def __init__(self, n_filters: int, n_targets: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, n_filters, 21, padding=10)
        self.stem_activation = nn.ReLU()
        self.layers = nn.ModuleList(
            nn.Conv1d(n_filters, n_filters, 3, padding=2**i, dilation=2**i) for i in range(1, 9)
        )
        self.activations = nn.ModuleList(nn.ReLU() for _ in range(8))
        self.head = nn.Linear(n_filters, n_targets)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_activation(self.stem(x))
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = x + activation(layer(x))
        return self.head(x.mean(-1))


class DeepSEA(nn.Module):
    """Three wide convolutions with max-pooling and two dense layers, after DeepSEA."""

    def __init__(self, length: int, n_targets: int) -> None:
        super().__init__()
        widths = (4, 320, 480, 960)
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [nn.Conv1d(widths[i], widths[i + 1], 8), nn.ReLU()]
            length -= 7
            if i < 2:
                layers.append(nn.MaxPool1d(4))
                length //= 4
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(960 * length, 925), nn.ReLU(), nn.Linear(925, n_targets))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).flatten(1))


class DanQ(nn.Module):
    """A wide convolution with max-pooling, a recurrent layer in both directions and two dense layers, after DanQ."""

    def __init__(self, length: int, n_targets: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(4, 320, 26), nn.ReLU(), nn.MaxPool1d(13))
        self.recurrent = nn.LSTM(320, 320, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(640 * ((length - 25) // 13), 925), nn.ReLU(), nn.Linear(925, n_targets))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.layers(x).transpose(1, 2))[0].flatten(1))


class SpliceBlock(nn.Module):
    """Batch norm, ReLU and a dilated convolution, twice, added to what came in."""

    def __init__(self, n_channels: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                module
                for _ in range(2)
                for module in (
                    nn.BatchNorm1d(n_channels),
                    nn.ReLU(),
                    nn.Conv1d(n_channels, n_channels, 11, padding=5 * dilation, dilation=dilation),
                )
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Splice(nn.Module):
    """A small SpliceAI: residual blocks of growing dilation, scores of the middle position."""

    def __init__(self, n_targets: int, n_channels: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, n_channels, 1)
        self.blocks = nn.Sequential(*(SpliceBlock(n_channels, dilation) for dilation in (1, 1, 4, 4, 10, 10)))
        self.head = nn.Conv1d(n_channels, n_targets, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.blocks(self.stem(x)))
        return scores[:, :, scores.shape[-1] // 2]


class Attention(nn.Module):
    """Layer norm and multi-head self-attention, added to what came in."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(dim=-1)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = self.project(self.norm(x)).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights = self.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5)
        return x + self.out((weights @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Layer norm and two dense layers with an activation, added to what came in."""

    def __init__(self, width: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), activation(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Transformer(nn.Module):
    """A convolution averaged to one token for 8 bases, four layers of attention, the mean over tokens."""

    def __init__(self, n_targets: int, width: int = 96, n_heads: int = 4, n_layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(4, width, 15, padding=7), nn.GELU(), nn.AvgPool1d(8))
        self.layers = nn.Sequential(
            *(module for _ in range(n_layers) for module in (Attention(width, n_heads), FeedForward(width)))
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_targets))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x).transpose(1, 2)).mean(1))


class ConvBlock(nn.Module):
    """Batch norm, Enformer's GELU, x sigmoid(1.702 x), and a convolution."""

    def __init__(self, n_in: int, n_out: int, size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(n_in)
        self.conv = nn.Conv1d(n_in, n_out, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.conv(torch.sigmoid(1.702 * x) * x)


class AttentionPool(nn.Module):
    """Two positions as one, by a softmax over learnt logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.logits = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (-1, 2))
        return (x * self.logits(x).softmax(-1)).sum(-1)


class Downsampling(nn.Module):
    """A convolution, another of width 1 added to it, and attention pooling."""

    def __init__(self, n_in: int, n_out: int, first: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.pool = first, ConvBlock(n_out, n_out, 1), AttentionPool(n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.pool(x + self.second(x))


class RelativeAttention(nn.Module):
    """Layer norm and self-attention with keys of relative positions, added to what came in."""

    def __init__(self, width: int, n_heads: int, n_features: int = 32) -> None:
        super().__init__()
        self.n_heads, self.n_features = n_heads, n_features
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.of_position = nn.Linear(n_features, width, bias=False)
        self.of_content, self.of_place = (nn.Parameter(torch.randn(n_heads, 1, width // n_heads)) for _ in range(2))
        self.out = nn.Linear(width, width)

    def positions(self, n: int, like: Tensor) -> Tensor:
        """Features (2 n - 1, F) of distances -n + 1 to n - 1: exponentials and signs."""
        distance = torch.arange(-n + 1, n, dtype=like.dtype, device=like.device)[:, None]
        half_life = torch.linspace(1, 10, self.n_features // 2, dtype=like.dtype, device=like.device).exp2()
        decay = torch.exp2(-distance.abs() / half_life)
        return torch.cat([decay, decay * distance.sign()], -1)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        split = self.project(self.norm(x)).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        query = query * query.shape[-1] ** -0.5
        places = self.of_position(self.positions(n, x)).unflatten(-1, (self.n_heads, -1)).transpose(0, 1)
        relative = (query + self.of_place) @ places.mT  # (B, heads, n, 2 n - 1), to be shifted row by row
        padded = torch.cat([torch.zeros_like(relative[..., :1]), relative], -1).flatten(-2)[..., n:]
        relative = padded.unflatten(-1, (n, 2 * n - 1))[..., :n]
        weights = ((query + self.of_content) @ key.mT + relative).softmax(-1)
        return x + self.out((weights @ value).transpose(1, 2).flatten(2))


class Enformer(nn.Module):
    """Enformer's trunk: seven times half the length by attention pooling, attention over the bins, tracks averaged."""

    def __init__(self, n_targets: int, width: int = 192, n_layers: int = 4, n_heads: int = 8) -> None:
        super().__init__()
        widths = [width // 2 + width // 2 * i // 6 // 8 * 8 for i in range(7)]
        stem = Downsampling(4, widths[0], nn.Conv1d(4, widths[0], 15, padding=7))
        tower = (Downsampling(a, b, ConvBlock(a, b, 5)) for a, b in itertools.pairwise(widths))
        self.tower = nn.Sequential(stem, *tower)
        self.layers = nn.Sequential(
            *(
                module
                for _ in range(n_layers)
                for module in (RelativeAttention(width, n_heads), FeedForward(width, nn.ReLU))
            )
        )
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, n_targets), nn.Softplus()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.tower(x).transpose(1, 2))).mean(1)


class SqueezeExcite(nn.Module):
    """Channels times a gate of their means over positions."""

    def __init__(self, width: int, reduction: int = 4) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(width, width // reduction), nn.SiLU(), nn.Linear(width // reduction, width), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean(-1)).unsqueeze(-1)


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between two of width 1, with squeeze and excite, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.layers = nn.Sequential(
            nn.Conv1d(width, wide, 1, bias=False),
            nn.BatchNorm1d(wide),
            nn.SiLU(),
            nn.Conv1d(wide, wide, 9, padding=4, groups=wide, bias=False),
            nn.BatchNorm1d(wide),
            nn.SiLU(),
            SqueezeExcite(wide),
            nn.Conv1d(wide, width, 1, bias=False),
            nn.BatchNorm1d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def efficient_net(n_targets: int, width: int = 64) -> nn.Module:
    """A stem and three inverted residuals with max-pooling, as models of reporter assays have them."""
    stem = [nn.Conv1d(4, width, 9, padding=4), nn.BatchNorm1d(width), nn.SiLU()]
    blocks = [layer for _ in range(3) for layer in (InvertedResidual(width), nn.MaxPool1d(2))]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, n_targets))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, layer norm over channels and two dense layers, scaled and added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen, self.activation, self.narrow = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(x).transpose(1, 2))
        return x + (self.scale * self.narrow(self.activation(self.widen(hidden)))).transpose(1, 2)


def conv_next(n_targets: int, width: int = 64) -> nn.Module:
    """A strided stem and four blocks."""
    blocks = [ConvNeXtBlock(width) for _ in range(4)]
    head = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.LayerNorm(width), nn.Linear(width, n_targets)]
    return nn.Sequential(nn.Conv1d(4, width, 8, stride=4), *blocks, *head)


def double_convolution(n_in: int, n_out: int) -> nn.Module:
    """A convolution, batch norm and ReLU, twice."""
    layers = ((nn.Conv1d(n, n_out, 5, padding=2), nn.BatchNorm1d(n_out), nn.ReLU()) for n in (n_in, n_out))
    return nn.Sequential(*itertools.chain(*layers))


class UNet(nn.Module):
    """Two steps down by max-pooling and up by transposed convolutions, joined to what was at their resolution."""

    def __init__(self, n_targets: int, widths: tuple[int, int, int] = (32, 64, 96)) -> None:
        super().__init__()
        self.down = nn.ModuleList(double_convolution(a, b) for a, b in itertools.pairwise((4, *widths)))
        self.pool = nn.MaxPool1d(2)
        upwards = list(itertools.pairwise(widths[::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose1d(a, b, 2, stride=2) for a, b in upwards)
        self.join = nn.ModuleList(double_convolution(2 * b, b) for _, b in upwards)
        self.head = nn.Conv1d(widths[0], n_targets, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.down[0](x)]
        for layers in self.down[1:]:
            seen.append(layers(self.pool(seen[-1])))
        x = seen.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), seen.pop()], 1))
        return self.head(x).mean(-1)


class Recurrent(nn.Module):
    """A convolution with max-pooling, a recurrent layer or two and the mean over steps."""

    def __init__(self, n_targets: int, recurrent: type[nn.RNNBase], width: int = 64, **settings: int | bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(4, width, 15, padding=7), nn.ReLU(), nn.MaxPool1d(4))
        self.recurrent = recurrent(width, width, batch_first=True, **settings)
        self.head = nn.Linear(width * (1 + self.recurrent.bidirectional), n_targets)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.stem(x).transpose(1, 2))[0].mean(1))


class Encoder(nn.Module):
    """torch's own transformer layers on one token for 8 bases, the mean over tokens."""

    def __init__(self, n_targets: int, width: int = 96, n_layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(4, width, 15, padding=7), nn.GELU(), nn.MaxPool1d(8))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, n_targets)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x).transpose(1, 2)).mean(1))


@dataclass(frozen=True)
class Subject:
    """A model and the input it is benchmarked on.

    Attributes:
        make: (length, n_targets) -> model.
        length, quick_length: bases of a sequence, and with --quick.
        n_sequences: sequences in one timed call with 20 references on a CPU; ten times as many with 2 references, one
            with --quick.
        has_max_pooling: captum's rule for it is wrong, so captum is left out.
        by_name_only: timed where it is asked for.
    """

    make: Callable[[int, int], nn.Module]
    length: int
    quick_length: int
    n_sequences: int
    has_max_pooling: bool = False
    by_name_only: bool = False


def _further(make: Callable[[int], nn.Module], length: int, has_max_pooling: bool = True) -> Subject:
    return Subject(lambda _, n_targets: make(n_targets), length, 128, 4, has_max_pooling, by_name_only=True)


SUBJECTS = {
    "bpnet64": Subject(lambda length, n_targets: BPNet(64, n_targets), 2114, 400, 4),
    "bpnet256": Subject(lambda length, n_targets: BPNet(256, n_targets), 2114, 200, 2),
    "bpnet512": Subject(lambda length, n_targets: BPNet(512, n_targets), 2114, 100, 1, by_name_only=True),
    "deepsea": Subject(DeepSEA, 1000, 300, 4, has_max_pooling=True),
    "splice": Subject(lambda length, n_targets: Splice(n_targets), 10_000, 500, 2),
    "transformer": Subject(lambda length, n_targets: Transformer(n_targets), 1024, 256, 8),
    "danq": Subject(DanQ, 1000, 200, 2, has_max_pooling=True),
    "efficientnet": _further(efficient_net, 512),
    "convnext": _further(conv_next, 1024, has_max_pooling=False),
    "unet": _further(UNet, 1024),
    "lstm": _further(lambda n_targets: Recurrent(n_targets, nn.LSTM, num_layers=2), 512),
    "gru": _further(lambda n_targets: Recurrent(n_targets, nn.GRU, bidirectional=True), 512),
    "encoder": _further(Encoder, 1024),
}


# Of one pair at a time; see long.py
LONG = Subject(lambda length, n_targets: Enformer(n_targets), 131_072, 4096, 1)


def build(subject: Subject, length: int, n_targets: int, device: torch.device) -> nn.Module:
    """The model with seeded weights, in eval mode. Batch norms have statistics that are not the identity's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = subject.make(length, n_targets)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model.eval().to(device)
