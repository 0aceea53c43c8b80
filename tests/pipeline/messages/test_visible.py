"""What acts on a terminal, a page or a table is seen and does not act, wherever it comes from."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import unicodedata

import pytest

from pipeline.cli.main import dispatch
from pipeline.messages.progress import LOG, RowProgress, shown_on_stderr
from pipeline.messages.visible import (
    LONGEST_LINE,
    VisibleStream,
    brief,
    in_lines,
    is_visible,
    line,
    shown,
    to_json,
    visible,
    visible_streams,
)

LINK = "\x1b]8;;http://localhost\x1b\\click\x1b]8;;\x1b\\"  # OSC 8
ATTACKS = {
    "\x1b[2J": r"\x1b[2J",
    LINK: r"\x1b]8;;http://localhost\x1b\click\x1b]8;;\x1b" + "\\",
    "\x9b31m": r"\x9b31m",  # CSI in one character
    "\x90q\x9c": r"\x90q\x9c",  # DCS and its end
    "a\rb": r"a\rb",
    "a\x08b": r"a\x08b",
    "a\x7fb": r"a\x7fb",
    "a\nb\tc": r"a\nb\tc",
    "a\x85\u2028\u2029b": r"a\x85\u2028\u2029b",
    "\u202egnp.exe\u2066\u061c\u200e": r"\u202egnp.exe\u2066\u061c\u200e",
    "a\u200bb\ufeff\u2060": r"a\u200bb\ufeff\u2060",
    "\U000e0041\U000e007f": r"\U000e0041\U000e007f",
    "\u3164\ufe0f\u115f": r"\u3164\ufe0f\u115f",
    os.fsdecode(b"a\x9b\xff"): r"a\udc9b\udcff",
    "[red]a[/red][link=http://localhost]b[/link]": "[red]a[/red][link=http://localhost]b[/link]",
    "%s %(name)s {0}": "%s %(name)s {0}",
}
HONEST = ["chr1:100-200(-)", "Zürich", "配列_1", "пик", "a b", "\xa0\u202f\u3000", "peak|1;x=2", "e\u0301"]


@pytest.mark.parametrize("text", ATTACKS)
def test_what_acts_is_an_escape(text: str) -> None:
    assert visible(text) == ATTACKS[text]
    assert is_visible(text) == (text == ATTACKS[text])
    assert is_visible(visible(text))


@pytest.mark.parametrize("text", HONEST)
def test_honest_names_stay_as_they_are(text: str) -> None:
    assert visible(text) == text
    assert is_visible(text)


def test_every_character_that_controls_or_formats_is_an_escape() -> None:
    acting = ("Cc", "Cf", "Cs", "Zl", "Zp")
    left = [hex(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)) in acting and is_visible(chr(i))]
    assert left == []


def test_long_texts_keep_their_beginning_and_end() -> None:
    long = "A" * 100_000
    assert line(f"x{long}; do this").startswith("xAAA")
    assert line(f"x{long}; do this").endswith("AAA; do this")
    assert len(line(long)) < LONGEST_LINE + 100
    assert brief(long) == f"{'A' * 200}... (100,000 characters)"
    assert shown(long) == f"'{'A' * 80}'..."


def test_each_line_is_one_line() -> None:
    assert in_lines(["a\nforged: all is well", "b\rc"]) == "a\\nforged: all is well\nb\\rc"


def test_json_is_json_and_ascii() -> None:
    value = {"\x1b\x7f\x9b": ["\u202e\udc80\x00\x7f", "é\n"]}
    text = to_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert text.isprintable()


def test_streams_of_a_command_show_what_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with visible_streams():
        sys.stdout.write("a\x1b[31m\tb\nc \u202e\n")
        sys.stderr.writelines(["\x1bx\n", "y\n"])
    assert capsys.readouterr() == ("a\\x1b[31m\tb\nc \\u202e\n", "\\x1bx\ny\n")


def test_a_stream_that_cannot_hold_a_character_shows_its_escape() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    VisibleStream(stream).write("é\udc80\x1b\n")
    assert stream.buffer.getvalue() == b"\\xe9\\udc80\\x1b\n"  # type: ignore[attr-defined]


def test_messages_are_one_line_for_every_handler(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with shown_on_stderr():
        LOG.warning("held by %s", "x\x1b[2J\ndlshap: all is well")
        LOG.info("100% [red]of[/red] %s {0}")
    assert capsys.readouterr().err == (
        "dlshap: warning: held by x\\x1b[2J\\ndlshap: all is well\ndlshap: 100% [red]of[/red] %s {0}\n"
    )
    LOG.warning("for\x1b another")
    assert caplog.messages[-1] == r"for\x1b another"


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "/nowhere/\x1b[2Ja\nb"],
        ["sta\x1btus"],
        ["status", "--\x1bx", "a"],
        ["verify", os.fsdecode(b"/nowhere/\xff\x9b")],
        ["run", "engine.thr\x1beads=1"],
        ["run", "dataset=\u202etable"],
        ["run", "dataset.path={\x1b"],
        ["plan", "dataset=fasta", "dataset.path=/nowhere/\x1b]8;;x\x07"],
        ["export", "tsv", "/nowhere/a", "/nowhere/\x1b", "--max-rows", "\x1b"],
        ["report", "/nowhere/a", "-o", "\x1b.txt"],
        ["logo", "/nowhere/\x9b31m", "x"],
        ["run", "--config-dir", "/nowhere/\x1b"],
        ["run", "--config-from", "/nowhere/\x1b"],
        ["status", "s4://a\x1b"],
        ["status", "s3://\x1b"],
    ],
)
def test_errors_of_commands_are_one_visible_line(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert dispatch(arguments) in (1, 2)
    told = capfd.readouterr()
    (error,) = told.err.splitlines()
    assert error.startswith("dlshap: error: ")
    assert is_visible(error)
    assert told.out == ""
    assert dispatch([*arguments, "--json"]) in (1, 2)
    answer = capfd.readouterr().out
    if answer:  # commands that know --json, and those that do not get as far
        assert answer.isascii()
        assert set(json.loads(answer)) == {"error", "exit_code"}


IN_A_TERMINAL = """
import logging, sys, warnings
from pipeline.messages.progress import LOG, RowProgress, shown_on_stderr
from pipeline.messages.visible import visible_streams
with visible_streams(), shown_on_stderr(), RowProgress("reading", 3) as progress:
    progress.advance(1)
    LOG.info("a \\x1b]0;owned\\x07 [bold]b[/bold]")
    warnings.warn("w \\x1b]0;owned\\x07 \\x9b31m")
    logging.getLogger("a.library").warning("l \\x1b]0;owned\\x07")
    print("p \\x1b]8;;http://localhost\\x1b\\\\ z", file=sys.stderr)
"""


def test_a_bar_moves_the_cursor_and_names_do_not() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", IN_A_TERMINAL], stderr=theirs, env={**os.environ, "TERM": "xterm"}):
        os.close(theirs)
        told = b""
        while part := _read(ours):
            told += part
    os.close(ours)
    text = told.decode()
    assert "\x1b[" in text  # the bar's own
    assert r"a \x1b]0;owned\x07 [bold]b[/bold]" in text
    assert r"w \x1b]0;owned\x07 \x9b31m" in text
    assert r"l \x1b]0;owned\x07" in text
    assert r"p \x1b]8;;http://localhost\x1b\ z" in text
    assert "\x1b]" not in text
    assert "\x9b" not in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # the other end is closed
        return b""


def test_progress_outside_of_a_command_leaves_the_streams_alone() -> None:
    before = sys.stdout, sys.stderr
    with RowProgress("reading", 3) as progress:
        progress.advance(3)
        assert (sys.stdout, sys.stderr) == before
