"""Borrowing a model: it is given back exactly as it came, whatever happens in between."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from dlshap_core.errors import UnsupportedModelError


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel wrappers.

    Raises:
        UnsupportedModelError: the model, or a part of it, is a ScriptModule, which cannot be seen into.
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
    return model


@contextlib.contextmanager
def borrowed(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Hold a model on `device`, in `dtype` if one is given, in eval mode and with frozen parameters.

    On exit its device, training modes, requires_grad flags and buffer values are what they were, also after an
    exception or KeyboardInterrupt. Parameters are restored as the same tensor objects with the same storage.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    homes = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        model.to(device=device, dtype=dtype).eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, data in homes:
            if parameter.data.data_ptr() != data.data_ptr() or parameter.device != data.device:
                parameter.data = data
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        for module, name, buffer, value in buffers:
            buffer.detach().copy_(value)
            module._buffers[name] = buffer
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled parts of a model as plain Python, so that their operations are seen."""
    if not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
