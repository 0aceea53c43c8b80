"""Where the axes of Keras's tensors lie in torch: (N, ..., C) is held as (N, C, ...), the features at axis 1."""

import math

from torch import Tensor

_LARGEST = 1 << 28  # values of one tensor for one sequence: a gigabyte


def to_keras(x: Tensor) -> Tensor:
    """(N, C, ...) -> (N, ..., C)."""
    return x.movedim(1, -1) if x.ndim > 2 else x


def to_torch(x: Tensor) -> Tensor:
    """(N, ..., C) -> (N, C, ...)."""
    return x.movedim(-1, 1) if x.ndim > 2 else x


def held_axis(axis: int, ndim: int) -> int:
    """Where axis `axis` of Keras's tensor of `ndim` axes lies in torch. Raises IndexError where it has no such axis."""
    if not -ndim <= axis < ndim:
        raise IndexError(f"axis {axis} of a tensor with {ndim} axes")
    axis %= ndim
    if axis == 0 or ndim < 3:
        return axis
    return 1 if axis == ndim - 1 else axis + 1


def require_small(*shape: int) -> None:
    """Raises ValueError where a layer would make a tensor of this shape, without the batch, that no model has: a number
    in a file costs nothing, the memory does."""
    if math.prod(shape) > _LARGEST:
        raise ValueError(f"it would make {math.prod(shape):,} values of one sequence, {' x '.join(map(str, shape))}")
