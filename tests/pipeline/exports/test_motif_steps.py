"""`dlshap motifs` with stand-ins for its tools: which steps are taken, and what is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.cli.main import dispatch
from pipeline.exports import motifs
from pipeline.messages.errors import EXIT_STOPPED
from pipeline.store.reader import Store

MODISCO = """#!/usr/bin/env bash
set -e
echo "$@" >> {folder}/calls
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
case $out in *.h5) cp {folder}/prepared.h5 $out;; *) mkdir -p $out; echo page > $out/report.html;; esac
"""
FINEMO = """#!/usr/bin/env bash
echo "$@" >> {folder}/calls
[ -e {folder}/works ] || {{ echo "no room on the device"; exit 3; }}
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
mkdir -p $out; echo hits > $out/hits.tsv
"""


TURN = """
import sys
from pathlib import Path
from pipeline.cli.main import main
from pipeline.exports import motifs
motifs._tool = lambda name: Path('{tools}') / name
main(sys.argv[1:])
"""
MEME = """MEME version 4

ALPHABET= ACGT

MOTIF known
letter-probability matrix: alength= 4 w= 2
 0.7 0.1 0.1 0.1
 0.1 0.7 0.1 0.1
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-ins, where `calls` tells how they were called."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in (("modisco", MODISCO), ("finemo", FINEMO)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setattr(motifs, "_tool", lambda name: folder / name)
    prepare(folder / "prepared.h5", [(0, 2, 9, False), (3, 0, 8, True)])
    return folder


def prepare(path: Path, seqlets: list[tuple[int, int, int, bool]]) -> None:
    """A file of motifs as modisco writes it: one motif, of these rows of the export, starts, ends and strands."""
    with h5py.File(path, "w") as file:
        if seqlets:
            group = file.create_group("neg_patterns/pattern_0/seqlets")
            for name, values in zip(
                ("example_idx", "start", "end", "is_revcomp"), zip(*seqlets, strict=True), strict=True
            ):
                group[name] = np.array(values)
            group["contrib_scores"] = np.full((len(seqlets), 5, 4), -0.5)


def test_steps_are_taken_once_and_go_on(
    located: Store, tools: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["motifs", located.url, str(out), "--target", "7", "--window", "20"]
    assert dispatch(command) == 1
    told = capfd.readouterr().err
    assert "finemo call-hits ended with exit code 3; the last that it said is 'no room on the device'" in told
    record = json.loads((out / "motifs.json").read_text())
    names = ["export modisco", "modisco motifs", "seqlets", "modisco report", "export finemo"]
    assert [step["name"] for step in record["steps"]] == names
    assert record["steps"][1]["command"] == (
        f"modisco motifs -s {out}/modisco/ohe.npz -a {out}/modisco/attr.npz -w 20 -n 2000 -o {out}/motifs.h5"
    )
    rows = [line.split("\t") for line in (out / "modisco/rows.tsv").read_text().splitlines()[1:]]
    lines = [line.split("\t") for line in (out / "seqlets.bed").read_text().splitlines()[1:]]
    expected = []
    for example, start, end, strand in ((0, 2, 9, "+"), (3, 0, 8, "-")):
        _, row, name, chrom, left, *_ = rows[example]
        assert int(left) == located.rows["start"][int(row)] + 10
        at = [str(int(left) + start), str(int(left) + end)]
        expected.append([chrom, *at, "neg_patterns.pattern_0", "0", strand, name, row, "-10"])
    assert lines == sorted(expected)

    with np.load(out / "finemo/regions.npz") as regions:
        assert regions["contributions"].shape == (20, 4, 40), "the tool's own window, where sequences are as long"
    (tools / "works").touch()
    assert dispatch(command) == 0
    assert [call.split()[0] for call in (tools / "calls").read_text().splitlines()] == [
        *("motifs", "report"),
        *("call-hits", "call-hits"),
    ]
    assert str(out / "report/report.html") in capfd.readouterr().out
    assert dispatch(command) == 0, "there is nothing left to do"
    (out / "report/report.html").unlink()
    assert dispatch(command) == 0
    assert (out / "report/report.html").is_file()
    record = json.loads((out / "motifs.json").read_text())
    assert [step["name"] for step in record["steps"]] == [*names, "finemo call-hits"]
    assert dispatch([*command[:-1], "16"]) == 2
    assert "holds the motifs of other settings: window 20 there, 16 here" in capfd.readouterr().err
    assert dispatch([*command[:2], str(tmp_path), *command[3:]]) == 2
    assert "holds files, and no motifs.json" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("length", "dataset", "window"),
    [
        (2114, {"kind": "tiles", "stride": 1057}, 1058),
        (2114, {"kind": "tiles", "stride": 3000}, 2114),
        (2115, {"kind": "tiles", "stride": None}, 2114),
        (2114, {"kind": "loci", "stride": 1057}, None),
        (2114, {}, None),
    ],
)
def test_tiles_are_looked_at_whole(length: int, dataset: dict[str, Any], window: int | None) -> None:
    """Their centres are no more than the rest of them."""
    store = SimpleNamespace(attrs={"dataset": dataset}, codes=np.empty((1, length)))
    assert motifs.tiled(store) == window  # type: ignore[arg-type]


def test_no_motif_and_no_finemo_are_told(
    located: Store, tools: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tools / "finemo").unlink()
    command = ["motifs", located.url, str(tmp_path / "out"), "--target", "7"]
    assert dispatch(command) == 0
    assert "no hits: Fi-NeMo is not installed" in capfd.readouterr().out
    prepare(tools / "prepared.h5", [])
    assert dispatch([*command, "--overwrite"]) == 0
    assert "TF-MoDISco found no motif" in capfd.readouterr().out
    assert not (tmp_path / "out/report").exists()
    assert dispatch([*command, "--hits-window", "9"]) == 2
    assert "--hits-window 9: Fi-NeMo reads an even number" in capfd.readouterr().err
    (tools / "modisco").unlink()
    assert dispatch(command) == 2
    assert "pip install 'dlshap[motifs]'" in capfd.readouterr().err


def test_a_signal_ends_the_tool_and_what_it_started(located: Store, tools: Path, tmp_path: Path) -> None:
    child = tools / "child"
    (tools / "modisco").write_text(
        f"#!/usr/bin/env bash\nsleep 99 & echo $! > {child}.new; mv {child}.new {child}; wait\n"
    )

    def stop() -> None:
        while not child.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert dispatch(["motifs", located.url, str(tmp_path / "out"), "--target", "7"]) == EXIT_STOPPED
    deadline = time.monotonic() + 10
    while runs(int(child.read_text())):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.01)
    assert [step["name"] for step in json.loads((tmp_path / "out/motifs.json").read_text())["steps"]] == [
        "export modisco"
    ]


def runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_two_commands_on_one_folder_take_turns(located: Store, tools: Path, tmp_path: Path) -> None:
    """The second waits, and finds everything done."""
    (tools / "works").touch()
    body = MODISCO.format(folder=tools).removeprefix("#!/usr/bin/env bash\n")
    (tools / "modisco").write_text(f"#!/usr/bin/env bash\nuntil [ -e {tools}/go ]; do sleep 0.05; done\n{body}")
    command = [sys.executable, "-c", TURN.format(tools=tools), "motifs", located.url, str(tmp_path / "out")]
    told = [tmp_path / "first", tmp_path / "second"]
    with told[0].open("w") as first, told[1].open("w") as second:
        running = [subprocess.Popen([*command, "--target", "7"], stderr=file) for file in (first, second)]
    deadline = time.monotonic() + 300
    while not any(f"at work in {tmp_path}/out" in path.read_text() for path in told):
        assert time.monotonic() < deadline, "none waits"
        time.sleep(0.05)
    (tools / "go").touch()
    assert [process.wait() for process in running] == [0, 0]
    assert [call.split()[0] for call in (tools / "calls").read_text().splitlines()] == ["motifs", "report", "call-hits"]


def test_known_motifs_count_by_their_content(
    located: Store, tools: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tools / "works").touch()
    for name, text in (
        ("a", MEME),
        ("b", MEME),
        ("c", MEME.replace("0.7", "0.1").replace("0.1 0.1 0.1 0.1", "1 0 0 0")),
    ):
        (tmp_path / name).write_text(text)
    command = ["motifs", located.url, str(tmp_path / "out"), "--target", "7", "--meme"]
    for name, code in (("a", 0), ("b", 0), ("c", 2)):
        assert dispatch([*command, str(tmp_path / name)]) == code
    assert "holds the motifs of other settings: meme of sha256 " in capfd.readouterr().err
    assert (tools / "calls").read_text().splitlines()[1].startswith("report")
    assert len((tools / "calls").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "out/motifs.json").read_text())["meme"] == str(tmp_path / "b")


def test_whoever_waits_is_told_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(motifs, "TOLD_EVERY_S", 0.1)
    caplog.set_level("INFO", "dlshap")
    log = tmp_path / "said.txt"
    assert motifs._exit_code(["bash", "-c", "echo here; sleep 0.5; exit 4"], log) == 4
    assert log.read_text() == "here\n"
    assert caplog.messages[0] == f"bash: at work for 0 min; what it says is in {log}"


@pytest.mark.parametrize("name", ["motifs.json", "logs/modisco_motifs.txt", "motifs.h5", "report/report.html", "hits"])
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_a_folder_with_planted_links(
    located: Store, tools: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    (out / name).parent.mkdir(parents=True)
    (out / "motifs.json").write_text("{}")
    (out / name).unlink(missing_ok=True)
    victim.write_text("{}")
    {"link": os.symlink, "hard link": os.link, "pipe": lambda _, path: os.mkfifo(path)}[kind](victim, out / name)
    assert dispatch(["motifs", located.url, str(out), "--target", "7", "--window", "20", "--overwrite"]) == 2
    assert f"{out / name} is a link, a pipe, or a file with another name too" in capfd.readouterr().err
    assert victim.read_text() == "{}"
    assert not (tools / "calls").exists()
