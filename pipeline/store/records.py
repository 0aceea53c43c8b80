"""What the protocol files of a run say of a file, of a committed shard, and of one that was given up."""

import math
import os
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from pipeline.planning.plain_values import require, require_fields
from pipeline.store.checksums import unseal
from pipeline.store.json_files import parse

PHASES = ("read", "wait", "device", "write")  # of a shard; `read` includes the drawing of references
KEY = re.compile(r"(\w+/)?(zarr\.json|c(\.\d+)*)", re.ASCII)  # of the files of a store


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when it was committed."""

    n_bytes: int
    crc32: int

    @staticmethod
    def by_key(values: Mapping[str, Any]) -> "dict[str, FileRecord]":
        """Of the files of a store, by their keys; ValueError where one has no key of a store's, or no two numbers."""
        require(values, dict[str, list[int]], "files")
        for key, numbers in values.items():
            if not KEY.fullmatch(key) or len(numbers) != 2 or min(numbers) < 0:
                raise ValueError(f"files has {key!r}: {numbers}; expected a file of the store, its size and its CRC-32")
        return {key: FileRecord(*numbers) for key, numbers in values.items()}

    @staticmethod
    def of(data: bytes) -> "FileRecord":
        """Size and CRC-32 of a file's content."""
        return FileRecord(len(data), zlib.crc32(data))


class _File(TypedDict):
    n_bytes: int
    crc32: int


class _Deltas(TypedDict):
    """See planning/convergence.py."""

    n: int
    n_over: int
    n_over_relative: NotRequired[int]
    n_not_finite: int
    largest: float | None
    worst_row: int
    counts: dict[str, int]


class _Done(TypedDict):
    shard: int
    start: int
    stop: int
    files: dict[str, _File]
    seconds: float
    deltas: _Deltas
    worker: str
    phases: NotRequired[dict[str, float]]


@dataclass(frozen=True)
class DoneRecord:
    """A committed shard.

    Attributes:
        shard, start, stop: which rows.
        files: the file of each array, by the array's name.
        seconds: the time it took.
        deltas: summary of its convergence deltas; see convergence.py.
        worker: host and process that wrote it.
        phases: seconds of reading and drawing, of waiting for the device, on it, and of writing; see PHASES.
    """

    shard: int
    start: int
    stop: int
    files: dict[str, FileRecord]
    seconds: float
    deltas: dict[str, Any]
    worker: str
    phases: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def from_json(text: str | bytes) -> "DoneRecord":
        """Raises ValueError or TypeError where the text is damaged or no record."""
        values = unseal(text)
        require(values, _Done, "it")
        if not 0 <= values["start"] < values["stop"] or not 0 <= values["seconds"] < math.inf:
            raise ValueError("it has no rows, or took no time that can be")
        files = {name: FileRecord(file["n_bytes"], file["crc32"]) for name, file in values.pop("files").items()}
        return DoneRecord(files=files, **values)


@dataclass(frozen=True)
class Failure:
    """A shard that was given up.

    Attributes:
        shard, start, stop: which rows.
        error: in one line, with the names of its sequences.
        log: where the full text is; "" where there is none.
    """

    shard: int
    start: int
    stop: int
    error: str
    log: str

    @staticmethod
    def from_json(data: bytes) -> "Failure":
        """Raises ValueError or TypeError where the text is damaged or no record."""
        values = parse(data)
        require_fields(values, Failure, "it")
        return Failure(**values)


def whoami() -> str:
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"
