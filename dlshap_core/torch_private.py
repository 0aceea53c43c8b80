"""Everything of torch that its documentation does not promise, in one place: what for, and what breaks when it goes.

`tests/core/test_torch_private.py` has a test of each by name; `scripts/test_torch_range` runs it with other versions.
libgomp, which torch brings along, is called in `kernels.threads` alone.
"""

import contextlib
import itertools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._functorch import apis
from torch._functorch.vmap import _broadcast_to_and_flatten, _process_batched_inputs
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_flatten, tree_unflatten

_Mode = TypeVar("_Mode")

_OVERRIDE_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")

# How often a tensor was written to in place. Without it a model that overwrites what a rule kept gets wrong
# attributions instead of a copy or an error.
version: Callable[[Tensor], int] = attrgetter("_version")

# The buffers of one module, by name, as a dictionary that can be put back whole: a model may replace, add or delete
# them in forward. Without it such a model is given back changed.
buffers_of: Callable[[nn.Module], dict[str, Tensor | None]] = attrgetter("_buffers")

# Float32 precision of one operation of one backend, since torch 2.9: the documented properties refuse to be read where
# old and new settings contradict each other. Without them TF32 of the host would change attributions.
get_precision: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)
set_precision: Callable[[str, str, str], Any] | None = getattr(torch._C, "_set_fp32_precision_setter", None)

# `torch.backends.cudnn.allow_tf32`, without the check that refuses to read it.
get_cudnn_allow_tf32: Callable[[], bool] = torch._C._get_cudnn_allow_tf32
set_cudnn_allow_tf32: Callable[[bool], None] = torch._C._set_cudnn_allow_tf32


# oneDNN's dense layer of plain tensors, (input, weight, bias, "none", [], ""), which torch.compile calls. Without it
# products of recurrent layers take up to twice as long on CPUs of AMD, for which MKL leaves out AVX-512.
onednn_linear: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def traceable(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """A copy of a Python function of torch that does not hand itself to the overrides again, so that the operations in
    its body are seen; None where it is no such function.

    It is rebuilt from its `__code__` with the checks replaced by a "no". Without it every function of
    torch.nn.functional would need a rule of its own, and is integrated or refused.
    """
    if not isinstance(function, types.FunctionType):
        return None
    if not any(name in function.__code__.co_names for name in _OVERRIDE_CHECKS):
        return None
    scope = {**function.__globals__, **dict.fromkeys(_OVERRIDE_CHECKS, lambda *_: False)}
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def node_class(function: type[torch.autograd.Function]) -> type:
    """Of the node that a custom autograd function leaves in a graph, to tell our own from the model's. Without it every
    model is watched as if it had custom functions."""
    return function._backward_cls


def innermost_mode(of_class: type[_Mode]) -> _Mode | None:
    """The function mode of a class that sees a call first, or None: a hook on a module has no other way to find the
    pass it is in. Without it users' rules for modules are never applied, and vmap is refused."""
    return next((mode for mode in reversed(_get_current_function_mode_stack()) if isinstance(mode, of_class)), None)


def is_wrapped_by_functorch(x: Any) -> bool:
    """Whether a value is a tensor inside torch.func (vmap, grad), where function modes see no gradient. Without it such
    a model is refused by its missing sum alone, with a vague message."""
    return isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x)


def set_modes_aside(stack: contextlib.ExitStack) -> None:
    """Take the host's modes off until the stack is left: they see, and may change, every operation, and a default
    device is one of them. Without it the engine's tensors may be made on another device, or be counted and changed."""
    stack.enter_context(torch._C._EnableTorchFunction())
    for _ in range(torch._C._len_torch_function_stack()):
        stack.callback(_push_mode, _pop_mode())
    if _get_current_dispatch_mode_stack():
        stack.enter_context(_disable_current_modes())


def set_hooks_aside(stack: contextlib.ExitStack) -> None:
    """Take the host's hooks on saved tensors off until the stack is left (torch.autograd.graph.save_on_cpu, say).
    Without it a call within such a context is refused as if the model used checkpointing."""
    autograd = torch._C._autograd
    while (hooks := autograd._top_saved_tensors_default_hooks(False)) is not None:
        stack.callback(autograd._push_saved_tensors_default_hooks, *hooks)
        autograd._pop_saved_tensors_default_hooks()


def move(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """As `model.to(device, dtype)`, which makes complex parameters and buffers real where a dtype is given: without it
    they lose their imaginary part."""

    def converted(x: Tensor) -> Tensor:
        if x.is_complex():
            return x.to(device, torch.complex128 if dtype == torch.float64 else torch.complex64)
        return x.to(device, dtype if x.is_floating_point() else None)

    has_complex = any(x.is_complex() for x in itertools.chain(model.parameters(), model.buffers()))
    if dtype is not None and has_complex:
        model._apply(converted)
    else:
        model.to(device=device, dtype=dtype)


def compiled_from(model: nn.Module) -> Any:
    """The module inside one that torch.compile returned, or None. Without it compiled models are not seen into."""
    return getattr(model, "_orig_mod", None)


def is_compiler_loaded() -> bool:
    """Whether anything can be compiled yet: asking torch.compiler would load it, which takes seconds."""
    return "torch._dynamo" in sys.modules


# Nested arguments as torch.vmap takes them apart and puts them together again; the number of slices, and the axis of
# each argument; the axis of each output. Without them vmap is refused.
flattened: Callable[[Any], tuple[list[Any], Any]] = tree_flatten
unflattened: Callable[[list[Any], Any], Any] = tree_unflatten
batched_inputs: Callable[..., tuple[int, list[int | None], list[Any], Any]] = _process_batched_inputs
broadcast_dims: Callable[[Any, Any], Any] = _broadcast_to_and_flatten


class _Applied:
    """In place of a custom autograd function, of which `apply` alone is used."""

    def __init__(self, apply: Callable[..., Any]) -> None:
        self.apply = apply


_CHECKPOINT = torch.utils.checkpoint
_ORIGINALS: tuple[tuple[Any, str, Any], ...] = (
    (apis, "vmap_impl", apis.vmap_impl),
    (_CHECKPOINT, "_checkpoint_without_reentrant_generator", _CHECKPOINT._checkpoint_without_reentrant_generator),
    (_CHECKPOINT, "CheckpointFunction", _CHECKPOINT.CheckpointFunction),
)
_substituting = threading.Lock()
_n_substituting = 0


@contextlib.contextmanager
def substituted(
    vmap: Callable[..., Any], checkpoint: Callable[..., Any], reentrant: Callable[..., Any]
) -> Iterator[None]:
    """Have other functions called, each with the original before its arguments, where torch.vmap and
    torch.utils.checkpoint do their work: neither asks a function mode. Without it a model that uses them is refused.

    They are there for all threads while one is within, and must leave alone what others call.
    """
    global _n_substituting
    (*_, vmap_impl), (*_, generator), (*_, function) = _ORIGINALS
    ours = partial(vmap, vmap_impl), partial(checkpoint, generator), _Applied(partial(reentrant, function.apply))
    with _substituting:
        _n_substituting += 1
        for (home, name, _), own in zip(_ORIGINALS, ours, strict=True):
            setattr(home, name, own)
    try:
        yield
    finally:
        with _substituting:
            _n_substituting -= 1
            if _n_substituting == 0:
                for home, name, original in _ORIGINALS:
                    setattr(home, name, original)
