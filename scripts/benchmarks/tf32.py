"""TF32 on a processor that has none: what it does to values, not to times."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BITS = 10  # of the mantissa that TF32 keeps, of float32's 23
# Where the factors are among the arguments; what is added to a product keeps its digits.
_FACTORS = {
    "convolution": slice(0, 2),
    "convolution_backward": slice(0, 3),
    "mm": slice(0, 2),
    "bmm": slice(0, 2),
    "mv": slice(0, 2),
    "dot": slice(0, 2),
    "addmm": slice(1, 3),
    "baddbmm": slice(1, 3),
}


def rounded(x: Tensor) -> Tensor:
    """With the mantissa rounded to nearest, if it is float32."""
    if x.dtype != torch.float32:
        return x
    drop = 23 - BITS
    bits = x.contiguous().view(torch.int32)
    return torch.where(x.isfinite(), ((bits + (1 << (drop - 1))) & -(1 << drop)).view(torch.float32), x)


class TF32(TorchDispatchMode):
    """Within this context the factors of float32 products and convolutions are rounded, and summed in float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if (factors := _FACTORS.get(func.overloadpacket.__name__)) is not None:
            args = (*args[: factors.start], *map(rounded, args[factors]), *args[factors.stop :])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Within this context the engine computes so: it takes its host's modes off, so this one comes after that."""
    engine: Any = sys.modules["dlshap_core.engine"]
    eager = engine.eager

    @contextlib.contextmanager
    def eager_in_tf32() -> Iterator[None]:
        with eager(), TF32():
            yield

    engine.eager = eager_in_tf32
    try:
        yield
    finally:
        engine.eager = eager
