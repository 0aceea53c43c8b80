"""Convolutions with the channels last in memory: the same values, and models that depend on the format are noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core import UnsupportedModelError, audit
from dlshap_core.kernels.memory_format import FormatChoice, crop, has_channels_last
from dlshap_core.one_hot import one_hot
from dlshap_core.rules import convolutions
from dlshap_core.rules.convolutions import convolve
from tests.core.toolbox import Apply, Sandwich, explain, multipliers, relative_difference, seeded, sequences, shuffled

L = 40
C = 6


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3, L, seed=1)
    return X, shuffled(X, 4)


@pytest.fixture
def convolved() -> Iterator[mock.Mock]:
    """Counts the convolutions computed with the channels last."""
    with mock.patch.object(convolutions, "convolve", wraps=convolve) as counted:
        yield counted


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
def test_where_formats_change() -> None:
    cpu = torch.device("cpu")
    assert FormatChoice.of(cpu, torch.float32).may_change
    assert not FormatChoice.of(cpu, torch.float64).may_change
    assert not FormatChoice.of(torch.device("cuda"), torch.float32).may_change
    torch._C._set_mkldnn_enabled(False)
    try:
        assert not FormatChoice.of(cpu, torch.float32).may_change
    finally:
        torch._C._set_mkldnn_enabled(True)


def gradients(x: Tensor, convolution: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A convolution of x, and an uneven gradient of it taken back."""
    leaf = x.clone().requires_grad_()
    y = convolution(leaf)
    weights = torch.arange(y.numel()).reshape(y.shape).cos()
    return y.detach(), torch.autograd.grad((y * weights).sum(), leaf)[0]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 3, "bias": False},
        {"stride": (2,), "padding": (4,)},
        {"stride": 2, "dilation": 3, "padding": 5},
        {"padding": "same", "dilation": 3},
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": 6, "dilation": 2, "groups": 2},
        {"padding": 50},
    ],
)
@pytest.mark.parametrize("kernel_size", [1, 4, 5, 40])
@pytest.mark.parametrize("n_channels", [4, 16])
def test_convolutions_of_one_axis(n_channels: int, kernel_size: int, options: dict[str, Any]) -> None:
    layer = seeded(lambda: nn.Conv1d(n_channels, C, kernel_size, **options), dtype=torch.float32)
    layer.requires_grad_(False)
    x = torch.randn(5, n_channels, 3 * L, generator=torch.Generator().manual_seed(0))
    arguments = (layer.stride, layer.padding, layer.dilation, layer.groups)
    found = gradients(x, lambda x: convolve(x, layer.weight, layer.bias, *arguments))
    assert all(map(has_channels_last, found))
    for mine, expected in zip(found, gradients(x, layer), strict=True):
        assert relative_difference(mine, expected) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 3},
        {"stride": 3, "bias": False},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"padding": 4, "dilation": 3},
        {"stride": (2,), "dilation": 4, "output_padding": (3,)},
        {"stride": 5},
    ],
)
def test_transposed_convolutions(options: dict[str, Any], pairs: tuple[Tensor, Tensor]) -> None:
    """Against float64, which is computed by torch."""

    def up(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(F.relu(stem(x))).tanh().cumsum(-1)[:, :, 7::11].flatten(1)

    found, expected = (
        multipliers(
            seeded(lambda: Apply(up, nn.Conv1d(4, C, 5), nn.ConvTranspose1d(C, 5, 3, **options)), dtype=dtype), *pairs
        )
        for dtype in (torch.float32, torch.float64)
    )
    assert relative_difference(found, expected) < 1e-4


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": (1, 2)}, {"padding": "same", "dilation": (1, 2)}])
def test_convolutions_of_two_axes(options: dict[str, Any]) -> None:
    layer = seeded(lambda: nn.Conv2d(C, 2 * C, (2, 3), **options), dtype=torch.float32)
    x = torch.randn(5, C, 4, L, generator=torch.Generator().manual_seed(0))
    found = convolve(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)
    assert has_channels_last(found)
    assert relative_difference(found.detach(), layer(x).detach()) < 1e-6


@pytest.mark.parametrize("options", [{}, {"padding": (0, 3), "stride": 2}, {"dilation": (1, 2)}, {"padding": "valid"}])
@pytest.mark.parametrize(("n_channels", "height", "kernel_height"), [(1, 4, 4), (4, 1, 1), (1, 4, 2), (2, 4, 4)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_convolutions_of_an_axis_that_is_gone_after_them(
    n_channels: int, height: int, kernel_height: int, is_turned: bool, options: dict[str, Any]
) -> None:
    def turned(sizes: Any) -> Any:
        return sizes[::-1] if is_turned and isinstance(sizes, tuple) else sizes

    kernel_size = turned((kernel_height, 5))
    options = {name: turned(sizes) for name, sizes in options.items()}
    layer = seeded(lambda: nn.Conv2d(n_channels, C, kernel_size, **options), dtype=torch.float32).requires_grad_(False)
    x = torch.randn(5, n_channels, *turned((height, L)), generator=torch.Generator().manual_seed(0))
    arguments = (layer.stride, layer.padding, layer.dilation)
    found = gradients(x, lambda x: convolve(x, layer.weight, layer.bias, *arguments))
    for mine, expected in zip(found, gradients(x, layer), strict=True):
        assert relative_difference(mine, expected) < 1e-5


def residual(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(stem(x))
    return (x + F.relu(layer(x))).mean(-1)


def in_two_dimensions(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(F.conv2d(x.unsqueeze(1), stem.weight.unsqueeze(1)).squeeze(2))
    return F.max_pool1d(layer(x), 4).view(len(x), -1)[:, ::7]


def attention(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    tokens = F.gelu(stem(x)).transpose(1, 2)
    weights = (tokens @ tokens.mT / 2).softmax(-1)
    return layer((weights @ tokens).transpose(1, 2)).amax(-1)


def views(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    x = stem(x).view(len(x), 2, -1, L).relu().view(len(x), C, L)
    return layer(x.flatten(1).view_as(x).contiguous()).reshape(len(x), -1).unflatten(1, (C, -1))[:, :, 3:9].sum(-1)


def normalised(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    x = F.layer_norm(stem(x), (L,))
    x = F.batch_norm(x, torch.linspace(-1, 1, C), torch.linspace(1, 2, C), torch.linspace(2, 1, C))
    return F.avg_pool1d(F.silu(layer(F.group_norm(x, 2))), L).squeeze(-1)


def cumulative(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    return F.softmax(layer(stem(x)), 1).cumsum(-1)[..., -3:].mean(-1)


INSENSITIVE = [residual, in_two_dimensions, attention, views, normalised, cumulative]


def with_convolutions(function: Callable[..., Tensor], dtype: torch.dtype) -> nn.Module:
    def make() -> nn.Module:
        return Apply(function, nn.Conv1d(4, C, 5, padding=2), nn.Conv1d(C, C, 3, padding=4, dilation=4))

    model = seeded(make, dtype=dtype)
    model.function = lambda stem, layer, x: function(stem, layer, x).to(dtype)
    return model


def in_plain_format(function: Callable[..., Tensor], X: Tensor, references: Tensor) -> Tensor:
    with mock.patch.object(FormatChoice, "of", return_value=FormatChoice(may_change=False)):
        return multipliers(with_convolutions(function, torch.float32), X, references)


@pytest.mark.parametrize("function", INSENSITIVE, ids=lambda function: function.__name__)
@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_models_give_the_same(
    function: Callable[..., Tensor], batch_size: int, pairs: tuple[Tensor, Tensor], convolved: mock.Mock
) -> None:
    found = multipliers(with_convolutions(function, torch.float32), *pairs, batch_size=batch_size)
    n_passes = 2 * -(-12 // batch_size) + 2 * (batch_size > 1)  # two look at what becomes of the rows of a batch
    assert convolved.call_count >= 2 * n_passes  # more for company of a lone sequence, or what is checked in float64
    assert relative_difference(found, in_plain_format(function, *pairs)) < 1e-4


@pytest.mark.parametrize("function", [residual, in_two_dimensions], ids=lambda function: function.__name__)
def test_several_targets_give_what_each_gives(function: Callable[..., Tensor], pairs: tuple[Tensor, Tensor]) -> None:
    model = with_convolutions(function, torch.float32)
    together = explain(model, *pairs, targets=[0, 2, 1]).hypothetical
    for position, target in enumerate([0, 2, 1]):
        alone = explain(model, *pairs, targets=[target]).hypothetical[:, 0]
        assert relative_difference(together[:, position], alone) < 1e-5


@pytest.mark.parametrize(
    "index",
    [
        (slice(None), slice(None), slice(5, -5)),
        (Ellipsis, slice(5, -5)),
        (slice(1, 3), Ellipsis),
        (slice(None), slice(2, 5)),
        slice(0, 2),
        Ellipsis,
        (),
        (slice(None), slice(None), slice(None, None, 2), Ellipsis),
        (0,),
        (slice(None), None),
        (slice(None), slice(None), torch.tensor([3, 1])),
    ],
)
def test_crops_are_what_indexing_gives(index: Any) -> None:
    x = torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(0)).transpose(1, 2).requires_grad_()
    found = crop(x, index)
    assert torch.equal(found, x[index])
    assert (found.data_ptr() == x[index].data_ptr()) == (x[index]._base is not None)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, x[index])))


def test_too_many_indices() -> None:
    with pytest.raises(IndexError, match="too many indices"):
        crop(torch.randn(4, 12, 6).transpose(1, 2), (slice(None),) * 4)


def test_gradients_stay_in_the_format_of_the_activations(pairs: tuple[Tensor, Tensor]) -> None:
    formats: list[bool] = []

    def watched(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
        x = stem(x) + 1  # of which the mean alone is taken, and then more
        if x.requires_grad:
            x.register_hook(lambda gradient: formats.append(has_channels_last(gradient)))
        x = layer(x + x.mean(-1, keepdim=True))
        for _ in range(3):
            if x.requires_grad:
                x.register_hook(lambda gradient: formats.append(has_channels_last(gradient)))
            x = x + F.relu(layer(x))
        return x[:, :, 5:-5].mean(-1)

    multipliers(with_convolutions(watched, torch.float32), *pairs, batch_size=12)
    assert formats == [True] * 4


def writes_into_a_copy(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """A copy in the model's own format, and the tensor itself with the channels last."""
    x = stem(x)
    y = x.transpose(1, 2).contiguous()
    y.relu_()
    return layer(x).mean(-1) + y.mean(1)


def writes_into_a_view(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """The other way round."""
    x = stem(x)
    x.view(len(x), -1)[:, ::2] *= 3
    return layer(x).mean(-1)


def writes_into_the_reshaped(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    x = stem(x)
    y = x.reshape(len(x), -1)
    x.clamp_(min=0)
    return layer(x).mean(-1) + y[:, :C]


def reads_strides(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    x = layer(stem(x))
    return x.mean(-1) if x.stride(1) == L else x.sum(-1)


def goes_by_strides(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    x = layer(stem(x))
    return x.as_strided((len(x), C), (C * L, 7)).relu()


def reads_strides_and_hides_it(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    x = layer(stem(x))
    try:
        return x.mean(-1) if x.stride(1) == L else x.sum(-1)
    except Exception:  # noqa: BLE001  # as a model may do
        return x.sum(-1)


def fails(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """A view of what carries no gradient."""
    x = layer(stem(x))
    return x.amax(-1) + torch.zeros_like(x).view(len(x), -1)[:, :C]


def writes_through_a_constant(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    x = layer(stem(x))
    result = torch.zeros_like(x)
    result.reshape(len(x), -1)[:, ::2] = x.flatten(1)[:, ::2]
    return result.sum(-1)


SENSITIVE = [
    writes_into_a_copy,
    writes_into_a_view,
    writes_into_the_reshaped,
    reads_strides,
    reads_strides_and_hides_it,
    goes_by_strides,
    fails,
    writes_through_a_constant,
]


@pytest.mark.parametrize("function", SENSITIVE, ids=lambda function: function.__name__)
def test_models_that_depend_on_the_format_are_run_in_their_own(
    function: Callable[..., Tensor], pairs: tuple[Tensor, Tensor], convolved: mock.Mock
) -> None:
    model = with_convolutions(function, torch.float32)
    found = multipliers(model, *pairs, batch_size=4)
    assert 1 <= convolved.call_count <= 4  # in the first batch alone
    expected = multipliers(with_convolutions(function, torch.float64), *pairs)
    assert relative_difference(found, expected) < 1e-5


@pytest.mark.parametrize(
    "function",
    [lambda z: z.softmax(1), lambda z: z.softmax(-1), lambda z: F.group_norm(z, 3)],
    ids=["softmax of channels", "softmax of positions", "group norm"],
)
def test_outputs_can_be_viewed_as_torchs_can(
    function: Callable[[Tensor], Tensor], pairs: tuple[Tensor, Tensor]
) -> None:
    """torch gives these side by side whatever the input; in float64 formats are the model's own."""

    def by_view(z: Tensor) -> Tensor:
        return function(z.transpose(1, 2).contiguous().transpose(1, 2)).view(len(z), -1)

    found, expected = (
        multipliers(seeded(lambda way=way: Sandwich(way, channels=C)), *pairs, batch_size=4)  # type: ignore[misc]
        for way in (by_view, lambda z: function(z).reshape(len(z), -1))
    )
    assert relative_difference(found, expected) < 1e-12


def test_an_audit_knows_nothing_of_a_format_given_up(pairs: tuple[Tensor, Tensor]) -> None:
    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view(-1).view(x.shape)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0]

    found = audit(with_convolutions(lambda stem, layer, x: Sign.apply(layer(stem(x))).mean(-1), torch.float32), *pairs)
    assert found.refused == ()


def test_memory_that_is_short_is_no_matter_of_format(pairs: tuple[Tensor, Tensor]) -> None:
    calls = []

    def short_of_memory(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
        stem(x)
        calls.append(1)
        raise torch.OutOfMemoryError("of the model")

    with pytest.raises(torch.OutOfMemoryError):
        explain(with_convolutions(short_of_memory, torch.float32), *pairs)
    assert len(calls) == 1  # not once more, to tell whose failure it is


def test_an_error_of_the_models_own_is_raised_as_it_is(pairs: tuple[Tensor, Tensor]) -> None:
    def broken(stem: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
        stem(x)
        raise KeyError("of the model")

    with pytest.raises(KeyError, match="of the model"):
        explain(with_convolutions(broken, torch.float32), *pairs)


def test_half_precision_under_autocast(pairs: tuple[Tensor, Tensor], convolved: mock.Mock) -> None:
    multipliers(with_convolutions(normalised, torch.float32), *pairs, dtype=torch.float16)
    assert convolved.call_count == 0
    found = multipliers(with_convolutions(normalised, torch.float32), *pairs, dtype=torch.bfloat16)
    assert convolved.call_count > 0
    assert relative_difference(found, in_plain_format(normalised, *pairs)) < 0.1


def test_only_three_and_four_axes_have_channels() -> None:
    x = torch.randn(2, 3, 4)
    assert not has_channels_last(x)
    assert has_channels_last(x.transpose(1, 2))
    assert not has_channels_last(x[0].T)


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
def test_writes_into_a_view_or_a_copy(share: Callable[[Tensor], Tensor]) -> None:
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


@pytest.mark.parametrize("dim", [1, -2, 2])
def test_what_is_joined_keeps_the_format(dim: int, pairs: tuple[Tensor, Tensor], convolved: mock.Mock) -> None:
    def joined(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        h = first(x)
        h = torch.cat([h, F.gelu(h), x[:, :, 4:]] if dim == 1 else [h, F.gelu(h)], dim=dim)
        return F.gelu(second(h)).mean((1, 2)).unsqueeze(1)

    n_channels = {1: 20, -2: 16}.get(dim, 8)
    model = seeded(lambda: Apply(joined, nn.Conv1d(4, 8, 5), nn.Conv1d(n_channels, 3, 5)), dtype=torch.float32)
    found = multipliers(model, *pairs)
    assert {has_channels_last(call.args[0]) for call in convolved.call_args_list[1::2]} == {True}
    assert relative_difference(found, multipliers(model, *pairs, dtype=torch.float64)) < 1e-5


class LaterWrong(torch.autograd.Function):
    """Copies its input; its gradient is wrong where `factor` is not 1."""

    factor = 1.0

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return LaterWrong.factor * gradient


def test_a_format_given_up_in_a_later_batch_ends_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(conv: nn.Module, x: Tensor) -> Tensor:
        h = conv(x)
        if LaterWrong.factor != 1:
            h.stride()
        return LaterWrong.apply(h).mean((1, 2)).unsqueeze(1)

    def spoil(n_pairs: int, deltas: Tensor) -> None:
        monkeypatch.setattr(LaterWrong, "factor", 2.0)

    X = sequences(6)
    model = seeded(lambda: Apply(forward, nn.Conv1d(4, 16, 5)), dtype=torch.float32)
    with pytest.raises(UnsupportedModelError, match="the custom autograd function 'LaterWrong'"):
        explain(model, X, shuffled(X, 2), batch_size=4, progress=spoil)
