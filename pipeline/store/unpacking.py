"""Compressed chunks of arrays that other programs made: none becomes larger than a chunk is.

A chunk of a few megabytes may say that it has gigabytes, or have them without saying so.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.messages.errors import UserError

Packed = bytes | memoryview
_SIZES_OF_ZSTD = (0, 2, 4, 8)  # bytes of the content's size, by the first two bits of a frame's flags


def bound(codec: Any, most: int, where: str, n_texts: int | None = None) -> None:
    """Have a codec of numcodecs unpack no more than `most` bytes of a chunk, and raise UserError for larger ones.

    So it does for those that say that they have another number of texts than `n_texts`, where that is given.
    """
    if codec.codec_id in _BOUNDED:
        codec.decode = _Bounded(codec, most, where, n_texts)


@dataclass(frozen=True)
class _Bounded:
    """What decodes instead; it can be pickled, as arrays are for other processes."""

    codec: Any
    most: int
    where: str
    n_texts: int | None

    def __call__(self, data: Any, out: Any = None) -> Any:
        found = _BOUNDED[self.codec.codec_id](memoryview(data).cast("B"), self.most)
        n_bytes = found if isinstance(found, int) else len(found)
        if n_bytes > self.most:
            raise UserError(
                f"{self.where}: a chunk unpacks to more than {self.most} bytes, which its shape and type leave no room "
                f"for"
            )
        content = type(self.codec).decode(self.codec, data, out) if isinstance(found, int) else found
        if self.n_texts is not None and (n_texts := _number_at(0, content, 0)) != self.n_texts:
            raise UserError(f"{self.where}: a chunk has {n_texts} texts; expected {self.n_texts}")
        return content


def _inflated(data: Packed, most: int) -> bytes:
    """zlib or gzip, of any number of members."""
    found = bytearray()
    while data:
        member = zlib.decompressobj(47)
        found += member.decompress(data, most + 1 - len(found))
        if len(found) > most or not member.eof:
            if len(found) <= most:
                raise ValueError("a chunk ends early")
            break
        data = member.unused_data
    return bytes(found)


def _streamed(make: Callable[[], Any], data: Packed, most: int) -> bytes:
    """bz2 or lzma, of any number of streams."""
    found = bytearray()
    while data and len(found) <= most:
        stream = make()
        found += stream.decompress(data, most + 1 - len(found))
        if not stream.eof:
            break
        data = stream.unused_data
    return bytes(found)


def _zstd(data: Packed, most: int) -> int | bytes:
    """The size that a frame says it has; the content of one that says none."""
    flags = data[4] if len(data) > 4 else 0
    is_single = bool(flags & 32)
    n_size = _SIZES_OF_ZSTD[flags >> 6] or int(is_single)
    if not n_size:
        return bytes(pa.CompressedInputStream(pa.BufferReader(data), "zstd").read(most + 1))
    at = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(data[at : at + n_size], "little") + 256 * (n_size == 2)


def _number_at(start: int, data: Packed, most: int) -> int:
    """The size that stands in a chunk's first bytes."""
    return int(struct.unpack_from("<I", data, start)[0]) if len(data) >= start + 4 else 0


_BOUNDED: dict[str, Callable[[Packed, int], int | bytes]] = {
    "gzip": _inflated,
    "zlib": _inflated,
    "bz2": partial(_streamed, bz2.BZ2Decompressor),
    "lzma": partial(_streamed, lzma.LZMADecompressor),
    "zstd": _zstd,
    "blosc": partial(_number_at, 4),
    "lz4": partial(_number_at, 0),
}
