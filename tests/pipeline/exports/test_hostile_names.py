"""Names, chromosomes and labels of a stranger's store: they forge no column and no line, and run no formula."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import dispatch
from pipeline.exports.registry import export_steps, exports
from pipeline.exports.text import field
from pipeline.inputs.names import chrom_problem
from pipeline.messages.visible import is_visible
from pipeline.store.reader import Store, open_store
from tests.pipeline.exports.stores import make_store, random_codes, relabel

NAMES = [
    "a\tchr9\t0\t10",
    "b\nchr9\t0\t10\tforged",
    "c\r\x1b[2J\x9b31m",
    "d\u2028e\u202ef\u200b\x85g\x0bh\x0ci\x00",
    "=cmd|'/C calc'!A0",
    "../../../up",
    "-oPWNED.png",
    "N" * 100_000,
]
LABELS = ["0\tforged\n\x1b[31m", "=1+1"]
CHROMS = ["chr1\tforged", "chr1\n", "chr 1", "chr\x1b[2J", "chr\u202e1", "#chr1", "=1+1", "track", "chr1\x00", "a\xa0b"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("hostile")
    loci = [(f"chr{i % 2}", 1000 * i) for i in range(len(NAMES))]
    store = make_store(folder / "a.zarr", random_codes(len(NAMES), 20), loci, NAMES, targets=(0, 1))
    relabel(folder / "a.zarr", LABELS)
    return open_store(store.url)


def columns_of(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8")
    assert "\r" not in text
    return [line.split("\t") for line in text.removesuffix("\n").split("\n")]


def test_a_table_has_a_line_for_each_row(hostile: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["export", "tsv", hostile.url, str(tmp_path / "a.tsv")]) == 0
    header, *lines = columns_of(tmp_path / "a.tsv")
    assert [len(line) for line in lines] == [len(header)] * len(NAMES)
    assert [is_visible(text) for line in (header, *lines) for text in line] == [True] * len(header) * (1 + len(NAMES))
    assert r"prediction_0\tforged\n\x1b[31m" in header
    names = [line[header.index("name")] for line in lines]
    assert names[:3] == [r"a\tchr9\t0\t10", r"b\nchr9\t0\t10\tforged", r"c\r\x1b[2J\x9b31m"]
    assert names[4:7] == [r"\x3dcmd|'/C calc'!A0", "../../../up", r"\x2doPWNED.png"]
    assert is_visible(capfd.readouterr().out.replace("\n", ""))


@pytest.mark.parametrize(("kind", "file"), [("finemo", "out/regions.narrowPeak"), ("modisco", "out/rows.tsv")])
def test_regions_have_a_line_for_each_row(hostile: Store, tmp_path: Path, kind: str, file: str) -> None:
    command = ["export", kind, hostile.url, str(tmp_path / "out"), "--target", LABELS[0]]
    assert dispatch(command) == 0
    lines = columns_of(tmp_path / file)
    assert len(lines) == len(NAMES) + (kind == "modisco")
    assert {len(line) for line in lines} == {len(lines[0])}
    assert all(is_visible(text) for line in lines for text in line)
    if kind == "finemo":
        with np.load(tmp_path / "out" / "regions.npz") as found:
            assert found["peak_name"].tolist() == [line[3] for line in lines]  # the two files agree
    assert {path.name for path in tmp_path.iterdir()} == {"out"}  # no name is a path


def test_chromosomes_that_forge() -> None:
    assert [chrom for chrom in CHROMS if chrom_problem(chrom) is None] == []
    honest = ("", "1", "chr1_KI270706v1", "HLA-A*01:01", "gi|1|x", "пятая")
    assert [chrom for chrom in honest if chrom_problem(chrom)] == []


@pytest.mark.parametrize("chrom", CHROMS[-3:])
def test_a_chromosome_that_forges_is_refused(tmp_path: Path, chrom: str, capfd: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "a.zarr", random_codes(2, 20), [("chr1", 0), (chrom, 50)])
    for kind in exports():
        assert dispatch(["export", kind, store.url, str(tmp_path / "out")]) == 2
        told = capfd.readouterr().err
        assert f"row 1 of {store.url}: its chromosome is " in told
        assert is_visible(told.removesuffix("\n"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.zarr", "a.zarr.run"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("-", "-"),
        ("+", "+"),
        (-0.5, "-0.5"),
        (np.float32(-1e-7), "-1e-07"),
        (float("-inf"), "-inf"),
        ("+1", "+1"),
        ("chr1:10-20(-)", "chr1:10-20(-)"),
        ("=1", r"\x3d1"),
        ("@SUM(1)", r"\x40SUM(1)"),
        ("-2+3+cmd|x", r"\x2d2+3+cmd|x"),
        ("+cmd", r"\x2bcmd"),
        ("\t=1", r"\t=1"),
        ("", ""),
    ],
)
def test_formulas_are_text_and_numbers_stay(value: object, text: str) -> None:
    assert field(value) == text


def test_next_steps_take_no_name_for_an_option(tmp_path: Path) -> None:
    store = make_store(tmp_path / "-oX.zarr", random_codes(2, 20), [("chr1", 0), ("chr1", 50)])
    for step in export_steps(store, store.targets[0]):
        assert [word for word in shlex.split(step.command) if word.startswith("-oX")] == []
