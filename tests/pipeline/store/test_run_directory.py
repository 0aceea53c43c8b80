"""The commit protocol: what a record promises, who may prepare, and what a crash leaves."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.messages.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.store.backends.object_store import ObjectStoreBackend
from pipeline.store.checksums import seal, unseal
from pipeline.store.done_shards import check_shards, is_done
from pipeline.store.records import DoneRecord, Failure, FileRecord
from pipeline.store.run_directory import ALL_FILES, RunDirectory
from pipeline.store.schema import LAYOUT, ROOT, shard_key
from pipeline.store.status import read_status
from tests.pipeline.object_store import Bucket

PLAN = Plan(10, 5, [0], {"name": "shuffle"}, 3, 0, 32, 4, "float32", 1, True, "cpu", "any", True, 1e-3, {"a": 1})
DELTAS = {"n": 3, "n_over": 1, "n_not_finite": 0, "largest": 0.5, "worst_row": 2, "counts": {"7": 3}}
HOLD = """
import sys
from pipeline.store.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).claim(print):
    print("held", flush=True)
    sys.stdin.read()
"""


def commit(directory: RunDirectory, index: int) -> DoneRecord:
    shard, files = PLAN.shard(index), {}
    for name in LAYOUT:
        data = f"{name} {index}".encode()
        directory.store.write(shard_key(name, index), data)
        files[name] = FileRecord.of(data)
    record = DoneRecord(index, shard.start, shard.stop, files, 0.5, DELTAS, "host:1")
    directory.commit(record)
    return record


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "a.zarr")
    with directory.claim(pytest.fail), directory.staging() as staged:
        staged.mkdir()
        directory.publish(staged, PLAN, {"name/c.0": FileRecord(1, 2)})
    return directory


def test_records_come_back_as_they_were_committed(directory: RunDirectory) -> None:
    records = [commit(directory, index) for index in (1, 2)]
    assert directory.done_indices() == [1, 2]
    assert [directory.read_record(index) for index in range(3)] == [None, *records]
    checked = check_shards(directory, PLAN)
    assert checked.is_done.tolist() == [False, True, True]
    assert (checked.n_done, checked.complete, checked.seconds) == (2, False, 1.0)
    assert checked.crc32[1].tolist() == [file.crc32 for file in records[0].files.values()]
    assert checked.deltas is not None
    assert checked.deltas["n"] == 6
    commit(directory, 0)
    assert check_shards(directory, PLAN).complete


@pytest.mark.parametrize("change", [{"stop": 0}, {"start": 9}, {"seconds": -1.0}, {"seconds": math.nan}])
def test_a_record_of_what_cannot_be_is_damaged(directory: RunDirectory, change: dict[str, float]) -> None:
    """`status` divides by its rows."""
    commit(directory, 0)
    key = "done/00000000.json"
    directory.run.write(key, seal(unseal(directory.run.read(key)) | change))
    with pytest.raises(ValueError, match=r"it has no rows, or took no time that can be|expected"):
        directory.read_record(0)
    assert read_status(directory).shards_done == 1


def test_a_record_is_worth_what_its_files_are(directory: RunDirectory, tmp_path: Path) -> None:
    for index in range(3):
        commit(directory, index)
    store = tmp_path / "a.zarr"
    (store / shard_key("hypothetical", 0)).write_bytes(b"")
    (store / shard_key("codes", 1)).unlink()
    assert check_shards(directory, PLAN).is_done.tolist() == [False, False, True]
    assert [is_done(directory, PLAN, PLAN.shard(index)) for index in range(3)] == [False, False, True]
    record = directory.read_record(2)
    assert record is not None
    directory.commit(DoneRecord(**{**vars(record), "stop": 9}))
    assert not check_shards(directory, PLAN).is_done.any(), "a record of other rows is not this shard's"
    directory.commit(record)
    directory.revoke(2)
    assert directory.done_indices() == [0, 1]


def test_strange_files_among_the_records_are_no_records(directory: RunDirectory, tmp_path: Path) -> None:
    for name in (".DS_Store", "00000001.json.tmp", "99999999.json", "note.json"):
        (tmp_path / "a.zarr.run" / "done").mkdir(exist_ok=True)
        (tmp_path / "a.zarr.run" / "done" / name).write_text("?")
    assert not check_shards(directory, PLAN).is_done.any()


def test_attempts_stay_when_their_process_does_not_end_them(directory: RunDirectory) -> None:
    shard = PLAN.shard(1)
    attempts = [directory.begin(shard) for _ in range(3)]
    directory.begin(PLAN.shard(2))
    directory.end(attempts[0])
    assert directory.n_attempts(shard) == 2
    commit(directory, 1)
    assert directory.n_attempts(shard) == 0, "a shard that is done clears its name"
    assert directory.n_attempts(PLAN.shard(2)) == 1


def test_failures_are_kept_until_forgotten_or_mended(directory: RunDirectory) -> None:
    failures = [Failure(index, 0, 4, f"shard {index} failed", "") for index in (0, 2)]
    for failure in failures:
        directory.fail(failure)
    assert directory.failures() == failures
    commit(directory, 2)
    assert directory.failures() == failures[:1]
    directory.forget_failures(range(1, 3))
    assert directory.failures() == failures[:1], "those of other parts of a job array stay"
    directory.forget_failures(range(3))
    assert directory.failures() == []


def test_a_complete_store_keeps_what_was_done_and_not_how_to_go_on(directory: RunDirectory, tmp_path: Path) -> None:
    commit(directory, 0)
    directory.begin(PLAN.shard(1))
    directory.fail(Failure(2, 0, 4, "shard 2 failed", ""))
    directory.first_probe({"device": "cuda"})
    with directory.at_work():
        directory.tidy()
    left = {path.name for path in (tmp_path / "a.zarr.run").iterdir()}
    assert left.isdisjoint({"attempts", "failures", "partial", "probes", "commands"})
    assert {"done", "plan.json", "prepared"} <= left


def test_the_plan_comes_back(directory: RunDirectory, tmp_path: Path) -> None:
    assert directory.prepared
    assert directory.read_plan() == PLAN
    assert directory.prepared_files() == {"name/c.0": FileRecord(1, 2)}
    (tmp_path / "a.zarr.run" / "plan.json").write_text("{")
    with pytest.raises(UserError, match="plan of this run cannot be read"):
        directory.read_plan()


def test_files_asked_for_are_made_again_once(directory: RunDirectory, tmp_path: Path) -> None:
    directory.request_restore([])
    assert directory.files_to_restore() == []
    directory.request_restore(["zarr.json", "name/c.0"])
    directory.request_restore(["base/c.0", "name/c.0"])
    assert directory.files_to_restore() == ["base/c.0", "name/c.0", "zarr.json"]
    staged = tmp_path / "staged"
    for key in directory.files_to_restore():
        (staged / key).parent.mkdir(parents=True, exist_ok=True)
        (staged / key).write_text(key)
    directory.restore(staged, {"name/c.0": FileRecord(8, 9), "base/c.0": FileRecord(5, 6)})
    assert directory.files_to_restore() == []
    assert directory.store.read("base/c.0") == b"base/c.0"
    assert directory.prepared_files() == {"name/c.0": FileRecord(8, 9), "base/c.0": FileRecord(5, 6)}


def test_everything_and_the_group_s_own_file_may_be_asked_for(directory: RunDirectory, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    staged.mkdir()
    for key in (ROOT, "base"):
        (staged / key).write_text("made anew")
    directory.store.write(ROOT, b"as it was")
    directory.request_restore([ALL_FILES])
    directory.restore(staged, {})
    assert directory.store.read(ROOT) == b"as it was"
    directory.request_restore([ALL_FILES, ROOT])
    directory.restore(staged, {})
    assert directory.store.read(ROOT) == directory.store.read("base") == b"made anew"


def test_a_record_of_the_prepared_files_that_is_gone_is_named(directory: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "a.zarr.run" / "files.json").unlink()
    with pytest.raises(UserError, match=r"a.zarr.run/files.json, which says .* is damaged or gone"):
        directory.prepared_files()


def test_one_process_at_a_time_holds_the_claim(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    heard: list[str] = []

    def waiting(who: str) -> None:
        heard.append(who)
        holder.kill()  # a process that dies gives the claim back

    with RunDirectory(store).claim(waiting):
        assert heard == [f"process {holder.pid} on {heard[0].rpartition(' ')[2]}"]
    holder.stdin.close()
    holder.stdout.close()
    holder.wait()


def test_what_is_discarded_takes_the_folders_made_for_it_along(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "new" / "deeper" / "a.zarr")
    with directory.claim(pytest.fail):
        directory.discard()
    assert list(tmp_path.iterdir()) == []


FREEZES = ["plan.json", "files.json", "a/c.0", "zarr.json", "prepared"]


@pytest.mark.parametrize("at", FREEZES)
def test_whoever_is_frozen_while_publishing_changes_nothing_once_it_has_lost_the_claim(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Another run has been made in its place meanwhile."""
    monkeypatch.setattr("pipeline.store.backends.lease.Lease._renew_until", lambda lease, released: None)
    url, ahead = f"{bucket.url}/a.zarr", [0.0]
    monkeypatch.setattr("pipeline.store.backends.lease.now", lambda: time.monotonic() + ahead[0])
    frozen, other = (RunDirectory(url, bucket.options) for _ in range(2))
    for directory in (frozen, other):
        directory.run._lease_s = 2.0  # type: ignore[union-attr]
    write, left = ObjectStoreBackend.write, []

    def publish(directory: RunDirectory, name: str) -> None:
        staged = tmp_path / name
        for key in ("a/c.0", "zarr.json"):
            (staged / key).parent.mkdir(parents=True, exist_ok=True)
            (staged / key).write_text(f"{name} {key}")
        with directory.claim(lambda who: threading.Timer(0.5, lambda: ahead.__setitem__(0, 60.0)).start()):
            directory.publish(staged, Plan(**{**vars(PLAN), "seed": len(name)}), {})

    def freeze(backend: ObjectStoreBackend, key: str, data: bytes) -> None:
        if key == at and not left:
            left.append(key)
            publish(other, "other")
            left.extend(entries())
        write(backend, key, data)

    def entries() -> list[tuple[str, bytes]]:
        return [
            (f"{backend.url}/{e.key}", backend.read(e.key))
            for backend in (other.store, other.run)
            for e in backend.files()
        ]

    monkeypatch.setattr(ObjectStoreBackend, "write", freeze)
    with pytest.raises(OSError, match="took this lock over"):
        publish(frozen, "frozen")
    assert entries() == left[1:], "as the other one has made it"
    plan = other.read_plan()
    assert plan is not None
    assert (plan.seed, other.prepared) == (len("other"), True)


def test_memory_for_a_shard_is_some_hundred_bytes(directory: RunDirectory) -> None:
    plan = Plan(**{**vars(PLAN), "n_rows": 4_000_000})
    checked = check_shards(directory, plan)
    assert checked.is_done.nbytes + checked.n_bytes.nbytes + checked.crc32.nbytes <= 100 * plan.n_shards
    assert not np.any(checked.is_done)
