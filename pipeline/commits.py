"""What is known to be done: the protocol files of a run, in `<store>.run/` beside the store.

    claim       locked by whoever prepares or finalizes; the lock goes with the process that held it
    staged.zarr the store in the making, moved to the store's path once the whole input has been checked
    references.npy  windows of a genome that references are drawn from, where they are
    plan.json   all that a worker must know; written before the store appears
    prepared    marker: store and plan are whole
    done/       one record for each committed shard, with the size and checksum of each file
    logs/       what went wrong in a shard, in full
    result.json the outcome of the last command, for programs

Every file appears at once: written beside its place, made durable, then renamed. A crash between any two steps leaves
what the same command can go on from.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.shards import Shard


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when it was committed; the path is relative to the store."""

    path: str
    n_bytes: int
    crc32: int


@dataclass(frozen=True)
class DoneRecord:
    """A committed shard.

    Attributes:
        shard, start, stop: which rows.
        files: the file of each array.
        seconds: the time it took.
        deltas: summary of its convergence deltas; see deltas.py.
        worker: host and process that wrote it.
    """

    shard: int
    start: int
    stop: int
    files: dict[str, FileRecord]
    seconds: float
    deltas: dict[str, Any]
    worker: str

    @staticmethod
    def from_json(text: str) -> "DoneRecord":
        values = json.loads(text)
        files = {name: FileRecord(**record) for name, record in values.pop("files").items()}
        return DoneRecord(files=files, **values)


def checksum(root: Path, relative: Path) -> FileRecord:
    """Size and CRC-32 of a file."""
    crc32, n_bytes = 0, 0
    with (root / relative).open("rb") as file:
        while block := file.read(1 << 20):
            crc32, n_bytes = zlib.crc32(block, crc32), n_bytes + len(block)
    return FileRecord(relative.as_posix(), n_bytes, crc32)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, and durable when this returns."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    partial.write_text(text)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


class RunDirectory:
    """The protocol files of the run that fills one store."""

    def __init__(self, store_path: Path) -> None:
        self.store_path = store_path
        self.path = store_path.with_name(store_path.name + ".run")
        self._made: list[Path] = []  # folders above it that were not there before

    @property
    def staged(self) -> Path:
        return self.path / "staged.zarr"

    @property
    def prepared(self) -> bool:
        return (self.path / "prepared").exists()

    @contextlib.contextmanager
    def claim(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the run for oneself, waiting for whoever holds it; `waiting` is told who that is.

        Raises:
            UserError: the folder cannot be written.
        """
        descriptor = self._lock(waiting)
        try:
            yield
        finally:
            os.close(descriptor)

    def _lock(self, waiting: Callable[[str], None]) -> int:
        claim = self.path / "claim"
        self._made = self._made or [folder for folder in self.path.parents if not folder.exists()]
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(claim, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise UserError(f"cannot write to {self.path}: {error.strerror}; check store.path") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(os.read(descriptor, 200).decode(errors="replace").strip() or "another process")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held it may have removed the folder, and the lock is then on a file that is no longer there.
            if claim.exists() and os.fstat(descriptor).st_ino == claim.stat().st_ino:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return descriptor
            os.close(descriptor)

    def read_plan(self) -> Plan | None:
        """The plan of the run that is under way; None when there is none."""
        try:
            return Plan.from_json((self.path / "plan.json").read_text())
        except FileNotFoundError:
            return None

    def publish(self, plan: Plan) -> None:
        """Put the staged store in its place, then mark the run as prepared."""
        write_atomically(self.path / "plan.json", plan.to_json())
        (self.path / "done").mkdir(exist_ok=True)
        self.staged.rename(self.store_path)
        self.mark_prepared()

    def mark_prepared(self) -> None:
        """The store is in its place: say so, last."""
        sync(self.store_path.parent)
        (self.path / "done").mkdir(exist_ok=True)
        write_atomically(self.path / "prepared", "")

    def discard(self) -> None:
        """Remove everything of a run that never got a store, and the folders that were made for it."""
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # someone else put something there
                break

    def commit(self, record: DoneRecord) -> None:
        """Say that a shard is done; its files are durable already."""
        write_atomically(self._record_path(record.shard), json.dumps(asdict(record)))

    def _record_path(self, index: int) -> Path:
        return self.path / "done" / f"{index:08d}.json"

    def done_indices(self) -> set[int]:
        """Shards that have a done record."""
        folder = self.path / "done"
        names = os.listdir(folder) if folder.is_dir() else []
        return {int(name[:-5]) for name in names if name.endswith(".json") and not name.startswith(".")}

    def read_record(self, index: int) -> DoneRecord:
        """The done record of one shard."""
        return DoneRecord.from_json(self._record_path(index).read_text())

    def done(self, shards: list[Shard]) -> dict[int, DoneRecord]:
        """The shards that are done: a record for the same rows, and every file there with the size it had."""
        found = {}
        indices = self.done_indices()
        for shard in shards:
            if shard.index in indices:
                record = self.read_record(shard.index)
                if (record.start, record.stop) == (shard.start, shard.stop) and self._holds(record):
                    found[shard.index] = record
        return found

    def _holds(self, record: DoneRecord) -> bool:
        for file in record.files.values():
            try:
                if (self.store_path / file.path).stat().st_size != file.n_bytes:
                    return False
            except FileNotFoundError:
                return False
        return True

    def log(self, shard: Shard, text: str) -> Path:
        """Keep what went wrong in a shard, in full."""
        folder = self.path / "logs"
        folder.mkdir(exist_ok=True)
        path = folder / f"shard-{shard.index:08d}.txt"
        write_atomically(path, text)
        return path

    def write_result(self, result: dict[str, Any]) -> None:
        """The outcome of a command, for programs."""
        write_atomically(self.path / "result.json", json.dumps(result, indent=1) + "\n")
