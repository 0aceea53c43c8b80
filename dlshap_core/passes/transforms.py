"""Functions of torch that call a function of the model's in a way of their own: vmap, and activation checkpointing.

In a pass they are done plainly. A vmap is the function on one slice after the other, stacked: every rule holds within
as it does without. What the first slice shows to be linear or constant (indexing, a relative shift, a mask of the
positions) is left to torch, which does all slices at once. A checkpoint, which would compute again on the way back what
nobody sees, is a call.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dlshap_core import torch_private
from dlshap_core.passes.recorder import ForwardPass

_AS_ONE = {"linear", "constant"}  # treatments of what torch may do at once


@contextlib.contextmanager
def called_plainly() -> Iterator[None]:
    """Do these functions plainly in the passes of this thread."""
    with torch_private.substituted(_vmap, _checkpoint, _checkpoint_reentrant):
        yield


def _current_pass() -> ForwardPass | None:
    """The pass that sees what is called here, if there is one."""
    forward = torch_private.innermost_mode(ForwardPass)
    return None if forward is None or forward.is_suspended else forward


def _checkpoint(original: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a checkpoint without reentrance does around the call of a function: nothing."""
    return original(function, *args, **kwargs) if _current_pass() is None else (None for _ in range(1))


def _checkpoint_reentrant(
    original: Callable[..., Any], function: Callable[..., Any], preserves_random_state: bool, *args: Any
) -> Any:
    """A checkpoint with reentrance: the call alone."""
    return original(function, preserves_random_state, *args) if _current_pass() is None else function(*args)


def _vmap(
    original: Callable[..., Any],
    function: Callable[..., Any],
    in_dims: Any,
    out_dims: Any,
    randomness: str,
    chunk_size: int | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """torch.vmap(function, in_dims, out_dims, randomness, chunk_size)(*args, **kwargs)."""

    def at_once(*values: Any) -> Any:
        return original(function, in_dims, out_dims, randomness, chunk_size, *values, **kwargs)

    forward = _current_pass()
    if forward is None:
        return at_once(*args)
    n, slices = _slices(function, in_dims, args)
    if n == 0:
        return at_once(*args)
    tensors = [x for x in torch_private.flattened(args)[0] if isinstance(x, Tensor)]
    versions = [torch_private.version(x) for x in tensors]
    with forward.listing() as listed:
        first = function(*next(slices), **kwargs)
    is_written_to = versions != [torch_private.version(x) for x in tensors]
    if n > 1 and not is_written_to and not forward.has_derived and {treatment for *_, treatment in listed} <= _AS_ONE:
        grad_mode = _GradMode()
        output = forward.do_as_one("vmap", lambda *values: grad_mode.watch(at_once, values), args)
        if not grad_mode.is_switched:
            return output
    return _stacked([first, *(function(*values, **kwargs) for values in slices)], out_dims)


def _slices(function: Callable[..., Any], in_dims: Any, args: tuple[Any, ...]) -> tuple[int, Iterator[Any]]:
    """How many there are, and the arguments of each."""
    n, dims, values, structure = torch_private.batched_inputs(in_dims, args, function)
    parts = [itertools.repeat(x, n) if dim is None else x.unbind(dim) for x, dim in zip(values, dims, strict=True)]
    return n, (torch_private.unflattened(list(of_slice), structure) for of_slice in zip(*parts, strict=True))


def _stacked(outputs: list[Any], out_dims: Any) -> Any:
    """What the slices returned, along the axes that `out_dims` names; of what has none, that of the first."""
    _, structure = torch_private.flattened(outputs[0])
    parts = zip(*(torch_private.flattened(output)[0] for output in outputs), strict=True)
    dims = torch_private.broadcast_dims(out_dims, structure)
    stacked = [x[0] if dim is None else torch.stack(x, dim) for x, dim in zip(parts, dims, strict=True)]
    return torch_private.unflattened(stacked, structure)


class _GradMode(TorchFunctionMode):
    """Whether something within switches gradients off or on: a pass follows what it does all the same, torch does
    not."""

    def __init__(self) -> None:
        super().__init__()
        self.is_switched = False

    def watch(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call a function."""
        with self:
            return function(*args)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.is_switched |= getattr(func, "__name__", None) == "_set_grad_enabled"
        return func(*args, **(kwargs or {}))
