"""Borrowing a model: it is given back exactly as it came, whatever happens in between."""

import contextlib
import itertools
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dlshap_core.errors import UnsupportedModelError


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel wrappers.

    Raises:
        UnsupportedModelError: the model, or a part of it, is a ScriptModule, which cannot be seen into, or was made
            under torch.inference_mode.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{f'the part {name!r}' if name else 'the model'} is a ScriptModule, whose operations cannot be seen; "
                f"load the original nn.Module and its state dict instead"
            )
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_inference():
            raise UnsupportedModelError(
                f"{name!r} of the model was made under torch.inference_mode, and no gradient goes through it; make or "
                f"load the model outside of that"
            )
    return model


class _Snapshot:
    """A buffer and its value."""

    def __init__(self, buffer: Tensor) -> None:
        self._buffer, self._value, self._version = buffer, buffer.detach().clone(), buffer._version

    def restore(self) -> None:
        """Put the value back, if the buffer was written to: an autograd graph may hold one that was not."""
        if self._buffer._version == self._version:
            return
        if self._buffer.requires_grad:
            self._buffer.detach_()  # something that depends on the sequence was written into it
        with torch.no_grad():
            self._buffer.copy_(self._value)
        self._version = self._buffer._version


# The dictionary of each module's buffers, and what it held.
_Members = list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]]


def _members(model: nn.Module) -> _Members:
    return [(module._buffers, dict(module._buffers)) for module in model.modules()]


def _restore(members: _Members, snapshots: list[_Snapshot]) -> None:
    for buffers, before in members:
        buffers.clear()
        buffers.update(before)
    for snapshot in snapshots:
        snapshot.restore()


def _snapshots(model: nn.Module) -> list[_Snapshot]:
    """Of all buffers, and of tensors kept as plain attributes."""
    attributes = (x for module in model.modules() for x in module.__dict__.values() if isinstance(x, Tensor))
    return [_Snapshot(x) for x in (*model.buffers(), *attributes)]


_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_lock_of_locks = threading.Lock()


def _lock_of(model: nn.Module) -> threading.RLock:
    """One thread at a time may borrow a model."""
    with _lock_of_locks:
        return _locks.setdefault(model, threading.RLock())


class Borrowed:
    """A model as it came: what to put back after a forward pass, and at the end."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = [(module, dict(module.__dict__)) for module in model.modules()]
        self._members = _members(model)
        self._parameters = [(p, p.data, p.requires_grad, p.grad) for p in model.parameters()]
        self._buffers = _snapshots(model)
        self._working: list[_Snapshot] = []
        self._working_members: _Members = []

    def take_working_copy(self, model: nn.Module) -> None:
        """Take the buffers as they are now, on the device and in the dtype of the work, for `rewind`."""
        self._working = _snapshots(model)
        self._working_members = _members(model)

    def rewind(self) -> None:
        """Undo what a forward pass wrote into buffers, so that every pass begins with the same ones."""
        _restore(self._working_members, self._working)

    def give_back(self) -> None:
        """Undo everything."""
        for parameter, data, requires_grad, gradient in self._parameters:
            if parameter.data_ptr() != data.data_ptr() or parameter.dtype != data.dtype:
                parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        _restore(self._members, self._buffers)
        for module, attributes in self._attributes:
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
            module.__dict__.update(attributes)


@contextlib.contextmanager
def borrowed(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Iterator[Borrowed]:
    """Hold a model on `device`, in `dtype` if one is given, in eval mode and with frozen parameters.

    On exit its device, training modes, requires_grad flags, buffers and attributes are what they were, also after an
    exception or KeyboardInterrupt. Parameters and buffers are the same tensor objects with the same storage.
    """
    with _lock_of(model):
        state = Borrowed(model)
        try:
            for parameter in model.parameters():
                parameter.grad = None  # or it would be moved along
                parameter.requires_grad_(False)
            model.to(device=device, dtype=dtype).eval()
            state.take_working_copy(model)
            yield state
        finally:
            state.give_back()


@contextlib.contextmanager
def precision(allow_tf32: bool) -> Iterator[None]:
    """With TF32 only where asked for: the two passes differ in shape, and a GPU may choose it in one of them alone."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allow_tf32
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled parts of a model as plain Python, so that their operations are seen.

    As long as the compiler is not loaded there are none, and it is not loaded for this: that takes seconds.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
