"""Compressed files, told by their first bytes: gzip, bzip2, xz and zstd are read, as a stream and within limits.

All that is known of other formats is the command that converts them.
"""

import bz2
import gzip
import io
import lzma
import shlex
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipeline.config import limits
from pipeline.messages.errors import UserError

_BUFFER_BYTES = 1 << 17
_LONGEST_MAGIC = 8
_XZ_MEMORY = 1 << 28  # bytes; xz -9 asks for a quarter of it, and a file may ask for 4 GB


class DamagedFile(Exception):
    """A compressed file that does not decompress."""


class _Streams:
    """The content of a bzip2 or xz file of any number of streams.

    The standard library's own files stop without a word at a stream whose beginning is damaged, and take as much memory
    as a xz file asks for.
    """

    def __init__(self, path: Path, make: Callable[[], Any]) -> None:
        self._file, self._make = path.open("rb"), make
        self._stream, self._packed = make(), b""

    def read(self, n_bytes: int) -> bytes:
        """Some bytes, at most so many; none at the end."""
        while self._next(n_bytes):
            packed, self._packed = self._packed, b""
            if found := self._stream.decompress(packed, n_bytes):
                return bytes(found)
        return b""

    def _next(self, n_bytes: int) -> bool:
        """Make the stream ready for more, or the next one; whether there is more."""
        if self._stream.eof:
            self._packed = self._after_zeros(self._stream.unused_data, n_bytes)
            if not self._packed:
                return False
            self._stream = self._make()
            return True
        if self._stream.needs_input and not self._packed:
            self._packed = self._file.read(n_bytes)
            if not self._packed:
                raise EOFError("it ends before its end-of-stream marker")
        return True

    def _after_zeros(self, packed: bytes, n_bytes: int) -> bytes:
        """What comes after the padding between streams."""
        while not (found := packed.lstrip(b"\0")):
            packed = self._file.read(n_bytes)
            if not packed:
                break
        return found

    def close(self) -> None:
        self._file.close()


def _bzip2(path: Path) -> _Streams:
    return _Streams(path, bz2.BZ2Decompressor)


def _xz(path: Path) -> _Streams:
    return _Streams(path, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, _XZ_MEMORY))


def _zstd(path: Path) -> Any:
    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


_READERS: dict[bytes, tuple[str, Callable[[Path], Any]]] = {  # by magic: the program that unpacks it, and the reader
    b"\x1f\x8b": ("gzip", gzip.GzipFile),
    b"BZh": ("bzip2", _bzip2),
    b"\xfd7zXZ\0": ("xz", _xz),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
}
SUFFIXES = (".gz", ".bgz", ".bz2", ".xz", ".zst", ".zstd")

_OTHERS: dict[bytes, tuple[str, str, str]] = {  # what it is, the command, and the suffix of what that makes
    b"PK\x03\x04": ("a zip archive", "unzip -p {} > {out}", ""),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x -so {} > {out}", ""),
    b"Rar!": ("a rar archive", "unrar p -inul {} > {out}", ""),
    b"\x1f\x9d": ("compressed with compress", "gzip -dc {} > {out}", ""),
    b"LZIP": ("compressed with lzip", "lzip -dc {} > {out}", ""),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "lz4 -dc {} > {out}", ""),
    b"\x1a\x41\x27\x43": ("a 2bit file", "twoBitToFa {} {out}", ".fa"),
    b"\x43\x27\x41\x1a": ("a 2bit file", "twoBitToFa {} {out}", ".fa"),
    b"BCF": ("BCF", "bcftools view -Oz -o {out} {}", ".vcf.gz"),
    b"BAM\1": ("a BAM file", "samtools fasta {} > {out}", ".fa"),
    b"CRAM": ("a CRAM file", "samtools fasta {} > {out}", ".fa"),
    b"\xeb\xf2\x89\x87": ("a bigBed file", "bigBedToBed {} {out}", ".bed"),
    b"\x87\x89\xf2\xeb": ("a bigBed file", "bigBedToBed {} {out}", ".bed"),
    b"\xff\xfe": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8 {} > {out}", ".utf8.txt"),
    b"\xfe\xff": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8 {} > {out}", ".utf8.txt"),
}


def is_compressed(path: Path) -> bool:
    """Whether the file is of a kind that is decompressed while it is read; bgzip is gzip too."""
    return _kind(path) is not None


def refuse_compressed(path: Path, what: str) -> None:
    """Raises UserError, with the command that unpacks it, for a compressed file that is read in place."""
    if (kind := _kind(path)) is not None:
        name = without_suffix(path.name)
        out = shlex.quote(str(path.with_name(name if name != path.name else f"{name}.unpacked")))
        raise UserError(
            f"{path} is compressed, and {what} is not decompressed while it is read; unpack it: "
            f"{kind[0]} -dc {shlex.quote(str(path))} > {out}"
        )


def _kind(path: Path) -> tuple[str, Callable[[Path], Any]] | None:
    with path.open("rb") as file:
        head = file.read(_LONGEST_MAGIC)
    return next((kind for magic, kind in _READERS.items() if head.startswith(magic)), None)


def unpacked(path: Path) -> BinaryIO:
    """The content of a file, decompressed where it is compressed.

    Reading raises DamagedFile or EOFError where it does not decompress, UserError beyond the limits.
    """
    kind = _kind(path)
    if kind is None:
        return path.open("rb", buffering=_BUFFER_BYTES)
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path, kind[1]), _BUFFER_BYTES))


def first_bytes(path: Path, n: int = 8) -> bytes:
    """The first bytes of the content, decompressed; fewer where there are no more, or it is damaged."""
    with unpacked(path) as file:
        try:
            return file.read(n)
        except (DamagedFile, EOFError):
            return b""


def without_suffix(name: str) -> str:
    """A file's name without the suffix of its compression."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def refuse_others(path: Path, head: bytes) -> None:
    """Raises UserError for a file, by its content's first bytes, that another program must convert first."""
    for magic, (kind, command, suffix) in _OTHERS.items():
        if head.startswith(magic):
            written = command.format(shlex.quote(str(path)), out=_beside(path, suffix))
            raise UserError(f"{path} is {kind}; convert it: {written}")


def _beside(path: Path, suffix: str) -> str:
    """The name, for a shell, of what is made of a file, and never its own."""
    found = path.with_name(Path(without_suffix(path.name)).stem + suffix)
    return shlex.quote(str(found if found != path else path.with_name(f"{path.name}.unpacked")))


class _Unpacked(io.RawIOBase):
    """The content of a compressed file; UserError where more comes out than the limits allow."""

    def __init__(self, path: Path, reader: Callable[[Path], Any]) -> None:
        self._file, self._streamed = reader(path), limits.Streamed(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        found = self._read(len(buffer))
        buffer[: len(found)] = found
        self._streamed.add(len(found))
        return len(found)

    def _read(self, n_bytes: int) -> bytes:
        try:
            return bytes(self._file.read(n_bytes))
        except EOFError:
            raise
        except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise DamagedFile(str(error)) from error
        except OSError as error:
            if error.errno:  # of the disk; the others are those of bz2 and of Arrow
                raise
            raise (EOFError if "Truncated" in str(error) else DamagedFile)(str(error)) from error

    def close(self) -> None:
        self._file.close()
        super().close()
