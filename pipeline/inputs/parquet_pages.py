"""How large the pages of a Parquet file become, from the head of each: what the file says of a whole column may be
a lie, and Arrow makes room for a page when it comes to it.

The head of a page is a struct of Thrift's compact protocol, `PageHeader`. Fields 1 to 3 are its kind, its bytes once it
is unpacked, and those in the file. A page of values has a struct in field 5, or 8, which says how they are encoded.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_KIND, _UNPACKED, _PACKED, _OF_VALUES, _OF_VALUES_2 = 1, 2, 3, 5, 8
_DICTIONARY, _DELTA_BYTE_ARRAY = 2, 7
_HEAD_BYTES, _LONGEST_HEAD = 1 << 12, 1 << 24  # of statistics, which may hold long texts
_DEEPEST = 16


class Page(NamedTuple):
    """A page, without its head.

    Attributes:
        packed, unpacked: its bytes in the file, and once it is unpacked.
        is_dictionary: whether it holds the entries of a dictionary.
        is_delta: whether it holds of a text only what differs from the one before.
    """

    packed: int
    unpacked: int
    is_dictionary: bool
    is_delta: bool


def pages(descriptor: int, start: int, stop: int) -> Iterator[Page]:
    """The pages that stand between two places of a file. Raises ValueError where there is no page."""
    while start < stop:
        length, page = _head(descriptor, start)
        yield page
        start += length + page.packed


def _head(descriptor: int, start: int) -> tuple[int, Page]:
    """The length of the head of the page at a place, and what it says."""
    n_bytes = _HEAD_BYTES
    while True:
        data = os.pread(descriptor, n_bytes, start)
        head = _Struct(data)
        try:
            found = head.numbers()
        except IndexError:
            if len(data) == n_bytes < _LONGEST_HEAD:
                n_bytes *= 16
                continue
            raise ValueError(f"no page ends at byte {start + len(data)}") from None
        packed, unpacked = found.get(_PACKED, -1), found.get(_UNPACKED, -1)
        if min(packed, unpacked) < 0:
            raise ValueError(f"there is no page at byte {start}")
        is_delta = _DELTA_BYTE_ARRAY in (found.get((_OF_VALUES, 2)), found.get((_OF_VALUES_2, 4)))
        return head.at, Page(packed, unpacked, found.get(_KIND) == _DICTIONARY, is_delta)


class _Struct:
    """Reads a struct; IndexError where the data end before it, ValueError where they are none."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def numbers(self, depth: int = 0) -> dict[Any, int]:
        """Its numbers, by the field; those of a struct in it by both fields."""
        if depth > _DEEPEST:
            raise ValueError("a page's head is nested without end")
        found: dict[Any, int] = {}
        field = 0
        while head := self._byte():
            kind = head & 15
            field = field + (head >> 4) if head >> 4 else self._number()
            if _BYTE < kind < _DOUBLE:
                found[field] = self._number()
            elif kind == _STRUCT:
                found |= {(field, inner): number for inner, number in self.numbers(depth + 1).items()}
            elif kind not in (_TRUE, _FALSE):  # these are their own value
                self._skip(kind, depth)
        return found

    def _skip(self, kind: int, depth: int) -> None:
        if kind == _STRUCT:
            self.numbers(depth + 1)
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(self._size() if head >> 4 == 15 else head >> 4):
                self._skip(head & 15, depth + 1)
        elif kind == _MAP:
            kinds = self._byte() if (n := self._size()) else 0
            for _ in range(n):
                self._skip(kinds >> 4, depth + 1)
                self._skip(kinds & 15, depth + 1)
        elif kind == _BINARY:
            n_bytes = self._size()
            self.at += n_bytes
        elif kind in (_DOUBLE, _TRUE, _FALSE, _BYTE):
            self.at += 8 if kind == _DOUBLE else 1
        elif kind < _DOUBLE:
            self._number()
        else:
            raise ValueError("a page's head is damaged")

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _size(self) -> int:
        found = bits = 0
        while (byte := self._byte()) >= 128 and bits < 63:
            found, bits = found | (byte & 127) << bits, bits + 7
        return found | byte << bits

    def _number(self) -> int:
        """As a zigzag: signs in the last bit."""
        found = self._size()
        return found >> 1 ^ -(found & 1)
