"""Progress without a terminal: plain lines, now and then."""

from __future__ import annotations

import pytest

from pipeline.progress import RowProgress, duration


def test_lines_say_how_fast_and_how_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: clock[0])
    with RowProgress("attributing", 100, 20) as progress:
        clock[0] += 10
        progress.advance(10)
        clock[0] += 30
        progress.advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "dlshap: attributing: 100 rows, 20 of them done before",
        "dlshap: attributing: 40 of 100 rows, 0.5 rows/s, 2 min 00 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (200, "3 min 20 s"), (18_120, "5 h 02 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
