"""The commit protocol: what a record promises, who may prepare, and what a crash leaves."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from pipeline.commits import DoneRecord, FileRecord, RunDirectory, checksum, write_atomically
from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.shards import Shard, plan_shards

SHARDS = plan_shards(10, 4)
PLAN = Plan(10, 5, [0], {"name": "shuffle"}, 3, 0, 32, 4, "float32", 1, True, "cpu", "any", True, 1e-3, {"a": 1})
HOLD = """
import sys, pathlib
from pipeline.commits import RunDirectory
with RunDirectory(pathlib.Path(sys.argv[1])).claim(print):
    print("held", flush=True)
    sys.stdin.read()
"""


def commit(directory: RunDirectory, shard: Shard) -> DoneRecord:
    path = directory.store_path / f"x{shard.index}"
    path.write_bytes(bytes([shard.index]) * 9)
    files = {"x": checksum(directory.store_path, Path(path.name))}
    record = DoneRecord(shard.index, shard.start, shard.stop, files, 0.5, {"n": 1}, "host:1")
    directory.commit(record)
    return record


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "a.zarr")
    with directory.claim(pytest.fail):
        directory.staged.mkdir()
        directory.publish(PLAN)
    return directory


def test_records_come_back_as_they_were_committed(directory: RunDirectory) -> None:
    records = {shard.index: commit(directory, shard) for shard in SHARDS[1:]}
    assert directory.done(SHARDS) == records
    assert directory.done_indices() == {1, 2}
    assert records[1].files["x"] == FileRecord("x1", 9, zlib.crc32(bytes([1]) * 9))


def test_a_record_is_worth_what_its_files_are(directory: RunDirectory) -> None:
    for shard in SHARDS:
        commit(directory, shard)
    (directory.store_path / "x0").write_bytes(b"short")
    (directory.store_path / "x1").unlink()
    assert set(directory.done(SHARDS)) == {2}
    assert set(directory.done([Shard(2, 8, 9)])) == set(), "a record of other rows is not this shard's"


def test_the_plan_comes_back(directory: RunDirectory) -> None:
    assert directory.prepared
    assert directory.read_plan() == PLAN
    (directory.path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="plan of this run cannot be read"):
        directory.read_plan()


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


def test_files_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "x", "old")

    def full(path: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("pipeline.commits.sync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directory = RunDirectory(tmp_path / "file" / "a.zarr")
    with pytest.raises(UserError, match=r"cannot write to .*a\.zarr\.run: .*check store\.path"), directory.claim(print):
        pytest.fail("claimed")
