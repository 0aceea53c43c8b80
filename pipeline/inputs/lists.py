"""Sequences as lists of numbers in a column of Parquet or Arrow: one-hot or codes, see onehot.py.

Lists whose size is not part of the column's type, as most libraries write them, must all be like the first one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.inputs.columnar import list_shape, values_of
from pipeline.inputs.onehot import decode
from pipeline.messages.errors import UserError


@dataclass(frozen=True)
class Decoded:
    """Codes of a row of numbers, or why they are no sequence."""

    values: np.ndarray
    problem: str | None

    @property
    def codes(self) -> np.ndarray:
        """(L,) uint8. Raises ValueError where the numbers are no sequence."""
        if self.problem is not None:
            raise ValueError(self.problem)
        return self.values


def fixed_type(type_: pa.DataType, values: Iterable[Any]) -> pa.DataType:
    """The type of a column of lists, with the sizes of its first value where it has none; other types are unchanged."""
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


def numbers(column: pa.Array, shape: tuple[int, ...], axes: str, where: str) -> Iterator[Decoded | None]:
    """The sequences of a column of fixed-size lists."""
    values, is_whole = values_of(column, where)
    is_there = column.is_valid().to_numpy(zero_copy_only=False)
    if (is_there & ~is_whole).any():
        raise UserError(f"{where}: a list holds an empty place; expected numbers everywhere")
    decoded = zip(*decode(values.reshape(-1, *shape), axes), strict=True)
    return (Decoded(*row) if there else None for row, there in zip(decoded, is_there.tolist(), strict=True))
