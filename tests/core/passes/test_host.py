"""The process a call runs in: whatever it has set, the values are the same, and all of it is set as before."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dlshap_core import attribute, deep_lift_shap, torch_private
from dlshap_core.errors import UnsupportedModelError
from dlshap_core.passes.host import process_settings, read_precision, write_precision
from tests.core.toolbox import Apply, explain, multipliers, relative_difference, seeded, sequences, shuffled

KEYS = [(backend, name) for backend in ("generic", "cuda", "mkldnn") for name in ("all", "matmul", "conv", "rnn")]
KEYS = [key for key in KEYS if key[0] != "generic" or key[1] == "all"]


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    """Whatever a test leaves behind is no affair of the next."""
    precision, dtype = read_precision(), torch.get_default_dtype()
    yield
    write_precision(precision)
    torch.set_default_dtype(dtype)


class Net(nn.Module):
    """Kinds of operations whose numbers or tensors a process may decide: products, constants made in forward."""

    def __init__(self, last: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.conv, self.readout, self.last = nn.Conv1d(4, 6, 5), nn.Linear(6, 3), last

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.conv(x))
        weights = torch.linspace(0, 1, hidden.shape[-1]).exp() * torch.ones(hidden.shape[-1])
        return self.last(self.readout((hidden.softmax(1) * hidden @ weights.to(hidden.dtype)).tanh()))


def net(last: Callable[[Tensor], Tensor] = lambda y: y) -> nn.Module:
    return seeded(lambda: Net(last), dtype=torch.float32)


def precisions() -> list[str]:
    """What torch says when it is asked; reading the old settings may be an error, which is part of the state."""

    def answer(read: Callable[[], Any]) -> str:
        try:
            return str(read())
        except RuntimeError as error:
            return str(error)[:60]

    reads = [lambda key=key: torch._C._get_fp32_precision_getter(*key) for key in KEYS]
    old = [
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cudnn.allow_tf32,
        lambda: torch.backends.cuda.matmul.allow_tf32,
    ]
    return [answer(read) for read in (*reads, *old)]


def state() -> dict[str, Any]:
    """All that a call might change."""
    return {
        "precision": precisions(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "function modes": [id(mode) for mode in torch.overrides._get_current_function_mode_stack()],
        "dispatch modes": [id(mode) for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack()],
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(False),
        "functions": [
            torch._functorch.apis.vmap_impl,
            torch.utils.checkpoint.CheckpointFunction,
            torch.utils.checkpoint._checkpoint_without_reentrant_generator,
        ],
        "autocast": [
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled())
            for kind in ("cpu", "cuda")
        ],
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch function": torch._C._get_torch_function_state()
        if hasattr(torch._C, "_get_torch_function_state")
        else torch._C._is_torch_function_enabled(),
        "anomalies": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "deterministic": torch.get_deterministic_debug_mode(),
        "threads": torch.get_num_threads(),
        "numpy": np.geterr(),
        "warnings": list(warnings.filters),
        "depth": sys.getrecursionlimit(),
        "random": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()),
    }


def set_new(backend: str, name: str, value: str) -> Callable[[], None]:
    return lambda: torch._C._set_fp32_precision_setter(backend, name, value)


def set_both() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.fp32_precision = "tf32"


PRECISIONS: dict[str, Callable[[], None]] = {
    **{f"{backend} {name}": set_new(backend, name, "tf32") for backend, name in KEYS},
    **{f"{backend} {name} in full": set_new(backend, name, "ieee") for backend, name in KEYS},
    **{f"mkldnn {name} bf16": set_new("mkldnn", name, "bf16") for name in ("all", "matmul", "conv", "rnn")},
    **{f"old {name}": lambda name=name: torch.set_float32_matmul_precision(name) for name in ("high", "medium")},
    "old convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "old products": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "old and new": set_both,
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_precision_is_the_hosts_again(name: str) -> None:
    X = sequences(2).float()
    expected = deep_lift_shap(net(), X, n_shuffles=2, random_state=0, device="cpu")
    PRECISIONS[name]()
    before = precisions()
    assert torch.equal(deep_lift_shap(net(), X, n_shuffles=2, random_state=0, device="cpu"), expected)
    assert precisions() == before


def test_precision_is_in_full_inside_and_can_be_read() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    found = []

    def look(y: Tensor) -> Tensor:
        found.append((torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, precisions()[:9]))
        with torch.backends.cudnn.flags(enabled=False):  # reads the old settings, as many models do
            return y

    X = sequences(2)
    attribute(net(look), X, shuffled(X), device="cpu")
    full = [torch._C._get_fp32_precision_getter(*key) for key in KEYS]
    assert found[0][:2] == ("highest", False)
    assert not {"tf32", "bf16"} & set(found[0][2])
    assert full != found[0][2]
    found.clear()
    attribute(net(look), X, shuffled(X), device="cpu", allow_tf32=True)
    assert found[0][:2] == ("high", True)
    assert found[0][2] == ["none", "none", "tf32", "tf32", "tf32", "none", "ieee", "ieee", "ieee"]


def test_what_is_inherited_is_inherited_again() -> None:
    torch.backends.fp32_precision = "tf32"
    with process_settings():
        pass
    torch.backends.fp32_precision = "ieee"
    assert torch._C._get_fp32_precision_getter("cuda", "matmul") == "ieee"


@pytest.mark.parametrize("name", ["highest", "high", "medium"])
def test_precision_where_torch_has_the_old_settings_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "high"
    monkeypatch.setattr(torch_private, "get_precision", None)
    monkeypatch.setattr(torch_private, "set_precision", None)
    with process_settings():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == name
    assert torch.backends.cudnn.allow_tf32 == (name != "high")


class Doubling(TorchFunctionMode):
    """A mode of the user's that does not leave values alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        return output * 2 if getattr(func, "__name__", "") in ("relu", "sum", "tanh") else output


class Raising(TorchDispatchMode):
    """A mode that takes no operation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("this mode takes no operation")


@contextlib.contextmanager
def set_and_back(write: Callable[[Any], Any], new: Any, old: Any) -> Iterator[None]:
    write(new)
    try:
        yield
    finally:
        write(old)


@contextlib.contextmanager
def shallow() -> Iterator[None]:
    """Room on the stack for the model alone."""
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    with set_and_back(sys.setrecursionlimit, depth + 30, sys.getrecursionlimit()):
        yield


HOSTS: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: set_and_back(torch.set_default_dtype, torch.float64, torch.float32),
    "half default dtype": lambda: set_and_back(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default device": lambda: set_and_back(torch.set_default_device, "meta", None),
    "device context": lambda: torch.device("meta"),
    "function mode": Doubling,
    "dispatch mode": Raising,
    "functions switched off": torch._C.DisableTorchFunction,
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "deterministic": lambda: set_and_back(torch.set_deterministic_debug_mode, 2, 0),
    "deterministic, warns": lambda: set_and_back(torch.set_deterministic_debug_mode, 1, 0),
    "numpy raises": lambda: np.errstate(all="raise"),
    "shallow stack": shallow,
    "threads": lambda: set_and_back(torch.set_num_threads, 2, 1),
}


@pytest.mark.parametrize("name", HOSTS)
def test_the_host_decides_no_value_and_is_left_as_it_was(name: str) -> None:
    X = sequences(2).float()
    model = net()

    def call() -> Any:
        return deep_lift_shap(
            model, X, target=[0, 2], n_shuffles=3, random_state=1, device="cpu", hypothetical=True, batch_size=4
        )

    expected = call()
    with HOSTS[name]():
        before = state()
        found = call()
        after = state()
    assert after == before
    assert relative_difference(found, expected) < 1e-6  # the number of threads decides the last bits
    assert found.dtype == torch.float32


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", HOSTS)
def test_the_host_is_left_as_it_was_by_a_call_that_fails(name: str, error: type[BaseException]) -> None:
    def fail(y: Tensor) -> Tensor:
        np.random.rand()
        random.random()
        raise error("stop")

    X = sequences(2).float()
    model = net(fail)
    with HOSTS[name]():
        before = state()
        with pytest.raises((error, UnsupportedModelError), match="stop"):
            deep_lift_shap(model, X, n_shuffles=3, random_state=1, device="cpu")
        after = state()
    assert after == before


def test_random_states_are_not_touched_by_what_the_model_draws() -> None:
    def draw(y: Tensor) -> Tensor:
        return y * (1 + random.random() + float(np.random.rand()))

    X = sequences(2).float()
    model, before = net(draw), state()["random"]
    with pytest.raises(UnsupportedModelError, match="random"):
        deep_lift_shap(model, X, n_shuffles=3, random_state=1, device="cpu")
    assert state()["random"] == before


def test_references_of_the_users_own_may_draw_from_the_hosts_generators() -> None:
    def draw(X: Tensor, n: int, random_state: int | None = None) -> Tensor:
        return torch.stack([X[:, :, torch.randperm(X.shape[-1])] for _ in range(n)], dim=1)

    X = sequences(2).float()
    results = [deep_lift_shap(net(), X, references=draw, n_shuffles=3, device="cpu") for _ in range(2)]
    assert not torch.equal(*results), "the second call drew the same references as the first"


@pytest.mark.parametrize(
    "one", [np.int64(1), np.int32(1), np.array(1), torch.tensor(1), np.uint8(1), torch.tensor(-2)], ids=repr
)
def test_a_target_is_any_whole_number(one: Any) -> None:
    X = sequences(2).float()
    expected = deep_lift_shap(net(), X, target=1, n_shuffles=2, random_state=0, device="cpu")
    found = deep_lift_shap(net(), X, target=one, n_shuffles=2, random_state=0, device="cpu")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("several", [np.array([0, 1]), torch.tensor([0, 1]), (np.int64(0), torch.tensor(1)), range(2)])
def test_targets_are_any_whole_numbers(several: Any) -> None:
    X = sequences(2)
    expected = deep_lift_shap(net(), X.float(), target=[0, 1], n_shuffles=2, random_state=0, device="cpu")
    found = deep_lift_shap(net(), X.float(), target=several, n_shuffles=2, random_state=0, device="cpu")
    assert torch.equal(found, expected)
    result = attribute(net(), X, shuffled(X), targets=several, device="cpu")
    assert result.prediction.shape == (2, 2)


@pytest.mark.parametrize("bad", [1.0, "1", None, torch.tensor(1.5), [0, 1.5]])
def test_a_target_that_is_no_whole_number_is_named(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"target .* is not a whole number"):
        deep_lift_shap(net(), sequences(2).float(), target=bad, n_shuffles=2, device="cpu")


def test_without_a_device_the_call_takes_what_is_there() -> None:
    X = sequences(2).float()
    found = deep_lift_shap(net(), X, n_shuffles=2, random_state=0)
    assert found.shape == X.shape


def test_tensors_that_want_gradients_get_and_give_none() -> None:
    X, gate = sequences(2).float(), torch.ones(2, 36)
    references = shuffled(X)
    model = seeded(
        lambda: Apply(lambda conv, x, g: (conv(x).relu() * g[:, None]).mean(-1), nn.Conv1d(4, 2, 5)),
        dtype=torch.float32,
    )
    expected = deep_lift_shap(model, X, (gate,), references=references, device="cpu")
    for tensor in (X, gate, references):
        tensor.requires_grad_()
    found = deep_lift_shap(model, X, (gate,), references=references, device="cpu")
    assert not found.requires_grad
    assert torch.equal(found, expected)
    assert all(tensor.requires_grad and tensor.grad is None for tensor in (X, gate, references))


def test_a_model_made_under_another_default_dtype_keeps_it() -> None:
    def weighted(y: Tensor) -> Tensor:
        return y @ torch.eye(3)  # an error where it is of another dtype

    X = sequences(2)
    with HOSTS["default dtype"]():
        model = seeded(lambda: Net(weighted))
        result = explain(model, X, shuffled(X))
    assert result.prediction.dtype == torch.float64


def test_calls_in_threads_give_the_host_its_settings_back() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float64)
    before, X = state(), sequences(4)
    references, start = shuffled(X), threading.Barrier(4)
    models = [seeded(Net, seed, dtype) for seed, dtype in enumerate([torch.float32, torch.float64] * 2)]
    seen: list[set[str]] = [set() for _ in models]
    for model, into in zip(models, seen, strict=True):
        model.last = lambda y, into=into: (into.add(str(torch.get_default_dtype())), y)[1]

    def work(index: int) -> list[Tensor]:
        start.wait()
        return [
            multipliers(models[index], X, references, batch_size=2, allow_tf32=index == 3 and step % 2 == 1)
            for step in range(6)
        ]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert seen == [{"torch.float32"}, {"torch.float64"}] * 2
    assert all(torch.equal(result, own[0]) for own in results for result in own)
    assert state() == before


def test_a_call_within_a_call_may_want_other_settings() -> None:
    inner, X = net(), sequences(2)

    def references(x: Tensor, n: int, random_state: int | None = None) -> Tensor:
        attribute(inner, x, shuffled(x, n), device="cpu", allow_tf32=True)
        assert torch.get_float32_matmul_precision() == "highest"
        return shuffled(x, n, random_state or 0)

    before = state()
    deep_lift_shap(net(), X.float(), references=references, n_shuffles=2, random_state=0, device="cpu")
    assert state() == before
