"""Limits: which hold where, and what is measured."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.config import limits, memory
from pipeline.config.compose import compose_config
from pipeline.config.schema import LimitsConfig
from pipeline.config.settings import value_settings
from pipeline.inputs.base import RowBatch
from pipeline.inputs.read_timeout import TimedSource
from pipeline.messages.errors import UserError

MB = 10**6


def test_limits_hold_within_and_on_the_thread_that_reads() -> None:
    found: list[int] = []

    class Source:
        def __init__(self) -> None:
            self.description: dict[str, object] = {}
            found.append(limits.current().record_mb)

        def batches(self) -> list[RowBatch]:
            found.append(limits.current().record_mb)
            assert threading.current_thread().name == "input"
            return []

    with limits.using(LimitsConfig(record_mb=3)):
        list(TimedSource(Source, 5, "x").batches())  # type: ignore[arg-type]
    assert found == [3, 3]
    assert limits.current() == LimitsConfig()


def test_limits_reach_no_value() -> None:
    config = compose_config(["limits.record_mb=5", "limits.held_ratio=9"])
    assert (config.limits.record_mb, config.limits.held_ratio) == (5, 9)
    assert not [key for key in value_settings(config) if key.startswith("limits.")]
    with pytest.raises(UserError, match=r"limits\.record_mb=0; expected a whole number of at least 1"):
        compose_config(["limits.record_mb=0"])


def test_what_is_held() -> None:
    with limits.using(LimitsConfig(held_mb=1, held_ratio=4)):
        limits.require_held(MB, 1, "x")
        limits.require_held(4 * MB, MB, "x")
        with pytest.raises(UserError, match=r"^x takes 4 MB of memory once it is read, and 1 MB on disk, more than"):
            limits.require_held(4 * MB + 1, MB, "x")


def test_a_large_file_is_held_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 20 * 10**9)
    limits.require_held(10 * 10**9, 10 * 10**9, "x")
    monkeypatch.setattr(memory, "free", lambda: 9 * 10**9)
    with pytest.raises(UserError, match=r"^x takes 10 GB of memory once it is read, and 9 GB are free; use a machine"):
        limits.require_held(10 * 10**9, 10 * 10**9, "x")


def test_what_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(MB))
    with limits.using(LimitsConfig(streamed_mb=2, streamed_ratio=3)):
        streamed = limits.Streamed(tmp_path / "x")
        for _ in range(3):
            streamed.add(MB)
        with pytest.raises(
            UserError, match=r"x unpacks to 3 MB or more, and has 1 MB on disk, more than the limit of 2"
        ):
            streamed.add(1)


def test_holes_are_not_on_disk(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write(bytes(4096))
        file.truncate(10**10)
    (tmp_path / "y").write_bytes(bytes(17 * MB))
    assert limits.bytes_on_disk(tmp_path / "x") < MB
    assert limits.bytes_on_disk(tmp_path / "y") == 17 * MB


def test_memory_of_groups_around_the_own_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "job" / "step"
    own.mkdir(parents=True)
    files = {
        own / "memory.max": "max",
        own / "memory.current": "1000",
        own.parent / "memory.max": "5000",
        own.parent / "memory.current": "4000",
        own.parent / "memory.stat": "anon 1\ninactive_file 300\n",
        tmp_path / "memory.limit_in_bytes": "9223372036854771712",
        tmp_path / "memory.usage_in_bytes": "7",
    }
    for path, text in files.items():
        path.write_text(text)
    monkeypatch.setattr(memory, "groups", lambda: iter([own, own.parent, tmp_path]))
    assert (memory.total(), memory.free()) == (5000, 1300)


def test_memory_of_this_machine() -> None:
    assert 0 < memory.free() <= memory.total()
