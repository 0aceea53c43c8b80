"""Each fused rule on a GPU gives what the CPU gives, whatever it is called with, and however often it goes back."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core import UnsupportedModelError, attribute

pytestmark = pytest.mark.gpu
S, K, LENGTH, CHANNELS = 2, 3, 24, 8
Function = Callable[[Tensor], Tensor]

ELEMENTWISE: dict[str, Function] = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x + 0, inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.full((CHANNELS,), 0.3, dtype=x.dtype, device=x.device)),
    "rrelu": F.rrelu,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp(min=)": lambda x: x.clamp(min=-0.2),
    "clamp of a tensor": lambda x: x.clamp(max=torch.full((LENGTH,), 0.2, dtype=x.dtype, device=x.device)),
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "softshrink": lambda x: F.softshrink(x, 0.1),
    "elu": lambda x: F.elu(x, 1.3),
    "celu": lambda x: F.celu(x, 1.3),
    "selu": F.selu,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda x: torch.log(x.abs() + 0.1),
    "log1p": lambda x: torch.log1p(x.abs()),
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 0.5),
    "square": torch.square,
    "x ** 2": lambda x: x**2,
    "x ** 3": lambda x: x**3,
    "2 ** x": lambda x: 2.0**x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, 2.0, 5.0),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "erf": torch.erf,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
}
OTHERS: dict[str, Function] = {
    "softmax": lambda x: x.softmax(-1),
    "softmax of channels": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "log_softmax of channels": lambda x: x.log_softmax(1),
    "logsumexp": lambda x: x.logsumexp(-1, keepdim=True),
    "logsumexp of two axes": lambda x: x.unflatten(-1, (4, 6)).logsumexp((1, 3)).unsqueeze(1).expand(-1, CHANNELS, -1),
    "logaddexp": lambda x: torch.logaddexp(x, 2 * x.tanh()),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-2:], None, torch.ones_like(x[0]).detach()),
    "layer_norm with a weight": lambda x: F.layer_norm(x, [LENGTH], torch.linspace(0.5, 2, LENGTH).to(x), None),
    "rms_norm": lambda x: F.rms_norm(x, [LENGTH], torch.linspace(0.5, 2, LENGTH).to(x), 1e-5),
    "group_norm": lambda x: F.group_norm(x, 2),
    "group_norm with a weight": lambda x: F.group_norm(x, 4, *torch.linspace(0.5, 2, 2 * CHANNELS).to(x).chunk(2)),
    "group_norm of one axis": lambda x: F.group_norm(x.flatten(1), 4).view_as(x).tanh(),
    "instance_norm with a weight": lambda x: F.instance_norm(x, weight=torch.linspace(0.5, 2, CHANNELS).to(x)).tanh(),
    "variance": lambda x: x.var(-1, keepdim=True) + x.std(1, unbiased=False, keepdim=True),
    "variance of two axes": lambda x: x + torch.var_mean(x, (1, 2), correction=0, keepdim=True)[0],
    "instance_norm": lambda x: F.instance_norm(x).tanh(),  # its own mean is 0
    "product": lambda x: x * x.tanh(),
    "product in place": lambda x: x.tanh().mul_(x),
    "gate": lambda x: x * x.mean(-1, keepdim=True).sigmoid(),
    "matmul": lambda x: x @ x.mT,
    "quotient": lambda x: x / (1 + x * x),
    "quotient of a number": lambda x: 1 / (1 + x * x),
    "quotient of a constant": lambda x: torch.linspace(0.5, 2, LENGTH).to(x) / (1 + x * x),
    "quotient of means": lambda x: x.mean(-1, keepdim=True) / (1 + x * x),
    "quotient by means": lambda x: x / (1 + (x * x).mean(-1, keepdim=True)),
    "quotient by sums": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "quotient of means by means": lambda x: x.mean(-1, keepdim=True) / (1 + (x * x).mean(1, keepdim=True)),
    "quotient in place": lambda x: (x + 0).div_(1 + (x * x).mean(-1, keepdim=True)),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "where with a number": lambda x: torch.where(x > x.mean(-1, keepdim=True), x, 0.5),
    "where with a tensor": lambda x: torch.where(x <= 0, torch.linspace(0.5, 2, LENGTH).to(x), x.tanh()),
    "where of two numbers": lambda x: torch.where(x >= 0.1, 2.0, 0.5).to(x.dtype),
    "where undefined": lambda x: torch.where(x > 0, torch.log(x), 0.0),
    "masked_fill": lambda x: x.masked_fill(x < 0.1, -1.0).softmax(-1),
    "masked_fill all": lambda x: x.masked_fill(x < 9, -math.inf).logsumexp(1).clamp(min=-1).unsqueeze(1) + x,
    "masked_fill with infinity": lambda x: x.masked_fill(x < -0.3, -math.inf).softmax(-1),
    "where by a threshold that is rounded": lambda x: torch.where(x.round(decimals=1) > 0.1, x, 2 * x),
    "where of what changed since": lambda x: where_of_what_changed(x, lambda mask, z: z.mul_(-3)),
    "where by a mask that changed since": lambda x: where_of_what_changed(x, lambda mask, z: mask[:, :4].fill_(False)),
    "where by a mask of another shape": lambda x: torch.where(x[:, :1] > 0.1, x, x.tanh()),
    "where else": lambda x: torch.where(x < 0.1, x.tanh(), x),
    "masked_fill in place": lambda x: (x + 0).masked_fill_(x < 0.1, 2.0),
    "masked_fill of itself in place": lambda x: masked_fill_of_itself(x + 0),
    "not where": lambda x: torch.where(~(x > 0.1), x, x.tanh()),
    "where between": lambda x: torch.where(x > x.flip(-1), x, 0.1 * x),
    "masks": lambda x: x * ((x > 0.1) | (x < -0.1)) + (x == 0),
    "max_pool of blocks": lambda x: F.max_pool1d(x, 4),
    "max_pool": lambda x: F.max_pool1d(x, 5, 2, padding=1),
    "max_pool of gaps": lambda x: F.max_pool1d(x, 3, 2, padding=1, dilation=2, ceil_mode=True),
    "max_pool of two axes": lambda x: F.max_pool2d(x.unflatten(-1, (4, 6)), 3, (1, 2), padding=1).flatten(2),
    "max of two axes": lambda x: x.unflatten(-1, (4, 6)).amax((2, 3)).unsqueeze(-1),
    "max over channels": lambda x: x + x.max(1, keepdim=True).values + x.amin(1, keepdim=True),
    "sort": lambda x: x.relu().sort(-1).values * torch.linspace(0, 1, LENGTH).to(x),
    "topk": lambda x: x.relu().topk(5, -1).values,
    "smallest of channels": lambda x: torch.topk(x, 3, 1, largest=False).values.repeat(1, 3, 1)[:, :CHANNELS],
    "median": lambda x: x.median(-1, keepdim=True).values,
    "adaptive_max_pool": lambda x: F.adaptive_max_pool1d(x, 6),
    "uneven adaptive_max_pool": lambda x: F.adaptive_max_pool1d(x, 7),
}


def where_of_what_changed(x: Tensor, change: Callable[[Tensor, Tensor], object]) -> Tensor:
    z = x + 0
    mask = z > 0.1
    change(mask, z)
    return torch.where(mask, z, x.tanh())


def masked_fill_of_itself(z: Tensor) -> Tensor:
    return z.masked_fill_(z < 0.1, 2.0)


class Model(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, CHANNELS, 5, padding=2)
        self.function = function
        self.mix = nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.function(self.conv(x)).mean(-1))


def one_hot(seed: int, *shape: int) -> Tensor:
    codes = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed))
    return F.one_hot(codes, 4).transpose(-1, -2).float()


def assert_as_on_a_cpu(function: Function, dtype: torch.dtype, n_references: int, tolerance: float) -> None:
    X, references = one_hot(0, 4, LENGTH), one_hot(1, 4, n_references, LENGTH)
    references[0, 0] = X[0]
    of = {}
    for device in ("cpu", "cuda"):
        found = attribute(
            Model(function).eval(),
            X,
            references,
            targets=[0, 1],
            device=device,
            batch_size=S * n_references,
            dtype=dtype,
        )
        of[device] = found.hypothetical
    scale = of["cpu"].abs().max()
    assert scale > 0
    assert (of["cuda"] - of["cpu"]).abs().max() <= tolerance * scale


@pytest.mark.parametrize("name", [*ELEMENTWISE, *OTHERS])
def test_multipliers_are_those_of_a_cpu(name: str) -> None:
    function = (ELEMENTWISE | OTHERS)[name]
    assert_as_on_a_cpu(function, torch.float64, K, 1e-9)
    assert_as_on_a_cpu(function, torch.float32, 1, 1e-3)


def test_a_softmax_over_the_batch_is_refused_by_name() -> None:
    X, references = one_hot(0, 4, LENGTH), one_hot(1, 4, K, LENGTH)
    with pytest.raises(UnsupportedModelError, match="'softmax' in the model"):
        attribute(Model(lambda x: x[..., :2].softmax(0)).eval(), X, references, device="cuda", batch_size=S * K)


@pytest.mark.parametrize(
    "name", ["relu", "gelu", "softmax", "layer_norm with a weight", "product", "quotient", "where"]
)
def test_half_precision(name: str) -> None:
    assert_as_on_a_cpu((ELEMENTWISE | OTHERS)[name], torch.bfloat16, K, 0.05)
