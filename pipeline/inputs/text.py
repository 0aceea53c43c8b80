"""Reading text, plain or compressed, with errors that name the file and the line."""

import io
import os
import re
import shlex
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.config import limits
from pipeline.config.settings import expanded
from pipeline.inputs.compressed import DamagedFile, refuse_others, unpacked
from pipeline.messages.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_MAGIC = 8
_OF_PROCESS = re.compile(r"/dev/(?:stdin|fd/\d+)$|/proc/(?:self|thread-self|\d+)/(?:task/\d+/)?fd/\d+$")
_NOT_TEXT = {
    b"\x89HDF": "an HDF5 file",
    b"\x1a\x45\xdf\xa3": "a binary file",
    b"PK": "a damaged zip archive",
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
    found = expanded(path)
    try:
        kind = found.stat().st_mode
    except FileNotFoundError:
        near = f"; there is {str(path).strip()!r} without the spaces" if _is_padded(str(path)) else ""
        raise UserError(f"{field}={path}: no such file (looked for {found.absolute()}){near}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise UserError(f"{field}={path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    refuse_pipe(path, field)
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
        return found
    raise UserError(f"{field}={path} is a {'socket' if stat.S_ISSOCK(kind) else 'device'}; expected a file")


def _is_padded(path: str) -> bool:
    """Whether spaces around a name keep it from being that of a file."""
    return path != path.strip() and os.path.exists(os.path.expanduser(path.strip()))


def refuse_pipe(path: str | Path, field: str) -> None:
    """Raises UserError for a pipe, whose content is gone once it is read, and for what this process alone was given.

    Args:
        path: of something that exists.
        field: the setting that names it.
    """
    found = expanded(path)
    kind, is_of_process = found.stat().st_mode, _OF_PROCESS.match(os.path.abspath(found)) is not None
    if stat.S_ISFIFO(kind) or (stat.S_ISCHR(kind) and is_of_process):
        raise UserError(
            f"{field}={path} is a {'pipe' if stat.S_ISFIFO(kind) else 'terminal'}, and a run reads its files more than "
            f"once; write a file first, `COMMAND > FILE`, and give {field}=FILE (.gz, .bz2, .xz and .zst are read "
            f"where text is)"
        )
    if is_of_process and stat.S_ISREG(kind):
        own = shlex.quote(f"{field}={os.path.realpath(found)}")
        raise UserError(f"{field}={path} is another file to each process; give the name of this one: {own}")


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


def open_bytes(path: Path) -> BinaryIO:
    """The file's content, decompressed. Raises UserError when it is another kind of binary file."""
    file = unpacked(path)
    try:
        head = cast(io.BufferedReader, file).peek(_LONGEST_MAGIC)
        refuse_others(path, head)
        for magic, kind in _NOT_TEXT.items():
            if head.startswith(magic):
                raise UserError(f"{path} is {kind}; expected text, plain or compressed")
    except UserError:
        file.close()
        raise
    except (EOFError, DamagedFile):  # whoever reads it says where it is damaged
        file.close()
        return unpacked(path)
    return file


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
                if number == 1 and b"\0" in line:
                    raise UserError(f"{path} is not text; an archive (tar) must be unpacked, UTF-16 text made UTF-8")
                yield number, (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).rstrip(b"\r\n")
        except (EOFError, DamagedFile) as error:
            raise damaged(path, f"after line {number}", error) from error
        except OSError as error:
            raise UserError(f"{path} cannot be read after line {number}: {error.strerror or error}") from error


def damaged(path: Path, where: str, error: Exception) -> UserError:
    """The error for a compressed file that ends early or does not decompress."""
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
