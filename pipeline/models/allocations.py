"""What a model makes for itself, counted before there is too much of it: a file may say how large its layers are.

Numbers in a file cost nothing. Those that size weights are counted while the model's class is called, those that size
what its layers make in a first forward pass, on one sequence.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dlshap_core.rules.call import tensors_among
from pipeline.config import limits
from pipeline.config.schema import LimitsConfig
from pipeline.messages.errors import UserError

_OF_A_SHAPE = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
_OF_A_SHAPE_LIKE = (Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full)
_OF_A_RANGE = (torch.arange, torch.linspace)
_ITEM_BYTES = 4
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # and where their factors are among the arguments

# Models of which a file says how large they are, and that nobody has called yet: with the limits that held when they
# were read, the bytes of their files, and their paths.
_untried: WeakKeyDictionary[nn.Module, tuple[LimitsConfig, int, Path]] = WeakKeyDictionary()


@contextmanager
def bounded(path: Path, what: str) -> Iterator[None]:
    """Tensors of given shapes that are made within are together no larger than the limits allow for a checkpoint.

    Raises:
        UserError: they are; `what` says whose.
    """
    counted = _Counted(limits.bytes_on_disk(path), what)
    with counted, _Broadcast(counted.require):
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
            self.require(0)
        return func(*args, **kwargs)

    def require(self, more: int) -> None:
        """Raises UserError where so many bytes beside what was counted are too many."""
        limits.require_held(self._n_bytes + more, self._on_disk, self._what)


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Of torch: else it loads its compiler, for seconds, to have it leave the next function alone."""
        return False


class _Broadcast(_Mode):
    """Small tensors that are added, multiplied or compared may make a large one, such as the distances of positions."""

    def __init__(self, require: Callable[[int], None]) -> None:
        super().__init__()
        self._require = require

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        shapes = [x.shape for x in args if isinstance(x, Tensor)]
        if len(shapes) > 1 and torch.Tag.pointwise in func.tags:
            self._require(_ITEM_BYTES * math.prod(torch.broadcast_shapes(*shapes)))
        return func(*args, **(kwargs or {}))


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


def is_to_be_tried(module: nn.Module, path: Path) -> None:
    """The first forward pass of a model of this file is to be bounded, by the limits that hold now."""
    _untried[module] = limits.current(), limits.bytes_on_disk(path), path


def try_first(module: nn.Module, x: Tensor, extra_inputs: Sequence[Tensor] = ()) -> None:
    """Call a model that is to be tried, on one sequence (1, A, L) and its extra inputs.

    Raises:
        UserError: its layers make more than the limits allow for its file.
    """
    if module not in _untried:
        return
    device = next((values.device for values in module.parameters()), x.device)
    given = [each.to(device) for each in extra_inputs]
    given = [each if each.dtype in (torch.int32, torch.int64) else each.float() for each in given]
    try:
        with torch.no_grad(), _Computed(x.shape[-1], *_untried[module]):
            module(x.to(device).float(), *given)
    except UserError:
        raise
    except Exception:  # noqa: BLE001  (whoever calls it next tells why it fails, and what to do)
        return
    del _untried[module]


class _Computed(_Mode):
    """Sums the bytes of what is computed within: products and convolutions before, which turn weights into as much for
    each base, and whatever else after."""

    def __init__(self, n_bases: int, held: LimitsConfig, on_disk: int, path: Path) -> None:
        super().__init__()
        self._n_bases, self._held, self._on_disk, self._path = n_bases, held, on_disk, path
        self._n_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._require(_ITEM_BYTES * _n_products(func.overloadpacket.__name__, args))
        found = func(*args, **(kwargs or {}))
        if not all(value.alias_info for value in func._schema.returns):  # no view, and not in place
            made, taken = tensors_among(found, lambda _: True), tensors_among((args, kwargs), _is_repeated)
            self._n_bytes += max(sum(x.nbytes for x in made), sum(x.nbytes for x in taken))
        self._require(0)
        return found

    def _require(self, more: int) -> None:
        with limits.using(self._held):
            limits.require_computed(self._n_bytes + more, self._on_disk, self._n_bases, str(self._path))


def _is_repeated(x: Tensor) -> bool:
    """Whether it shows few values many times, as an expanded tensor does: to attribute what takes it, all are made."""
    return x.nbytes > x.untyped_storage().nbytes()


def _n_products(name: str, args: Sequence[Any]) -> int:
    """Values of a product of matrices, or at least of a convolution; 0 of anything else."""
    if name in _PRODUCTS:
        left, right = args[_PRODUCTS[name] :][:2]
        return math.prod(left.shape[:-1]) * right.shape[-1]
    if name != "convolution":
        return 0
    x, weight, _, stride, padding, dilation, transposed, *_ = args
    channels = weight.shape[1] if transposed else weight.shape[0]
    sizes = [
        size if transposed else (size + 2 * pad - dilated * (width - 1) - 1) // step + 1
        for size, width, step, pad, dilated in zip(
            x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    return x.shape[0] * channels * math.prod(max(size, 0) for size in sizes)
