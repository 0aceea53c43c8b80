"""What is known to be done: the protocol files of a run, in `<store>.run` beside the store.

    claim       held by whoever prepares or finalizes
    staged.zarr the store in the making, where it lies on a disk
    partial/    files on their way to their place, where it lies on a disk
    plan.json   all that a worker must know; written before the store appears
    files.json  size and checksum of every file that `prepare` made, but for the group's own and the sequences'
    prepared    marker: store, plan and files.json are whole
    restore.json  files of a damaged store that are to be made from the input again
    attempts/   one file for each shard that is being worked on; a killed worker leaves its own behind
    done/       one record for each committed shard, with the size and checksum of each file
    failures/   one record for each shard that was given up
    logs/       what happened, as JSON lines, and the full text of failures
    result.json the outcome of the last command, for programs

Every file but the logs appears at once or not at all. A crash between any two steps leaves what the same command can go
on from.
"""

import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.places import LocalPlace, open_place
from pipeline.plan import Plan
from pipeline.shards import Shard

EVERYTHING = "*"  # all files that `prepare` makes, but for the group's own


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when it was committed."""

    n_bytes: int
    crc32: int


@dataclass(frozen=True)
class DoneRecord:
    """A committed shard.

    Attributes:
        shard, start, stop: which rows.
        files: the file of each array, by the array's name.
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
    def from_json(text: str | bytes) -> "DoneRecord":
        values = json.loads(text)
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


def whoami() -> str:
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


class RunDirectory:
    """The protocol files of the run that fills one store.

    Attributes:
        url: of the store.
        store: the place of the store.
        run: the place of the protocol files.
    """

    def __init__(self, url: str | Path, options: Mapping[str, str] | None = None) -> None:
        url = os.fspath(url).rstrip("/") or "/"
        if "://" not in url:
            url = os.path.expanduser(url)
        scratch = None if "://" in url else Path(url + ".run").absolute() / "partial"
        self.store = open_place(url, options, scratch)
        self.run = open_place(url + ".run", options, scratch)
        self.url = self.store.url
        self._made: list[Path] = []  # folders above it that were not there before

    # --- preparing --------------------------------------------------------------------------------------------------

    def claim(self, waiting: Callable[[str], None]) -> AbstractContextManager[None]:
        """Hold the run for oneself, waiting for whoever holds it; `waiting` is told who that is.

        Raises:
            OSError: the place cannot be written.
        """
        if isinstance(self.run, LocalPlace):
            self._made = self._made or [folder for folder in self.run.path.parents if not folder.exists()]
        return self.run.lock("claim", waiting)

    @property
    def prepared(self) -> bool:
        """Whether store and plan are whole."""
        return self.run.size("prepared") is not None

    def read_plan(self) -> Plan | None:
        """The plan of the run that is under way; None when there is none."""
        try:
            return Plan.from_json(self.run.read("plan.json"))
        except FileNotFoundError:
            return None

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder for the store in the making: beside its place on a disk, on this machine's disk for an object store.

        What is still there at the end is removed.
        """
        beside = isinstance(self.run, LocalPlace)
        folder = self.run.path if isinstance(self.run, LocalPlace) else Path(tempfile.mkdtemp(prefix="dlshap-"))
        staged = folder / "staged.zarr"
        try:
            yield staged
        finally:
            shutil.rmtree(staged if beside else folder, ignore_errors=True)

    def publish(self, staged: Path, plan: Plan, files: Mapping[str, FileRecord]) -> None:
        """Put the staged store in its place, then mark the run as prepared.

        On an object store the file that makes a group of the others, `zarr.json`, is the last.
        """
        self._write_plan(plan, files)
        if isinstance(self.store, LocalPlace):
            staged.rename(self.store.path)
        else:
            self.store.clear()  # what an upload that was cut off has left
            keys = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
            for key in sorted(keys, key=lambda key: key == "zarr.json"):
                self.store.write(key, (staged / key).read_bytes())
        self.mark_prepared()

    def _write_plan(self, plan: Plan, files: Mapping[str, FileRecord]) -> None:
        self.run.write("plan.json", plan.to_json().encode())
        self._write_files(files)

    def _write_files(self, files: Mapping[str, FileRecord]) -> None:
        text = json.dumps({key: [file.n_bytes, file.crc32] for key, file in files.items()})
        self.run.write("files.json", text.encode())

    def mark_prepared(self) -> None:
        """The store is in its place: say so, last."""
        if isinstance(self.store, LocalPlace):
            sync(self.store.path.parent)
        self.run.write("prepared", b"")

    def prepared_files(self) -> dict[str, FileRecord]:
        """What `publish` was given.

        Raises:
            UserError: the file that says it is damaged or gone.
        """
        try:
            return {key: FileRecord(*values) for key, values in json.loads(self.run.read("files.json")).items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.run.url}/files.json, which says what the other files should be, is damaged or gone ({error}): "
                f"remove {self.url} and {self.run.url}, and run again"
            ) from None

    # --- making damaged files anew ----------------------------------------------------------------------------------

    def recall(self, plan: Plan, files: Mapping[str, FileRecord]) -> None:
        """Write the protocol files of `prepare` for a store that is there."""
        self._write_plan(plan, files)
        self.mark_prepared()

    def ask_for(self, keys: Iterable[str]) -> None:
        """Files of the store that `prepare` made are to be made again; those asked for before too."""
        wanted = sorted({*keys, *self.asked_for()})
        if wanted:
            self.run.write("restore.json", json.dumps(wanted).encode())

    def asked_for(self) -> list[str]:
        """The files that are to be made again."""
        try:
            return [str(key) for key in json.loads(self.run.read("restore.json"))]
        except FileNotFoundError:
            return []

    def restore(self, staged: Path, files: Mapping[str, FileRecord]) -> None:
        """Copy the files that were asked for from a store made anew, the group's own last."""
        asked = self.asked_for()
        if EVERYTHING in asked:
            there = [path.relative_to(staged).as_posix() for path in staged.rglob("*")]
            asked = [key for key in there if key != "zarr.json" or key in asked]
        keys = sorted((key for key in asked if (staged / key).is_file()), key=lambda key: key == "zarr.json")
        self._write_files({**self.prepared_files(), **{key: files[key] for key in keys if key in files}})
        for key in keys:
            self.store.write(key, (staged / key).read_bytes())
        self.run.delete("restore.json")

    def discard(self) -> None:
        """Remove everything of a run that never got a store, and the folders that were made for it."""
        self.run.clear()
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # someone else put something there
                break

    # --- shards -----------------------------------------------------------------------------------------------------

    def begin(self, shard: Shard) -> str:
        """Say that this process works on a shard; returns what `end` takes."""
        key = f"attempts/{shard.index:08d}-{uuid.uuid4().hex[:12]}"
        self.run.write(key, whoami().encode())
        return key

    def end(self, attempt: str) -> None:
        """This process is alive and no longer works on the shard."""
        self.run.delete(attempt)

    def n_attempts(self, shard: Shard) -> int:
        """How many processes work on the shard, or were killed while they did."""
        return sum(1 for _ in self.run.files(f"attempts/{shard.index:08d}-"))

    def commit(self, record: DoneRecord) -> None:
        """Say that a shard is done; its files are durable already."""
        self.run.write(_record_key(record.shard), json.dumps(asdict(record)).encode())
        self.run.clear(f"attempts/{record.shard:08d}-")
        self.run.delete(_failure_key(record.shard))

    def revoke(self, index: int) -> None:
        """A shard is not done after all."""
        self.run.delete(_record_key(index))

    def read_record(self, index: int) -> DoneRecord | None:
        """The done record of one shard; None where there is none."""
        try:
            return DoneRecord.from_json(self.run.read(_record_key(index)))
        except FileNotFoundError:
            return None

    def done_indices(self) -> list[int]:
        """Shards that have a done record, ascending."""
        names = (entry.key.rpartition("/")[2] for entry in self.run.files("done/"))
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    # --- what went wrong --------------------------------------------------------------------------------------------

    def fail(self, failure: Failure) -> None:
        """Say that a shard was given up."""
        self.run.write(_failure_key(failure.shard), json.dumps(asdict(failure)).encode())

    def failures(self) -> list[Failure]:
        """The shards that were given up, by their index."""
        keys = sorted(entry.key for entry in self.run.files("failures/"))
        return [self._failure(key) for key in keys if key.endswith(".json")]

    def _failure(self, key: str) -> Failure:
        try:
            return Failure(**json.loads(self.run.read(key)))
        except (ValueError, TypeError):
            return Failure(-1, 0, 0, f"{self.run.url}/{key} says that a shard failed, and is damaged", "")

    def forget_failures(self, chosen: range) -> None:
        """These shards are tried again."""
        for failure in self.failures():
            if failure.shard in chosen:
                self.run.delete(_failure_key(failure.shard))

    def log(self, shard: Shard, text: str) -> str:
        """Keep what went wrong in a shard, in full; returns where."""
        key = f"logs/shard-{shard.index:08d}.txt"
        self.run.write(key, text.encode())
        return f"{self.run.url}/{key}"

    # --- the end ----------------------------------------------------------------------------------------------------

    def write_result(self, result: Mapping[str, Any]) -> None:
        """The outcome of a command, for programs."""
        self.run.write("result.json", (json.dumps(result, indent=1) + "\n").encode())

    def tidy(self) -> None:
        """The store is complete: what kills have left behind means nothing any more."""
        self.run.clear("attempts/")
        self.run.clear("partial/")
        self.run.clear("failures/")


def _record_key(index: int) -> str:
    return f"done/{index:08d}.json"


def _failure_key(index: int) -> str:
    return f"failures/{index:08d}.json"


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
