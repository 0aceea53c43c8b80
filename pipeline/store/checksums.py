"""Checksums within JSON files, of the file itself: damage is found where no other file has a checksum of it."""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

from pipeline.store.json_files import parse_object

NO_CHECKSUM = "crc32:00000000"
_CHECKSUM = re.compile(rb"crc32:[0-9a-f]{8}")


def own_checksum(data: bytes) -> tuple[str, str]:
    """The checksum that a file states of itself ("" where it states none), and the one that it has."""
    stated = _CHECKSUM.search(data)
    actual = zlib.crc32(_CHECKSUM.sub(NO_CHECKSUM.encode(), data, count=1))
    return stated.group().decode() if stated else "", f"crc32:{actual:08x}"


def state_checksum(text: str) -> bytes:
    """A file whose first checksum is NO_CHECKSUM, with its own in place of that."""
    return text.replace(NO_CHECKSUM, own_checksum(text.encode())[1], 1).encode()


def seal(values: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Values as JSON with a checksum of the whole before them."""
    return state_checksum(json.dumps({"checksum": NO_CHECKSUM, **values}, indent=indent))


def unseal(data: str | bytes) -> dict[str, Any]:
    """The values; ValueError where they are damaged. A file of version 0.1.0 has no checksum, and is taken as it is."""
    data = data.encode() if isinstance(data, str) else data
    values = parse_object(data)
    if "checksum" in values or _CHECKSUM.search(data):
        stated, actual = own_checksum(data)
        if stated != actual:
            raise ValueError(f"it states {stated or 'no checksum'} and has {actual}")
    return {name: value for name, value in values.items() if name != "checksum"}
