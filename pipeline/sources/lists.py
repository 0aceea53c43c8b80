"""Sequences as lists of numbers in a column of Parquet or Arrow: one-hot or codes, see onehot.py.

Lists whose size is not part of the column's type, as most libraries write them, must all be like the first one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.sources.onehot import decode


@dataclass(frozen=True)
class Decoded:
    """Codes of a row that was given as numbers; reading them raises ValueError where they are no sequence."""

    values: np.ndarray
    problem: str | None

    @property
    def codes(self) -> np.ndarray:
        """(L,) uint8."""
        if self.problem is not None:
            raise ValueError(self.problem)
        return self.values


def fixed_type(type_: pa.DataType, values: Iterable[Any]) -> pa.DataType:
    """The type of a column of lists, with the sizes of its first value where it does not say them.

    Args:
        type_: of the column; another than of lists is returned as it is.
        values: of the column, None where a row has none.
    """
    if pa.types.is_fixed_size_list(type_) or not _is_list(type_):
        return type_
    first = next((value for value in values if value is not None), None)
    return type_ if first is None else _sized(type_, first)


def _sized(type_: pa.DataType, value: Any) -> pa.DataType:
    if not _is_list(type_):
        return type_
    return pa.list_(_sized(type_.value_type, value[0] if value else None), len(value or ()))


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def fixed(column: pa.Array, type_: pa.DataType, where: str) -> pa.Array:
    """A column as one of lists of fixed size. Raises UserError where their sizes differ."""
    try:
        return column if column.type == type_ else column.cast(type_)
    except pa.ArrowInvalid:
        sizes = " x ".join(map(str, list_shape(type_) or ()))
        raise UserError(f"{where} holds lists of different sizes; expected all like the first, {sizes}") from None


def list_shape(type_: pa.DataType) -> tuple[int, ...] | None:
    """The shape of each value of a column of fixed-size lists; None for another column."""
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(type_):
        shape, type_ = (*shape, type_.list_size), type_.value_type
    return shape or None


def kind(type_: pa.DataType) -> str:
    """numpy's letter for the numbers in a column of lists."""
    while pa.types.is_fixed_size_list(type_):
        type_ = type_.value_type
    return str(np.dtype(type_.to_pandas_dtype()).kind)


def numbers(column: pa.Array, shape: tuple[int, ...], axes: str, where: str) -> Iterator[Decoded | None]:
    """The sequences of a column of fixed-size lists."""
    is_there = column.is_valid().to_pylist()
    flat = column.drop_null()
    for _ in shape:
        flat = flat.flatten()
    values = flat.to_numpy(zero_copy_only=False)
    if len(values) != sum(is_there) * int(np.prod(shape)):
        raise UserError(f"{where}: a list holds an empty place; expected numbers everywhere")
    rows = zip(*decode(values.reshape(-1, *shape), axes), strict=True)
    return (Decoded(*next(rows)) if there else None for there in is_there)
