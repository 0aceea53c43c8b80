"""Inputs that stop giving anything."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.inputs.base import Row, RowBatch, batched
from pipeline.inputs.open import open_source
from pipeline.inputs.read_timeout import TimedSource
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import chosen


class Slow:
    """Gives some batches, then sleeps or fails."""

    def __init__(self, n: int, end: Exception | float | None = None) -> None:
        self.description: dict[str, Any] = {"kind": "slow"}
        self.n, self.end, self.given = n, end, 0

    def batches(self) -> Iterator[RowBatch]:
        for i in range(self.n):
            self.given += 1
            yield from batched(iter([Row(i, None, "none", f"r{i}")]))
        if isinstance(self.end, Exception):
            raise self.end
        if self.end is not None:
            time.sleep(self.end)


def patient(source: Slow, timeout_s: float = 5) -> TimedSource:
    return TimedSource(lambda: source, timeout_s, "dataset.path=x")


def test_rows_come_in_order_and_any_number_of_times() -> None:
    source = patient(Slow(5))
    assert source.description == {"kind": "slow"}
    for _ in range(2):
        assert [rows.name for rows in source.batches()] == [[f"r{i}"] for i in range(5)]


@pytest.mark.parametrize(
    ("error", "message"),
    [(OSError(5, "Input/output error"), "Input/output error"), (MemoryError(), "it does not fit in the memory")],
)
def test_a_disk_that_fails_is_named_by_its_setting(error: Exception, message: str) -> None:
    with pytest.raises(UserError, match=f"^dataset.path=x cannot be read: {message}$"):
        list(patient(Slow(1, error)).batches())


def test_errors_arrive_where_they_are_waited_for() -> None:
    rows = patient(Slow(1, UserError("line 3 is bad"))).batches()
    assert len(next(rows)) == 1
    with pytest.raises(UserError, match="line 3 is bad"):
        next(rows)


def test_an_input_that_stops_is_given_up() -> None:
    rows = patient(Slow(1, 60.0), 0.2).batches()
    next(rows)
    with pytest.raises(UserError, match=r"dataset\.path=x gave nothing for 0\.2 s \(dataset\.timeout_s\)"):
        next(rows)


def test_reading_ends_when_nobody_wants_more() -> None:
    before, source = set(threading.enumerate()), Slow(1000)
    rows = patient(source).batches()
    next(rows)
    del rows
    deadline = time.monotonic() + 10
    while any(thread.name == "input" for thread in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert source.given < 10


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.fa"
    os.mkfifo(pipe)
    for form, key in (("fasta", "path"), ("table", "path"), ("array", "path"), ("loci", "loci")):
        more = {"genome": "x", "length": 4} if form == "loci" else {}
        with pytest.raises(UserError, match=rf"dataset\.{key}=.*pipe\.fa is a pipe, .* write a file first, `COMMAND >"):
            open_source(chosen("dataset", form, **{key: str(pipe), **more}))
