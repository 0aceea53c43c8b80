"""What cannot be attributed is refused, with the operation and the module in the message; never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core import UnsupportedModelError
from tests.core.toolbox import Apply, Sandwich, explain, seeded, sequences, shuffled, worst_delta


class Part(nn.Module):
    """The offender, deep enough for its path to be worth naming."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Model(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 5)
        self.blocks = nn.ModuleList([nn.Sequential(nn.ReLU(), part)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for block in self.blocks:
            x = block(x)
        return x.reshape(len(x), -1).sum(1, keepdim=True)


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3)
    return X, shuffled(X, 4)


def gradient_inside(z: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((z**2).sum(), z, create_graph=True)
    return z + gradient


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    # random draws
    "torch.rand": (lambda z: z + torch.rand(z.shape[-1]), "'rand'"),
    "rand_like": (lambda z: z + torch.rand_like(z), "'rand_like'"),
    "randn": (lambda z: z * torch.randn(1), "'randn'"),
    "bernoulli": (lambda z: z * torch.bernoulli(torch.full((36,), 0.5)), "'bernoulli'"),
    "normal_": (lambda z: z + torch.empty(36).normal_(), "'normal'"),
    "functional dropout": (lambda z: F.dropout(z, 0.5), "'dropout'"),
    "functional dropout of channels": (lambda z: F.dropout1d(z, 0.5), "'feature_dropout'"),
    "alpha dropout": (lambda z: F.alpha_dropout(z, 0.5, training=True), "'alpha_dropout'"),
    "functional rrelu in training": (lambda z: F.rrelu(z - 1, training=True), "'rrelu'"),
    "gumbel softmax": (lambda z: F.gumbel_softmax(z, dim=-1), "'exponential'"),
    # statistics over the batch, and what mixes its rows
    "batch statistics": (lambda z: F.batch_norm(z, None, None, training=True), "'batch_norm'"),
    "maximum of everything": (lambda z: z / z.max(), "'max'"),
    "minimum of everything": (lambda z: z - z.min(), "'min'"),
    "variance of everything": (lambda z: z / z.var(), "'var'"),
    "norm of everything": (lambda z: z / torch.linalg.vector_norm(z), "'linalg_vector_norm'"),
    # values that leave torch
    "numpy": (lambda z: z + torch.from_numpy(z.detach().numpy() ** 2), "'numpy'"),
    "item": (lambda z: z * z[0, 0, 0].item(), "'item'"),
    "tolist": (lambda z: z + torch.tensor(z.tolist()), "'tolist'"),
    "float": (lambda z: z * float(z[0, 0, 0]), "'__float__'"),
    # values that jump with the input
    "argmax as an index": (lambda z: z.gather(-1, z.argmax(-1, keepdim=True)), "'gather'"),
    "argsort as an index": (lambda z: z.gather(-1, z.argsort(-1)), "'gather'"),
    "integer conversion": (lambda z: z * z.long(), "'mul'"),
    "places of the maximum": (lambda z: z.amax(-1) + z.max(-1).indices, "'add'"),
    "one-hot of argmax": (lambda z: z.sum(1) * F.one_hot(z.argmax(-1), 36).sum(1), "one_hot"),
    "floor division": (lambda z: torch.div(z, z + 1, rounding_mode="floor"), "'div'"),
    # beyond real tensors and plain forward passes
    "logarithm of an FFT": (lambda z: torch.fft.rfft(z).log().real, "'log'"),
    "gradients in forward": (gradient_inside, "grad"),
    "eigenvalues": (lambda z: torch.linalg.eigh(z @ z.mT)[0], "'linalg_eigh'"),
    "attention with dropout": (
        lambda z: F.scaled_dot_product_attention(z, z, z, dropout_p=0.1),
        "'scaled_dot_product_attention'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_module(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    function, operation = REFUSED[name]
    model = seeded(lambda: Model(Part(function)), dtype=torch.float32)
    with pytest.raises(UnsupportedModelError, match="is not supported") as caught:
        explain(model, *pairs)
    message = str(caught.value)
    assert operation in message
    assert "blocks.0.1 (Part)" in message


def test_modules_that_are_random_only_in_training_are_run_in_eval(pairs: tuple[Tensor, Tensor]) -> None:
    for part in (nn.Dropout(), nn.Dropout1d(), nn.AlphaDropout(), nn.RReLU(), nn.BatchNorm1d(3)):
        model = seeded(lambda part=part: Model(part)).train()
        assert worst_delta(explain(model, *pairs)) < 1e-9
        assert model.training


def test_batch_norm_without_running_statistics_is_refused(pairs: tuple[Tensor, Tensor]) -> None:
    model = seeded(lambda: Model(nn.BatchNorm1d(3, track_running_stats=False)))
    with pytest.raises(UnsupportedModelError, match=r"'batch_norm' in blocks\.0\.1 \(BatchNorm1d\)"):
        explain(model, *pairs)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrence_along_the_batch_is_refused(layer: Callable[..., nn.Module], pairs: tuple[Tensor, Tensor]) -> None:
    model = seeded(lambda: Apply(lambda recurrent, x: recurrent(x.mT)[0].sum((1, 2)), layer(4, 5)))
    with pytest.raises(UnsupportedModelError, match=r"^operation '\w+' in parts\.0 \(\w+\) is not.*batch_first$"):
        explain(model, *pairs)


def test_projections_are_refused(pairs: tuple[Tensor, Tensor]) -> None:
    projecting = Apply(lambda lstm, x: lstm(x.mT)[0].sum(1), nn.LSTM(4, 5, proj_size=2, batch_first=True))
    with pytest.raises(UnsupportedModelError, match=r"'lstm' in parts\.0 \(LSTM\).*proj_size"):
        explain(projecting, *pairs)


def test_a_branch_that_depends_on_the_sequence_is_refused(pairs: tuple[Tensor, Tensor]) -> None:
    def forward(conv: nn.Module, x: Tensor) -> Tensor:
        z = conv(x)
        return (z.exp() if x[:, 0, 7].sum() > x[:, 1, 7].sum() else z.tanh()).sum(-1)

    X, references = pairs
    X, references = X.clone(), references.clone()
    X[:, :, 7], references[..., 7] = torch.tensor([1, 0, 0, 0]), torch.tensor([0, 1, 0, 0])
    with pytest.raises(UnsupportedModelError, match="does not do the same on a sequence and on its reference"):
        explain(seeded(lambda: Apply(forward, nn.Conv1d(4, 2, 5))), X, references)


def test_script_modules_are_refused_by_name(pairs: tuple[Tensor, Tensor]) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted = torch.jit.trace(nn.ReLU(), torch.zeros(1, 3, 36))
    with pytest.raises(UnsupportedModelError, match=r"'blocks\.0\.1' is a ScriptModule"):
        explain(seeded(lambda: Model(scripted)), *pairs)
    with pytest.raises(UnsupportedModelError, match="the model is a ScriptModule"):
        explain(scripted, *pairs)


def test_data_that_is_not_finite_is_not_explained_silently(pairs: tuple[Tensor, Tensor]) -> None:
    result = explain(seeded(lambda: Apply(lambda conv, x: torch.log(conv(x)).sum(-1), nn.Conv1d(4, 1, 5))), *pairs)
    assert result.prediction.isnan().any()
    assert result.convergence_delta.isnan().any()


def test_the_error_is_a_value_error() -> None:
    assert issubclass(UnsupportedModelError, ValueError)


class Inner(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 2, 3)
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(self.conv, z)


class InferenceMode(Inner):
    @torch.inference_mode()
    def forward(self, z: Tensor) -> Tensor:
        return self.function(self.conv, z)


class NoGrad(Inner):
    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        return self.function(self.conv, z)


def test_inference_mode_is_refused_with_the_module_to_change(pairs: tuple[Tensor, Tensor]) -> None:
    def within(conv: nn.Module, z: Tensor) -> Tensor:
        with torch.inference_mode():
            return conv(z)

    decorated = r"^operation 'conv1d' in .*remove @torch.inference_mode from forward of blocks\.0\.1 \(InferenceMode\)"
    with pytest.raises(UnsupportedModelError, match=decorated):
        explain(seeded(lambda: Model(InferenceMode(lambda conv, z: conv(z)))), *pairs)
    with pytest.raises(
        UnsupportedModelError, match=r"in blocks\.0\.1\.conv \(Conv1d\).*remove torch.inference_mode from"
    ):
        explain(seeded(lambda: Model(Inner(within))), *pairs)


def test_checks_of_torchs_distributions_are_followed(pairs: tuple[Tensor, Tensor]) -> None:
    model = seeded(lambda: Model(Part(lambda z: torch.distributions.LogNormal(z, 1.0).mean)))
    assert worst_delta(explain(model, *pairs)) < 1e-12


def test_no_grad_on_forward_is_followed(pairs: tuple[Tensor, Tensor]) -> None:
    first, second = (seeded(lambda part=part: Model(part(lambda conv, z: conv(z).tanh()))) for part in (NoGrad, Inner))
    assert torch.equal(explain(first, *pairs).hypothetical, explain(second, *pairs).hypothetical)


@pytest.mark.parametrize(
    ("dtype", "computed_in"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float64)],
)
def test_a_conversion_to_fewer_digits_inside_is_refused_with_the_module_to_change(
    dtype: torch.dtype, computed_in: torch.dtype, pairs: tuple[Tensor, Tensor]
) -> None:
    model = seeded(lambda: Model(Inner(lambda conv, z: conv(z.to(dtype)).to(computed_in))), dtype=computed_in)
    name = str(dtype).removeprefix("torch.")
    message = rf"^blocks\.0\.1 \(Inner\) converts its input to {name} by 'to'.*remove the conversion from forward"
    with pytest.raises(UnsupportedModelError, match=message):
        explain(model, *pairs)


def test_an_error_of_the_model_itself_is_passed_on(pairs: tuple[Tensor, Tensor]) -> None:
    def forward(x: Tensor) -> Tensor:
        raise KeyError("the model's own mistake")

    with pytest.raises(KeyError, match="own mistake"):
        explain(Apply(forward), *pairs)


def test_a_wrong_shape_inside_the_model_is_torchs_error(pairs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(7, 1)), *pairs)


def scripted_swish(z: Tensor) -> Tensor:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        return torch.jit.script(swish)(z)


def swish(z: Tensor) -> Tensor:
    return z * torch.sigmoid(z)


UNSEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "scripted function": scripted_swish,
    "another thread": lambda z: z * ThreadPoolExecutor(1).submit(torch.sigmoid, z).result(),
    "a constructor": lambda z: z * nn.Parameter(z.mean(-1, keepdim=True)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_goes_past_the_function_mode_shows_in_the_sums(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UnsupportedModelError, match="contributions miss the difference"):
        explain(seeded(lambda: Sandwich(UNSEEN[name])), *pairs)
