"""A borrowed model comes back bit for bit as it was: after success, failure and interruption, and in two threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all_modules

from dlshap_core import UnsupportedModelError
from tests.core.toolbox import (
    Apply,
    Sandwich,
    explain,
    multipliers,
    relative_difference,
    seeded,
    sequences,
    shuffled,
    worst_delta,
)


class Stateful(nn.Module):
    """Parts in different modes, frozen and shared parameters, buffers that forward writes and replaces."""

    def __init__(self, last_word: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 5)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.mirror = nn.Conv1d(6, 6, 1)
        self.again = self.mirror
        self.head = nn.Linear(6, 2)
        self.last_word = last_word
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(6, 1), persistent=False)
        self.register_buffer("last_size", torch.zeros((), dtype=torch.int64))
        self.register_buffer("absent", None)
        self.note = {"kept": [1, 2]}
        self.train()
        self.norm.eval()
        self.conv.weight.requires_grad_(False)
        self.head.bias.grad = torch.full((2,), 7.0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last_size = torch.tensor(len(x))
        x = self.drop(torch.relu(self.norm(self.conv(x))))
        return self.last_word(self.head(torch.relu(self.again(self.mirror(x)) * self.scale).mean(-1)))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that can be told about a model from outside."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        state[f"{name}: class"] = type(module)
        state[f"{name}: mode"] = module.training
        state[f"{name}: attributes"] = {
            key: (id(value) if key not in _CONTAINERS else [(k, id(v)) for k, v in value.items()])
            for key, value in vars(module).items()
            if key != "training"
        }
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        gradient = tensor.grad if tensor.is_leaf else None
        state[f"{name}: tensor"] = (id(tensor), tensor.data_ptr(), tensor.requires_grad, tensor.dtype, tensor.device)
        state[f"{name}: version of values"] = tensor.detach().clone().flatten().tolist()
        state[f"{name}: gradient"] = None if gradient is None else (id(gradient), gradient.tolist())
    return state


_CONTAINERS = {name for name in vars(nn.Module()) if isinstance(vars(nn.Module())[name], dict)}


def global_hooks() -> list[int]:
    return [
        len(hooks)
        for hooks in (
            hooks_of_all_modules._global_forward_hooks,
            hooks_of_all_modules._global_forward_pre_hooks,
            hooks_of_all_modules._global_backward_hooks,
            hooks_of_all_modules._global_backward_pre_hooks,
            hooks_of_all_modules._global_forward_hooks_always_called,
        )
    ]


def interrupt(y: Tensor) -> Tensor:
    raise KeyboardInterrupt


def interrupt_the_references(y: Tensor) -> Tensor:
    if len(y) > 3:
        raise KeyboardInterrupt
    return y


def fail(y: Tensor) -> Tensor:
    raise RuntimeError("a failure of the model's own")


def draw(y: Tensor) -> Tensor:
    return y + torch.rand(2)


def half(module: nn.Module, grad_input: tuple[Any, ...], grad_output: tuple[Any, ...]) -> tuple[Any, ...]:
    return (grad_input[0] / 2,)


def broken(module: nn.Module, grad_input: tuple[Any, ...], grad_output: tuple[Any, ...]) -> tuple[Any, ...]:
    raise RuntimeError("a failure of the rule's own")


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3)
    return X, shuffled(X, 4)


def make(last_word: Callable[[Tensor], Tensor] = lambda y: y) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Stateful(last_word)


@pytest.mark.parametrize(
    ("last_word", "options", "error"),
    [
        (lambda y: y, {}, None),
        (lambda y: y, {"targets": "all", "batch_size": 3}, None),
        (lambda y: y, {"user_rules": {nn.Linear: half}}, None),
        (lambda y: y, {"dtype": torch.bfloat16}, None),
        (lambda y: y, {"targets": [9]}, IndexError),
        (lambda y: y, {"user_rules": {nn.Linear: broken}}, RuntimeError),
        (lambda y: y.sum(), {}, ValueError),
        (draw, {}, UnsupportedModelError),
        (fail, {}, RuntimeError),
        (interrupt, {}, KeyboardInterrupt),
        (interrupt_the_references, {}, KeyboardInterrupt),
        (interrupt, {"user_rules": {nn.Linear: half}}, KeyboardInterrupt),
    ],
    ids=[
        *("success", "targets and batches", "user rule", "autocast", "no such target", "broken rule", "wrong shape"),
        *("refusal", "failure", "interrupted", "interrupted later", "interrupted with a rule"),
    ],
)
def test_the_model_is_as_it_was(
    last_word: Callable[[Tensor], Tensor],
    options: dict[str, Any],
    error: type[BaseException] | None,
    pairs: tuple[Tensor, Tensor],
) -> None:
    model = make(last_word)
    before, hooks, grad_mode = snapshot(model), global_hooks(), torch.is_grad_enabled()
    if error is None:
        explain(model, *pairs, **options)
    else:
        with pytest.raises(error):
            explain(model, *pairs, **options)
    assert snapshot(model) == before
    assert global_hooks() == hooks
    assert torch.is_grad_enabled() == grad_mode
    assert torch.overrides._get_current_function_mode_stack() == []


def test_the_model_still_learns_afterwards(pairs: tuple[Tensor, Tensor]) -> None:
    model, other = make(), make()
    explain(model, *pairs)
    for each in (model, other):
        torch.manual_seed(3)
        each(pairs[0].float()).square().sum().backward()
    for mine, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (expected.grad is None)
        if expected.grad is not None:
            assert torch.equal(mine.grad, expected.grad)


def test_what_forward_writes_into_buffers_does_not_tell_the_passes_apart(pairs: tuple[Tensor, Tensor]) -> None:
    model = make().double()
    assert worst_delta(explain(model, *pairs, batch_size=3)) < 1e-9


def test_inputs_are_left_alone(pairs: tuple[Tensor, Tensor]) -> None:
    def in_place(conv: nn.Module, x: Tensor, gate: Tensor) -> Tensor:
        x.mul_(2)
        return (conv(x) * gate[:, None]).mean(-1)

    X, references = pairs[0].float(), pairs[1].float()
    gate = torch.rand(3, 36)
    before = [tensor.clone() for tensor in (X, references, gate)]
    result = explain(Apply(in_place, nn.Conv1d(4, 2, 5)).eval(), X, references, args=(gate,))
    assert worst_delta(result) < 1e-4
    for tensor, value in zip((X, references, gate), before, strict=True):
        assert torch.equal(tensor, value)
        assert not tensor.requires_grad


def test_the_random_stream_is_not_consumed(pairs: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    explain(make(), *pairs)
    assert torch.equal(torch.rand(3), expected)


# torch.compile imports parts of TorchScript, which announces that it is on its way out.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_wrapped_models_are_unwrapped_and_left_wrapped(pairs: tuple[Tensor, Tensor]) -> None:
    model = make()
    expected = multipliers(model, *pairs)
    for wrapped in (nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model))):
        before = snapshot(model)
        assert torch.equal(multipliers(wrapped, *pairs), expected)
        assert snapshot(model) == before
    parts = Apply(lambda inner, x: inner(x).tanh(), torch.compile(model))
    assert (
        relative_difference(
            multipliers(parts, *pairs), multipliers(Apply(lambda inner, x: inner(x).tanh(), model), *pairs)
        )
        < 1e-6
    )


def test_two_models_in_two_threads() -> None:
    X = sequences(6, seed=3)
    references = shuffled(X, 4)
    models = [
        seeded(lambda: Apply(lambda conv, x: conv(x).relu().mean(-1), nn.Conv1d(4, 3, 5)), seed) for seed in (1, 2)
    ]
    rules = [{}, {nn.Conv1d: half}]
    expected = [multipliers(m, X, references, user_rules=r) for m, r in zip(models, rules, strict=True)]
    assert relative_difference(expected[0], expected[1]) > 0.1
    results: list[list[Tensor]] = [[], []]
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait()
        for _ in range(8):
            results[index].append(multipliers(models[index], X, references, user_rules=rules[index], batch_size=5))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert len(results[index]) == 8
        for result in results[index]:
            assert relative_difference(result, expected[index]) < 1e-9
    assert global_hooks() == [0] * 5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_computed_where_the_caller_has_turned_them_off(mode: Any) -> None:
    X = sequences(3)
    references = shuffled(X, 4)
    model = seeded(lambda: Sandwich(torch.relu))
    expected = multipliers(model, X, references)
    with mode():
        assert relative_difference(multipliers(model, X, references), expected) < 1e-9


def test_results_are_on_the_cpu_whatever_the_default_device() -> None:
    X = sequences(3)
    references = shuffled(X, 4)
    model = seeded(lambda: nn.Sequential(nn.Conv1d(4, 6, 5), nn.GELU(), nn.Flatten(), nn.Linear(216, 1)))
    expected = multipliers(model, X, references)
    with torch.device("meta"):
        found = multipliers(model, X, references)
    assert torch.equal(found, expected)


def test_a_model_made_in_inference_mode_is_refused() -> None:
    X = sequences(3)
    with torch.inference_mode():
        model = seeded(lambda: Sandwich(torch.relu))
    with pytest.raises(UnsupportedModelError, match=r"'conv\.weight' of the model was made under"):
        explain(model, X, shuffled(X, 4))


def test_a_tensor_a_forward_pass_overwrites_is_given_back() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scratch = torch.zeros(64, 36, dtype=torch.float64)
            self.conv = nn.Conv1d(4, 1, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.scratch[: len(x)] = self.conv(x)[:, 0]
            return self.scratch[: len(x)].relu().sum(1, keepdim=True)

    X = sequences(3)
    model = seeded(Scaled)
    scratch = model.scratch
    result = explain(model, X, shuffled(X, 4))
    assert worst_delta(result) < 1e-9
    assert model.scratch is scratch
    assert not model.scratch.requires_grad
    assert not model.scratch.any()


def test_one_model_in_two_threads_is_borrowed_by_one_at_a_time() -> None:
    X = sequences(3)
    references = shuffled(X, 4)
    model = seeded(lambda: Sandwich(torch.relu))
    expected = multipliers(model, X, references)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: multipliers(model, X, references), range(4)))
    assert all(torch.equal(result, expected) for result in results)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_gradients_of_parameters_are_given_back() -> None:
    X = sequences(3)
    model = seeded(lambda: Sandwich(torch.relu), dtype=torch.float32)
    model(X.float()).sum().backward()
    before = [(parameter.grad, parameter.grad.clone()) for parameter in model.parameters()]
    explain(model, X, shuffled(X, 4), dtype=torch.float64)
    for parameter, (gradient, value) in zip(model.parameters(), before, strict=True):
        assert parameter.grad is gradient
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, value)
