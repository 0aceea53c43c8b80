"""Tensors that a model makes for itself, counted before they are made: a file may say how large its layers are."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.config import limits

_OF_A_SHAPE = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
_OF_A_SHAPE_LIKE = (Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full)
_OF_A_RANGE = (torch.arange, torch.linspace)
_ITEM_BYTES = 4


@contextmanager
def bounded(path: Path, what: str) -> Iterator[None]:
    """Tensors of given shapes that are made within are together no larger than the limits allow for a checkpoint.

    Raises:
        UserError: they are; `what` says whose.
    """
    with _Counted(limits.bytes_on_disk(path), what):
        yield


class _Counted(TorchFunctionMode):
    def __init__(self, on_disk: int, what: str) -> None:
        super().__init__()
        self._on_disk, self._what, self._n_bytes = on_disk, what, 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if n := _n_values(func, args, kwargs):
            self._n_bytes += _ITEM_BYTES * n
            limits.require_held(self._n_bytes, self._on_disk, self._what)
        return func(*args, **kwargs)


def _n_values(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of the tensor that a call makes of a shape; 0 for any other call."""
    if func in _OF_A_SHAPE_LIKE:
        args = args[1:]
    elif func is torch.eye:
        return math.prod(args[:2]) if len(args) > 1 else args[0] ** 2 if args else 0
    elif func in _OF_A_RANGE:
        return max((int(abs(each)) for each in args if isinstance(each, int | float)), default=0)
    elif func not in _OF_A_SHAPE:
        return 0
    shape = args[0] if args else kwargs.get("size", ())
    sizes = list(shape) if isinstance(shape, list | tuple) else [each for each in args if isinstance(each, int)]
    return math.prod(int(size) for size in sizes)
