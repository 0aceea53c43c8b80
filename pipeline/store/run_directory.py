"""What is known to be done: the protocol files of a run, in `<store>.run` beside the store.

    claim       held by whoever prepares or finalizes
    staged.zarr the store in the making, on a disk
    partial/    unfinished files, on a disk
    plan.json   all that a worker must know; written before the store appears
    files.json  size and checksum of every file that `prepare` made, but for the group's own and the sequences'
    prepared    marker: store, plan and files.json are whole
    restore.json  files of a damaged store that are to be made from the input again
    probes/     what the first worker on each other kind of device than the plan's probe found; see probe.py
    commands/   one file for each command at work; a killed one leaves its own behind (see presence.py)
    attempts/   one file for each shard that is being worked on; a killed worker leaves its own behind
    done/       one record for each committed shard, with the size and checksum of each file
    failures/   one record for each shard that was given up
    devices/    one file for each device that broke in the midst of work, with the shards that it broke at
    logs/       what happened, as JSON lines, and the full text of failures
    metrics.json what the last command counts, while it works; see metrics.py
    result.json the last command, from its beginning on, and its outcome; for programs

Every file but the logs appears at once or not at all, and those that say how to go on (plan, files, restore, done)
state a checksum of themselves. A crash between any two steps leaves what the same command can go on from.
"""

import hashlib
import json
import os
import re
import shlex
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG
from pipeline.planning.plain_values import require
from pipeline.planning.plan import Plan, Probe
from pipeline.planning.shards import Shard
from pipeline.store.backends.base import LOCK_TIMEOUT_S, unguarded
from pipeline.store.backends.registry import open_backend
from pipeline.store.checksums import seal, unseal
from pipeline.store.json_files import parse, parse_object
from pipeline.store.presence import at_work, this_command
from pipeline.store.records import KEY, DoneRecord, Failure, FileRecord, whoami

PLAN = "plan.json"
UNDER_WAY = "under way"  # state of a command that has not ended, or not come to say so
ALL_FILES = "*"  # all files that `prepare` makes, but for the group's own


_RECORD = re.compile(r"done/([0-9]{8,15})\.json")
_OWN = re.compile(  # the files and folders that a run makes: nothing else is ever removed
    r"claim|prepared|(plan|files|restore|metrics|result)\.json|(probes|commands|attempts|done|failures|devices|logs|partial)/|"
    r"(probes|devices)/(claim|[0-9a-f]{16}\.json)|commands/[0-9a-f]{12}|attempts/\d{8,}-[0-9a-f]{12}|(done|failures)/\d{8,}\.json|"
    r"logs/(shard-\d{8,}\.txt|[^/]+\.jsonl)|(.*/)?\.[^/]+\.partial|partial/check-[0-9a-f]{32}|staged\.zarr/.*"
)


class RunDirectory:
    """The protocol files of the run that fills one store.

    Attributes:
        url: of the store.
        store: the backend of the store.
        run: the backend of the protocol files.
        options: of the storage backend.
        command: who asks for it.
    """

    def __init__(
        self, url: str | Path, options: Mapping[str, str] | None = None, lock_timeout_s: float = LOCK_TIMEOUT_S
    ) -> None:
        url = os.fspath(url).rstrip("/") or "/"
        if "://" not in url:
            url = os.path.expanduser(url)
        url = open_backend(url, options).url  # the path of file:///path
        scratch = None if "://" in url else Path(url + ".run") / "partial"
        self.options = dict(options or {})
        self.store = open_backend(url, options, scratch)
        self.run = open_backend(url + ".run", options, scratch)
        self.run.lock_timeout_s = lock_timeout_s
        self.url = self.store.url
        self.command = this_command()
        self._is_at_work = False

    # --- preparing --------------------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the run exclusively; `waiting` is told who holds it, at once and every minute, while one must wait.

        Every change of store and run within the context makes sure first that the claim is still held: a process that
        was frozen may have lost it.

        Raises:
            OSError: the backend cannot be written, the claim was lost, or one has waited for too long.
        """
        with self.run.lock("claim", waiting) as require:
            self.run.guard = self.store.guard = require
            try:
                yield
            finally:
                self.run.guard = self.store.guard = unguarded

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within this context `dlshap status` sees that this command is at work; contexts may be nested."""
        if self._is_at_work:
            yield
            return
        with at_work(self.run, self.command) as self.command:
            self._is_at_work = True
            try:
                yield
            finally:
                self._is_at_work = False

    @property
    def prepared(self) -> bool:
        """Whether store and plan are whole."""
        return self.run.size("prepared") is not None

    def read_plan(self) -> Plan | None:
        """The plan of the run; None where it has none yet, UserError where it is damaged or of another version."""
        try:
            return Plan.from_values(unseal(self.run.read(PLAN)))
        except FileNotFoundError:
            return None
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"the plan of this run cannot be read: {self.run.url}/{PLAN} is damaged or of another version "
                f"({error}); `dlshap verify --repair {shlex.quote(self.url)}` takes it from the store. Where "
                "that does not help, "
                f"remove {self.url} and {self.run.url}, and run again"
            ) from None

    def staging(self) -> AbstractContextManager[Path]:
        """A path for the store in the making; what remains of it at the end is removed."""
        return self.run.staging("staged.zarr")

    def publish(self, staged: Path, plan: Plan, files: Mapping[str, FileRecord]) -> None:
        """Move the staged store to its URL, then mark the run as prepared.

        On an object store the file that makes a group of the others, `zarr.json`, is the last.
        """
        self.write_plan(plan)
        self._write_files(files)
        self.store.publish(staged, last="zarr.json")
        self.mark_prepared()

    def write_plan(self, plan: Plan) -> None:
        """The plan, for whoever goes on."""
        self.run.write(PLAN, seal(plan.to_values(), indent=1))

    def _write_files(self, files: Mapping[str, FileRecord]) -> None:
        self.run.write("files.json", seal({key: [file.n_bytes, file.crc32] for key, file in files.items()}))

    def mark_prepared(self) -> None:
        """Mark the store and the plan as whole, last."""
        self.store.sync()
        self.run.write("prepared", b"")

    def prepared_files(self) -> dict[str, FileRecord]:
        """The files that `publish` was given; UserError where their list is damaged or gone."""
        try:
            return FileRecord.by_key(unseal(self.run.read("files.json")))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.run.url}/files.json, which says what the other files should be, is damaged or gone ({error}): "
                f"remove {self.url} and {self.run.url}, and run again"
            ) from None

    # --- making damaged files again ----------------------------------------------------------------------------------

    def record_prepared(self, plan: Plan, files: Mapping[str, FileRecord]) -> None:
        """Write the protocol files of `prepare` for a store that has lost them."""
        self.write_plan(plan)
        self._write_files(files)
        self.mark_prepared()

    def request_restore(self, keys: Iterable[str]) -> None:
        """Ask for files that `prepare` made to be made again, beside those asked for before."""
        wanted = sorted({*keys, *self.files_to_restore()})
        if wanted:
            self.run.write("restore.json", seal({"files": wanted}))

    def files_to_restore(self) -> list[str]:
        """The files that are to be made again; UserError where their list is damaged."""
        try:
            data = self.run.read("restore.json")
            # Version 0.1.0 wrote the bare list.
            keys = parse(data) if data.startswith(b"[") else unseal(data)["files"]
            require(keys, list[str], "files")
            for key in keys:
                if key != ALL_FILES and not KEY.fullmatch(key):
                    raise ValueError(f"it names {key!r}, which is no file of a store")
            return list(keys)
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.run.url}/restore.json, which says what of {self.url} is to be made again, is damaged "
                f"({error}): remove it, and `dlshap verify --repair {shlex.quote(self.url)}` finds what is "
                "damaged again"
            ) from None

    def restore(self, staged: Path, files: Mapping[str, FileRecord]) -> None:
        """Copy the files that were asked for from a store made again, the group's own last."""
        asked = self.files_to_restore()
        if ALL_FILES in asked:
            made = [path.relative_to(staged).as_posix() for path in staged.rglob("*")]
            asked = [key for key in made if key != "zarr.json" or key in asked]
        keys = sorted((key for key in asked if (staged / key).is_file()), key=lambda key: key == "zarr.json")
        self._write_files({**self.prepared_files(), **{key: files[key] for key in keys if key in files}})
        for key in keys:
            self.store.write(key, (staged / key).read_bytes())
        self.run.delete("restore.json")

    def discard(self) -> None:
        """Remove everything of a run that never got a store, and the folders that were made for it."""
        self.run.guard()
        self.run.guard = unguarded  # the claim on a disk goes too
        self.run.clear(only=_OWN.fullmatch)

    def first_probe(self, probe: Mapping[str, Any]) -> dict[str, Any]:
        """The probe of the first worker on this kind of device; the given one where there is none yet."""
        key = f"probes/{hashlib.sha256(probe['device'].encode()).hexdigest()[:16]}.json"
        with self.run.lock(
            "probes/claim", lambda who: LOG.info(f"waiting for {who}, which compares its device's values")
        ):
            try:
                found = parse_object(self.run.read(key))
                require(found, Probe, f"{self.run.url}/{key}")
            except FileNotFoundError:
                found = dict(probe)
                self.run.write(key, json.dumps(found).encode())
        return found

    # --- shards -----------------------------------------------------------------------------------------------------

    def begin(self, shard: Shard) -> str:
        """Record that this process works on a shard; returns what `end` takes."""
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
        """Record that a shard is done; its files are durable already."""
        self.run.write(_record_key(record.shard), seal(asdict(record)))
        self.run.clear(f"attempts/{record.shard:08d}-")
        self.run.delete(_failure_key(record.shard))

    def revoke(self, index: int) -> None:
        """Forget that a shard was done."""
        self.run.delete(_record_key(index))

    def read_record(self, index: int) -> DoneRecord | None:
        """The done record of one shard; None where there is none."""
        try:
            return DoneRecord.from_json(self.run.read(_record_key(index)))
        except FileNotFoundError:
            return None

    def done_indices(self) -> list[int]:
        """Shards that have a done record, ascending."""
        found = (_RECORD.fullmatch(entry.key) for entry in self.run.files("done/"))
        return sorted(int(match[1]) for match in found if match)

    # --- what went wrong --------------------------------------------------------------------------------------------

    def fail(self, failure: Failure) -> None:
        """Record that a shard was given up."""
        self.run.write(_failure_key(failure.shard), json.dumps(asdict(failure)).encode())

    def failures(self) -> list[Failure]:
        """The shards that were given up, by their index."""
        keys = sorted(entry.key for entry in self.run.files("failures/"))
        return [self._failure(key) for key in keys if key.endswith(".json")]

    def _failure(self, key: str) -> Failure:
        try:
            return Failure.from_json(self.run.read(key))
        except (ValueError, TypeError):
            return Failure(-1, 0, 0, f"{self.run.url}/{key} says that a shard failed, and is damaged", "")

    def forget_failures(self, chosen: range) -> None:
        """These shards are tried again."""
        self.run.clear("devices/")
        for failure in self.failures():
            if failure.shard in chosen:
                self.run.delete(_failure_key(failure.shard))

    def note_broken(self, device: str, shard: Shard, error: str) -> int:
        """Record that a device broke in the midst of a shard; returns at how many shards it has by now."""
        key = f"devices/{hashlib.sha256(device.encode()).hexdigest()[:16]}.json"
        try:
            before = list(parse_object(self.run.read(key)).get("shards", []))
        except (FileNotFoundError, ValueError):
            before = []
        shards = list(dict.fromkeys([*before, shard.index]))
        self.run.write(key, json.dumps({"device": device, "shards": shards, "error": error}).encode())
        return len(shards)

    def broken_devices(self) -> list[str]:
        """What devices broke at, a line each."""
        lines = []
        for entry in self.run.files("devices/"):
            with suppress(FileNotFoundError, ValueError):
                lines.append(str(parse_object(self.run.read(entry.key)).get("error")))
        return sorted(lines)

    def log(self, shard: Shard, text: str) -> str:
        """Keep what went wrong in a shard, in full; returns where."""
        key = f"logs/shard-{shard.index:08d}.txt"
        self.run.write(key, text.encode())
        return f"{self.run.url}/{key}"

    # --- the end ----------------------------------------------------------------------------------------------------

    def begin_result(self) -> None:
        """Name this command as the last one, and drop the outcome of the one before."""
        self._write_result({"store": self.url, "state": UNDER_WAY, "complete": False})

    def write_result(self, result: Mapping[str, Any]) -> None:
        """The outcome of this command, for programs."""
        self._write_result({**result, "state": "ended"})

    def _write_result(self, result: Mapping[str, Any]) -> None:
        text = json.dumps({**result, "command": asdict(self.command)}, indent=1)
        self.run.write("result.json", (text + "\n").encode())

    def read_result(self) -> dict[str, Any] | None:
        """What the last command has written; None where there is nothing, or something damaged."""
        try:
            return parse_object(self.run.read("result.json"))
        except (FileNotFoundError, ValueError):
            return None

    def tidy(self) -> None:
        """Remove what says how to go on: the store is complete.

        Commands go last: each leaves a file when it is killed, so that where there is none nothing else is left.
        """
        if next(self.run.files("commands/"), None) is not None:
            for folder in ("attempts/", "failures/", "partial/", "probes/", "devices/", "commands/"):
                self.run.clear(folder, _OWN.fullmatch)


def _record_key(index: int) -> str:
    return f"done/{index:08d}.json"


def _failure_key(index: int) -> str:
    return f"failures/{index:08d}.json"
