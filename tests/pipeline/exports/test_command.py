"""`dlshap export`: what each kind writes, and one line for what cannot be."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from pipeline.cli.main import dispatch
from pipeline.exports.registry import exports
from pipeline.store.reader import Store
from pipeline.store.schema import shard_key
from tests.pipeline.exports.stores import make_store, random_codes

FILES = {
    "modisco": ["out/attr.npz", "out/ohe.npz", "out/rows.bed", "out/rows.tsv"],
    "finemo": ["out/regions.narrowPeak", "out/regions.npz"],
    "chrombpnet": ["out.counts_scores.h5", "out.interpreted_regions.bed"],
    "bigwig": ["out"],
    "hub": [
        f"out/{name}"
        for name in ("genomes.txt", "hub.txt", "igv_session.xml", "igv_web.json", "target_7.bw", "trackDb.txt")
    ],
    "seqlets": ["out"],
    "parquet": ["out"],
    "tsv": ["out"],
}


def of_every_kind() -> list[ParameterSet]:
    """tangermeme is compiled anew in each process, which takes half a minute."""
    slow = [pytest.mark.slow]
    return [pytest.param(kind, marks=slow if kind == "seqlets" else []) for kind in FILES]


def test_every_kind_is_tried() -> None:
    assert {*FILES, "variant-scores"} == set(exports())  # which is of variants alone: test_variants.py


@pytest.mark.parametrize("kind", of_every_kind())
def test_every_kind_writes_its_files(
    located: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    command = ["export", kind, located.url, str(tmp_path / "out"), "--target", "7", "--json"]
    assert dispatch(command) == 0
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == FILES[kind]
    told = json.loads(capfd.readouterr().out)
    assert sorted(told["files"]) == [str(tmp_path / name) for name in FILES[kind]]
    assert told["rows"] == len(located)
    assert dispatch(command) == 2  # not replaced unasked
    assert "exists; give --overwrite" in capfd.readouterr().err
    assert dispatch([*command, "--overwrite"]) == 0


@pytest.mark.parametrize("kind", exports())
def test_help_says_what_coordinates_are(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        dispatch(["export", kind, "--help"])
    assert "0-based, the end excluded" in " ".join(capsys.readouterr().out.split())


def test_rows_are_filtered(located: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names").write_text("peak 3\tanything\n\npeak 9\n")
    out = tmp_path / "a.tsv"
    arguments = ["--names", str(tmp_path / "names"), "--name", "peak 1", "--region", "chr10"]
    assert dispatch(["export", "tsv", located.url, str(out), *arguments]) == 0
    assert [line.split("\t")[2] for line in out.read_text().splitlines()[1:]] == ["peak 3", "peak 9"]
    assert capfd.readouterr().out == f"2 rows in {out}\n"
    assert "prediction_0\t" in out.read_text()
    assert "prediction_7\t" in out.read_text()  # every target unless one is named


def test_windows_are_as_wide_as_the_tools_unless_sequences_are_shorter(
    located: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["export", "modisco", located.url, str(tmp_path / "a"), "--target", "0"]) == 0
    assert f"modisco motifs -s {tmp_path}/a/ohe.npz -a {tmp_path}/a/attr.npz -w 40 " in capfd.readouterr().out
    with np.load(tmp_path / "a" / "ohe.npz") as found:
        assert found["arr_0"].shape == (20, 4, 40)


@pytest.mark.parametrize("option", ["--names", "--chrom-sizes"])
def test_lists_that_are_not_text(
    located: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str
) -> None:
    kind = "bigwig" if option == "--chrom-sizes" else "tsv"
    first = b"\xef\xbb\xbfchr2\t9999\r\n"  # a byte order mark and other line ends are no fault
    not_utf8, utf16 = f"{option} .*/list, line 2: it is not UTF-8 text", "list is UTF-16 text"
    for content, message in [(first + b"\xffb\n", not_utf8), (b"\xff\xfea\0", utf16)]:
        (tmp_path / "list").write_bytes(content)
        arguments = [
            "export",
            kind,
            located.url,
            str(tmp_path / "out"),
            "--target",
            "0",
            option,
            str(tmp_path / "list"),
        ]
        assert dispatch(arguments) == 2
        assert re.search(message, capfd.readouterr().err)
        assert not (tmp_path / "out").exists()


def test_an_incomplete_store_is_refused_or_said_to_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    part = make_store(tmp_path / "part.zarr", random_codes(14, 12), done=[0, 2])
    command = ["export", "tsv", part.url, str(tmp_path / "a.tsv")]
    assert dispatch(command) == 2
    assert "is not complete: 2 of 3 shards are done" in capfd.readouterr().err
    assert not (tmp_path / "a.tsv").exists()
    assert dispatch([*command, "--allow-incomplete"]) == 0
    told = "is not complete: 8 of 14 rows are finished, and only these can be exported"
    assert told in capfd.readouterr().err
    assert dispatch([*command, "--allow-incomplete"]) == 2  # the file is there now
    assert told not in capfd.readouterr().err
    rows = [line.split("\t")[0] for line in (tmp_path / "a.tsv").read_text().splitlines()[1:]]
    assert rows == ["0", "1", "2", "3", "4", "5", "12", "13"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tsv", "STORE", "s3://bucket/a"], "s3://bucket/a is written to a disk; give a path"),
        (["tsv", "missing.zarr", "OUT"], "does not exist"),
        (["tsv", "STORE", "OUT", "--names", "missing"], "--names missing: no such file"),
        (["tsv", "STORE", "OUT", "--names", "/dev/null"], "no such file"),
        (["tsv", "STORE", "OUT", "--name", "peak"], "1 of 1 names are not in the store: 'peak'"),
        (["tsv", "STORE", "OUT", "--top", "3"], "has 2 targets; choose one with --target: 0, 7"),
        (["bigwig", "STORE", "OUT"], "has 2 targets; choose one with --target: 0, 7"),
        (["bigwig", "STORE", "OUT", "--target", "0", "--region", "10"], "the store calls it 'chr10'"),
        (["modisco", "STORE", "OUT", "--target", "0", "--window", "42"], "does not fit into sequences of 41"),
    ],
)
def test_what_cannot_be_is_one_line(
    located: Store, in_folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"STORE": located.url, "OUT": "out"}
    assert dispatch(["export", *(places.get(text, text) for text in arguments)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("dlshap: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert os.listdir(in_folder) == []


@pytest.mark.parametrize(
    "arguments", [["--top", "0"], ["--top", "1", "--max-rows", "1"], ["--dtype", "int8"], ["--seed", "-1"]]
)
def test_options_that_mean_nothing_are_refused(
    located: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert dispatch(["export", "finemo", located.url, str(tmp_path / "out"), *arguments]) == 2
    assert "error: argument" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "report", "logo"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_store_is_not_taken_for_a_whole_one(
    plain: Store, in_folder: Path, capsys: pytest.CaptureFixture[str], command: str, damage: str
) -> None:
    shutil.copytree(plain.url, "a.zarr")
    path = in_folder / "a.zarr" / shard_key("attribution", 0)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data[:-9] if damage == "cut" else data)
    if damage == "gone":
        path.unlink()
    arguments = {"export": ["tsv", "a.zarr", "out.tsv"], "report": ["a.zarr"], "logo": ["a.zarr", "row1"]}
    assert dispatch([command, *arguments[command]]) == 2
    told = capsys.readouterr().err
    assert told.count("dlshap: error: ") == 1
    assert ("attribution is damaged in rows " if damage == "flipped" else "1 file gone or of another size") in told
    assert "`dlshap verify " in told
    assert os.listdir(in_folder) == ["a.zarr"]


def test_a_library_that_is_not_there_is_named(
    located: Store, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert dispatch(["export", "chrombpnet", located.url, "out", "--target", "0"]) == 2
    assert "h5py is not installed; `pip install 'dlshap[exports]'` adds it" in capfd.readouterr().err
    assert os.listdir(in_folder) == []
