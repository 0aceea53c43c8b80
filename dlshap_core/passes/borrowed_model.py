"""Borrowing a model: it is given back exactly as it came, whatever happens in between."""

import contextlib
import itertools
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dlshap_core.errors import UnsupportedModelError
from dlshap_core.torch_private import buffers_of, compiled_from, is_compiler_loaded, move, version


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
            inner = compiled_from(model)
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


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
_MOST_HELD = 10_000  # items of containers that are compared: more would take longer than a pass


class _Snapshot:
    """A buffer and its value."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self._value, self._version = buffer, buffer.detach().clone(), version(buffer)

    def differs(self, now: Tensor | None) -> bool:
        """Whether what is in the buffer's place has its shape and other values."""
        if now is None or now.shape != self._value.shape:
            return False
        return not torch.allclose(now.detach().to(self._value), self._value, rtol=0, atol=0, equal_nan=True)

    def restore(self, is_last: bool) -> None:
        """Put the value back, if the buffer was written to: an autograd graph may hold one that was not. Writing by
        way of `.data` leaves no trace but the values, which are compared the last time."""
        if version(self.buffer) == self._version and not (is_last and self.differs(self.buffer)):
            return
        if self.buffer.requires_grad:
            self.buffer.detach_()  # something that depends on the sequence was written into it
        with torch.no_grad():
            self.buffer.copy_(self._value)
        self._version = version(self.buffer)


class _Attributes:
    """What the modules of a model keep in plain attributes, and in the lists, dictionaries and sets among these."""

    def __init__(self, model: nn.Module) -> None:
        self._of_modules = [
            (
                attributes,
                {name: value for name, value in attributes.items() if name not in _OF_EVERY_MODULE},
                len(attributes),
            )
            for attributes in (module.__dict__ for module in model.modules())
        ]
        self._containers: list[tuple[Any, Any]] = []
        seen: set[int] = set()
        for _, own, _ in self._of_modules:
            for value in own.values():
                self._hold(value, seen)

    def _hold(self, value: Any, seen: set[int]) -> None:
        if type(value) not in _CONTAINERS or id(value) in seen or len(seen) + len(value) > _MOST_HELD:
            return
        seen.add(id(value))
        self._containers.append((value, value.copy()))
        for item in value.values() if isinstance(value, dict) else value:
            self._hold(item, seen)

    def restore(self) -> None:
        """Put back what is another object now."""
        for attributes, own, n_attributes in self._of_modules:
            for name, value in own.items():
                if attributes.get(name, self) is not value:
                    attributes[name] = value
            if len(attributes) != n_attributes:
                for name in attributes.keys() - own.keys() - _OF_EVERY_MODULE:
                    del attributes[name]
        for container, before in self._containers:
            if not _holds_the_same(container, before):
                container.clear()
                (container.extend if isinstance(container, (list, deque)) else container.update)(before)


def _holds_the_same(container: Any, before: Any) -> bool:
    if len(container) != len(before):
        return False
    if isinstance(container, set):
        return container == before
    if isinstance(container, dict):
        return all(container.get(name, _OF_EVERY_MODULE) is value for name, value in before.items())
    return all(x is y for x, y in zip(container, before, strict=True))


class State:
    """What a model keeps from one call for the next: buffers, attributes, and tensors among these."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = _Attributes(model)
        self._buffers = [(path, buffers_of(module), dict(buffers_of(module))) for path, module in model.named_modules()]
        tensors = (x for module in model.modules() for x in module.__dict__.values() if isinstance(x, Tensor))
        self._snapshots = [_Snapshot(x) for x in (*model.buffers(), *tensors)]

    def rewind(self, is_last: bool = False) -> None:
        """Put all of it back, so that every pass begins with the same: what a model keeps from one call for the next
        would make a result depend on the batches before."""
        self._attributes.restore()
        for _, buffers, before in self._buffers:
            buffers.clear()
            buffers.update(before)
        for snapshot in self._snapshots:
            snapshot.restore(is_last)

    def written(self) -> list[str]:
        """Names of buffers of numbers that the last forward pass wrote to; a cache that grows is none."""
        values = {id(snapshot.buffer): snapshot for snapshot in self._snapshots}
        return [
            ".".join(filter(None, (path, name)))
            for path, buffers, before in self._buffers
            for name, buffer in before.items()
            if buffer is not None and buffer.is_floating_point() and values[id(buffer)].differs(buffers.get(name))
        ]


_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_lock_of_locks = threading.Lock()


def _lock_of(model: nn.Module) -> threading.RLock:
    """One thread at a time may borrow a model."""
    with _lock_of_locks:
        return _locks.setdefault(model, threading.RLock())


class _Loan:
    """A model as it came."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = [(module, dict(module.__dict__)) for module in model.modules()]
        self._parameters = [(p, p.data, p.requires_grad, p.grad) for p in model.parameters()]
        self._state = State(model)

    def give_back(self) -> None:
        """Undo everything."""
        for parameter, data, requires_grad, gradient in self._parameters:
            if parameter.data_ptr() != data.data_ptr() or parameter.dtype != data.dtype:
                parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        self._state.rewind(is_last=True)
        for module, attributes in self._attributes:
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
            module.__dict__.update(attributes)


@contextlib.contextmanager
def borrowed(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Iterator[State]:
    """Hold a model on `device`, in `dtype` if one is given, in eval mode and with frozen parameters; gives its state as
    it is for the work.

    On exit its device, training modes, requires_grad flags, buffers and attributes are what they were, also after an
    exception or KeyboardInterrupt. Parameters and buffers are the same tensor objects with the same storage.
    """
    with _lock_of(model):
        loan = _Loan(model)
        try:
            for parameter in model.parameters():
                parameter.grad = None  # or it would be moved along
                parameter.requires_grad_(False)
            move(model, device, dtype)
            model.eval()
            yield State(model)
        finally:
            loan.give_back()


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled parts of a model as plain Python, so that their operations are seen.

    As long as the compiler is not loaded there are none, and it is not loaded for this: that takes seconds.
    """
    if not is_compiler_loaded() or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
