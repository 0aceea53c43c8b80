"""Zip archives that torch or Keras wrote: what is checked in one must be what is read of it.

Python's reader and torch's differ in where they look for the list of an archive's files, and in which of two files of
one name they find. A checkpoint of two lists could show the one a few bytes and the other gigabytes.
"""

import struct
import zipfile
from pathlib import Path

_HEAD, _END, _END_64, _LOCATOR_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _END_64_BYTES, _LOCATOR_BYTES = 22, 56, 20


def is_archive(path: Path) -> bool:
    """Whether torch takes a file for an archive: by its first bytes, whatever is at its end."""
    with path.open("rb") as file:
        return file.read(len(_HEAD)) == _HEAD


def members_of(path: Path) -> list[zipfile.ZipInfo]:
    """The files in an archive.

    Raises:
        zipfile.BadZipFile: it is damaged, or another reader may find other files in it.
        NotImplementedError, OSError: it cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    _require_one_list(path, len(members))
    names = [each.orig_filename.lower() for each in members]
    if len({*names}) < len(names) or any("\0" in name for name in names):
        raise zipfile.BadZipFile("two of its files have the same name, or one has none")
    return members


def _require_one_list(path: Path, n_members: int) -> None:
    """The list of files must end where the archive's last record begins, as all who write archives have it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_BYTES - _LOCATOR_BYTES - _END_64_BYTES))
        tail = file.read()
    last, locator = tail[-_END_BYTES:], tail[-_END_BYTES - _LOCATOR_BYTES : -_END_BYTES]
    n, n_bytes, start, n_comment = struct.unpack("<8x2x H L L H", last)
    behind = size - _END_BYTES
    if locator.startswith(_LOCATOR_64):
        behind -= _LOCATOR_BYTES + _END_64_BYTES
        record = tail[:_END_64_BYTES]
        is_whole = record.startswith(_END_64) and struct.unpack("<8x Q 4x", locator) == (behind,)
        n, n_bytes, start = struct.unpack("<32x Q Q Q", record) if is_whole else (0, 0, 0)
    if not last.startswith(_END) or n_comment or start + n_bytes != behind or n != n_members:
        raise zipfile.BadZipFile("its list of files is not at its end, or it has more than one")
