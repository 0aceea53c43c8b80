"""What torch does not promise and the core relies on: a test of each, by name, so that its end is noticed as such."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dlshap_core import torch_private
from dlshap_core.rules.gradients import multiply


class _Names(TorchFunctionMode):
    """The names of the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """How many operations are done."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.n += 1
        return func(*args, **(kwargs or {}))


def test_version_counts_writes_in_place() -> None:
    x = torch.zeros(3)
    before = torch_private.version(x)
    x + 1
    assert torch_private.version(x) == before
    x.add_(1)
    assert torch_private.version(x) == before + 1


def test_onednn_linear_is_that_of_torch() -> None:
    if torch_private.onednn_linear is None:
        pytest.skip("this torch has none")
    x, weight, bias = torch.randn(3, 7, 20), torch.randn(30, 20), torch.randn(30)
    found = torch_private.onednn_linear(x, weight, bias, "none", [], "")
    assert torch.allclose(found, F.linear(x, weight, bias), atol=1e-5)
    assert torch.allclose(torch_private.onednn_linear(x, weight, None, "none", [], ""), F.linear(x, weight), atol=1e-5)


def test_buffers_of_is_the_modules_own_dictionary() -> None:
    module = nn.BatchNorm1d(2)
    assert torch_private.buffers_of(module)["running_mean"] is module.running_mean
    torch_private.buffers_of(module)["running_mean"] = mean = torch.ones(2)
    assert module.running_mean is mean


@pytest.mark.parametrize("operation", ["matmul", "conv", "rnn"])
def test_precision_of_an_operation_is_read_and_set(operation: str) -> None:
    get_precision, set_precision = torch_private.get_precision, torch_private.set_precision
    if get_precision is None or set_precision is None:
        assert not hasattr(torch.backends, "fp32_precision"), "torch has the settings but not what reads them"
        return
    before = get_precision("cuda", operation)
    set_precision("cuda", operation, "tf32")
    assert get_precision("cuda", operation) == "tf32"
    set_precision("cuda", operation, before)


def test_cudnns_tf32_is_read_and_set() -> None:
    before = torch_private.get_cudnn_allow_tf32()
    torch_private.set_cudnn_allow_tf32(not before)
    assert torch_private.get_cudnn_allow_tf32() is not before
    torch_private.set_cudnn_allow_tf32(before)


def test_traceable_shows_the_operations_inside_a_function_of_torch() -> None:
    body = torch_private.traceable(F.gumbel_softmax)
    assert body is not None
    with _Names() as names:
        body(torch.zeros(2, 3))
    assert "softmax" in names.seen
    assert "gumbel_softmax" not in names.seen
    assert torch_private.traceable(torch.relu) is None
    assert torch_private.traceable(test_version_counts_writes_in_place) is None  # asks for no overrides


def test_node_class_tells_our_functions_in_a_graph() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return 2 * x

    x = torch.ones(1, requires_grad=True)
    assert isinstance(Double.apply(x).grad_fn, torch_private.node_class(Double))
    assert not isinstance(multiply(x, x, x).grad_fn, torch_private.node_class(Double))


def test_innermost_mode_is_the_one_that_sees_a_call_first() -> None:
    assert torch_private.innermost_mode(_Names) is None
    with _Names(), _Names() as inner:
        assert torch_private.innermost_mode(_Names) is inner


def test_tensors_of_torch_func_are_told() -> None:
    told: list[bool] = []

    def tell(x: Tensor) -> Tensor:
        told.append(torch_private.is_wrapped_by_functorch(x))
        return x.sum()

    torch.func.grad(tell)(torch.ones(2))
    torch.func.vmap(tell)(torch.ones(2, 2))
    assert told == [True, True]
    assert not torch_private.is_wrapped_by_functorch(torch.ones(2))


def test_set_modes_aside_lets_nothing_be_seen_until_it_is_left() -> None:
    with _Names() as names, _Operations() as operations, torch.device("meta"):
        with contextlib.ExitStack() as stack:
            torch_private.set_modes_aside(stack)
            names.seen.clear()
            n_operations = operations.n
            assert torch.zeros(2).device.type == "cpu"
            assert names.seen == []
            assert operations.n == n_operations
        assert torch.zeros(2).device.type == "meta"
        assert "zeros" in names.seen
        assert operations.n > n_operations


def test_set_hooks_aside_packs_nothing_until_it_is_left() -> None:
    packed: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        packed.append(x)
        return x

    x = torch.ones(2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        with contextlib.ExitStack() as stack:
            torch_private.set_hooks_aside(stack)
            x * x
            assert packed == []
        x * x
        assert packed != []


@pytest.mark.slow  # a process that loads torch's compiler; test_borrowed_model.py gives the engine what it returns
def test_what_torch_compile_returns_is_looked_into_and_the_compiler_not_loaded_for_it() -> None:
    script = (
        "import torch\n"
        "from dlshap_core.torch_private import compiled_from, is_compiler_loaded\n"
        "model = torch.nn.Linear(2, 2)\n"
        "assert compiled_from(model) is None\n"
        "assert not is_compiler_loaded()\n"
        "assert compiled_from(torch.compile(model)) is model\n"
        "assert is_compiler_loaded()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_substituted_functions_are_called_until_the_last_one_leaves() -> None:
    called: list[str] = []

    def note(name: str) -> Callable[..., Any]:
        def replacement(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return original(*args, **kwargs)

        return replacement

    def use_all() -> list[str]:
        called.clear()
        x = torch.ones(2, requires_grad=True)
        torch.vmap(torch.exp)(x)
        for use_reentrant in (False, True):
            torch.utils.checkpoint.checkpoint(torch.exp, x, use_reentrant=use_reentrant)
        return called

    names = ["vmap", "checkpoint", "reentrant"]
    with torch_private.substituted(*map(note, names)):
        assert use_all() == names
        with torch_private.substituted(*map(note, names)):
            assert use_all() == names
        assert use_all() == names
    assert use_all() == []


def test_nested_arguments_are_taken_apart_as_vmap_does() -> None:
    x = torch.zeros(2, 3)
    n, dims, values, structure = torch_private.batched_inputs((1, None), (x, {"a": 5}), abs)
    assert (n, dims, values[1]) == (3, [1, None], 5)
    assert torch_private.unflattened([1, 2], structure) == (1, {"a": 2})
    leaves, of_two = torch_private.flattened([x, x])
    assert len(leaves) == 2
    assert torch_private.broadcast_dims(-1, of_two) == [-1, -1]


def test_move_keeps_complex_numbers_complex() -> None:
    module = torch.nn.Linear(2, 2)
    module.register_buffer("turns", torch.tensor([1j]))
    torch_private.move(module, torch.device("cpu"), torch.float64)
    assert module.weight.dtype == torch.float64
    assert torch.equal(module.turns, torch.tensor([1j], dtype=torch.complex128))
