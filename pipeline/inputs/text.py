"""Reading plain or gzip-compressed text, told apart by its first bytes, with errors that name the file and the line."""

import gzip
import io
import re
import stat
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.config import limits
from pipeline.messages.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_BUFFER_BYTES = 1 << 17
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_TEXT = {
    b"PK": "a zip archive",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"\x89HDF": "an HDF5 file",
    b"\x1a\x45\xdf\xa3": "a binary file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"CRAM": "a CRAM file",
    b"\x1a\x41\x43\x51": "a 2bit file",
    b"\x43\x27\x41\x1a": "a 2bit file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x93NUMPY": "a numpy array",
}


def require_path(path: str | Path | None, field: str) -> Path:
    """The path of an existing file or folder. Raises UserError, which names the setting, for anything else."""
    if path is None or str(path) == "":
        raise UserError(f"{field} is not set; give the path of a file: {field}=...")
    if re.match(r"\w+://", str(path)):
        raise UserError(f"{field}={path} is not on a disk; download it, and give its path")
    found = Path(path).expanduser()
    try:
        kind = found.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{field}={path}: no such file (looked for {found.absolute()})") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise UserError(f"{field}={path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISFIFO(kind):
        return found
    raise UserError(f"{field}={path} is a {'socket' if stat.S_ISSOCK(kind) else 'device'}; expected a file")


def require_file(path: str | Path | None, field: str) -> Path:
    """The path of a readable file. Raises UserError, which names the setting, for anything else."""
    found = require_path(path, field)
    if found.is_dir():
        raise UserError(f"{field}={path} is a directory; expected a file")
    try:
        with found.open("rb"):
            return found
    except OSError as error:
        raise UserError(f"{field}={path} cannot be read: {error.strerror or error}") from None


def is_gzip(path: Path) -> bool:
    """Whether the file is gzip (bgzip is gzip too), by its first bytes."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC


def open_bytes(path: Path) -> BinaryIO:
    """The file's content, decompressed if it is gzip. Raises UserError when it is another kind of binary file."""
    if is_gzip(path):
        return cast(BinaryIO, io.BufferedReader(_Unpacked(path), _BUFFER_BYTES))
    file = path.open("rb", buffering=_BUFFER_BYTES)
    head = file.read(8)
    file.seek(0)
    for magic, kind in _NOT_TEXT.items():
        if head.startswith(magic):
            file.close()
            raise UserError(f"{path} is {kind}; expected plain text or gzip")
    return file


class _Unpacked(io.RawIOBase):
    """The content of a gzip file; UserError where more comes out than the limits allow."""

    def __init__(self, path: Path) -> None:
        self._file, self._streamed = gzip.GzipFile(path), limits.Streamed(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        n_bytes = self._file.readinto(buffer)
        self._streamed.add(n_bytes)
        return n_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


def numbered_lines(path: Path, in_pieces: bool = False) -> Iterator[tuple[int, bytes]]:
    """(1-based line number, line without its ending), blank lines included; a byte order mark is dropped.

    With `in_pieces`, a line that is longer than `limits.record_mb` comes piece by piece, each with its number.

    Raises:
        UserError: the file is truncated, damaged, or no text; or a line is too long.
    """
    number, longest, n_cut = 0, limits.record_bytes(), 0
    with open_bytes(path) as file:
        try:
            for piece, line in enumerate(iter(partial(file.readline, longest + 2), b""), start=1):  # 2: of its ending
                number = piece - n_cut
                if len(line) > longest and not line.endswith(b"\n"):
                    if not in_pieces:
                        raise limits.too_long(f"{path}, line {number}", "record_mb")
                    n_cut += 1
                if number == 1 and b"\0" in line and not line.startswith(b"BCF"):  # variants.py refuses it
                    raise UserError(f"{path} is not text; an archive (tar) must be unpacked, UTF-16 text made UTF-8")
                yield number, (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).rstrip(b"\r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise damaged(path, f"after line {number}", error) from error
        except OSError as error:
            raise UserError(f"{path} cannot be read after line {number}: {error.strerror or error}") from error


def damaged(path: Path, where: str, error: Exception) -> UserError:
    """The error for a gzip file that ends early or does not decompress."""
    kind = "truncated" if isinstance(error, EOFError) else "damaged"
    return UserError(f"{path} is {kind} {where}: {error}; copy or download it again")


def text_of(line: bytes) -> tuple[str, bool]:
    """The line as text, and whether it was valid UTF-8 (where it is not, the bad bytes are replaced)."""
    try:
        return line.decode("utf-8"), True
    except UnicodeDecodeError:
        return line.decode("utf-8", errors="replace"), False


def returns_hint(line: str) -> str:
    """The end of an error about a line that holds carriage returns, which may be the file's only line ends."""
    return "; its lines end in a carriage return alone: tr '\\r' '\\n' mends that" if "\r" in line else ""
