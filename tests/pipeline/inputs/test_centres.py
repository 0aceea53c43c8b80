"""What a window is centred on: read by the content of columns 7 to 10, or as dataset.centre says, and noted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.compose import compose_config
from pipeline.inputs.ingest import Nowhere, ingest
from pipeline.inputs.loci import LociSource
from pipeline.inputs.open import open_source
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import chosen

LENGTH = 20
PEAK = "chr1\t100\t300\tp\t0\t.\t12.5\t3.1\t2.2\t40"  # summit at 140, middle at 200
BEFORE = "chr1\t500\t600\tq\t0\t+"  # six columns, middle at 550
SUMMIT, MIDDLE = [140], [200]


def centres(folder: Path, lines: list[str], name: str = "x.bed", **settings: str) -> tuple[list[int], list[str]]:
    """The positions that windows are centred on, and the notes."""
    (folder / "g.fa").write_text(">chr1\n" + "ACGT" * 500 + "\n")
    (folder / name).write_text("\n".join(lines) + "\n")
    source = LociSource(folder / name, folder / "g.fa", LENGTH, **settings)
    (rows,) = source.batches()
    if problems := [problem for problem in rows.problem if problem]:
        raise UserError("; ".join(problems))
    return [int(start) + LENGTH // 2 for start in rows.start], source.description["notes"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (PEAK, SUMMIT),
        (PEAK + "\t", SUMMIT),
        (PEAK + "\t\t\t", SUMMIT),
        (PEAK + "\tpromoter", SUMMIT),
        (PEAK.replace("\t", " "), SUMMIT),
        (PEAK + "\t1.20\t0.98\t90\t310\t11.5\t42\t110\t290\t13.5\t38", SUMMIT),  # IDR: 20 columns
        ("chr1\t100\t300\t.\t1000\t.\t-1\t-1\t4.33816\t40\t5.00\t5.00\t90\t310\t4.4\t42\t110\t290\t4.3\t38", SUMMIT),
        ("chr1\t100\t300\t.\t.\t.\t.\t.\t.\t40", SUMMIT),  # columns that were filled up
        ("chr1\t100\t300\tp\t0\t.\t1e2\tinf\t0\t0", [100]),
        ("chr1\t100\t300\tp\t0\t.\t1\t1\t0\t199", [299]),  # the last base
        ("chr1\t100\t300\tp\t0\t.\t12.5\t3.1\t2.2\t-1", MIDDLE),
        ("chr1\t100\t300\tp\t0\t.\t12.5\t3.1\t2.2", MIDDLE),  # broadPeak
        ("chr1\t100\t300\tt\t0\t+\t100\t300\t0\t1", MIDDLE),  # BED of 10 columns
        ("chr1\t100\t300\tt\t0\t+\t120\t120\t255,0,0\t2", MIDDLE),
        ("chr1\t100\t300\tt\t0\t+\t0\t0\t255,0,0\t2", MIDDLE),
        ("chr1\t100\t300\tt\t0\t+\t100\t300\t0\t12", MIDDLE),
        ("chr1\t100\t300\tt\t0\t+\t120\t280\t0\t2\t50,60,\t0,140,", MIDDLE),  # BED of 12 columns
        ("chr1\t100\t300\tt\t0\t+\t0\t0\t0\t1\t200\t0", MIDDLE),
        ("chr1\t100\t300\tt\t0\t+\t0\t0\t0\t2\t50,60\t0,140", MIDDLE),
        ("chr1\t100\t300\tt\t0\t+\t120\t280\t0\t2\t50,60,\t0,140,\t9.5\t3.1\t2.0", MIDDLE),  # gappedPeak
        ("chr1\t100\t300\tt\t0\t+\texon\tGENE\t4\t17", MIDDLE),  # columns of one's own
        ("chr1\t100\t300\tt\t0\t+\t1.5\t2.5\t3.5\t0.05", MIDDLE),
    ],
)
def test_a_line_is_read_by_its_content(tmp_path: Path, line: str, expected: list[int]) -> None:
    assert centres(tmp_path, [line])[0] == expected


@pytest.mark.parametrize(
    ("lines", "name", "expected"),
    [
        (["chr1\t100\t300\tp\t0\t.\t120\t130\t0\t40"], "x.bed", MIDDLE),  # fits both
        (["chr1\t100\t300\tp\t0\t.\t120\t130\t0\t40"], "x.narrowPeak", SUMMIT),
        (["chr1\t100\t300\tp\t0\t.\t120\t130\t0\t40", PEAK], "x.bed", [140, 140]),  # as the other line
        (["chr1\t100\t300\tp\t0\t.\t120\t130\t0\t40", "chr1\t100\t300\tt\t0\t+\t120\t130\t9,9,9\t1"], "x.narrowPeak",
         [200, 200]),
        (["chr1\t100\t300\tp\t0\t.\t.\t.\t.\t.", "chr1\t100\t300\tt\t0\t+\texon\tGENE\t4\t17"], "x.bed", [200, 200]),
        (["chr1\t100\t300\tp\t0\t.\t.\t.\t.\tNaN", PEAK], "x.bed", [200, 140]),
        ([BEFORE, PEAK, "chr1\t100\t300\tt\t0\t+\t120\t280\t0\t2\t50,60,\t0,140,"], "x.bed", [550, 140, 200]),
        ([f"chr1\t100\t300\tt\t0\t+\t9\t9\t0\t1\t{'9' * 5000}\t{'9' * 5000}"], "x.bed", [101]),
    ],
)  # fmt: skip
def test_a_line_that_fits_both_is_read_like_its_file(
    tmp_path: Path, lines: list[str], name: str, expected: list[int]
) -> None:
    assert centres(tmp_path, lines, name)[0] == expected


@pytest.mark.parametrize("centre", ["auto", "summit"])
@pytest.mark.parametrize(("column", "text"), [("250", "250 lies beyond the peak"), ("x", "'x'"), ("-2", "-2 is neg")])
def test_a_summit_that_cannot_be_is_named(tmp_path: Path, centre: str, column: str, text: str) -> None:
    lines = [BEFORE, PEAK, PEAK.rpartition("\t")[0] + f"\t{column}"][centre == "summit" :]
    with pytest.raises(UserError, match=rf"x\.bed, line {len(lines)}\).*column 10.*{text}.*; dataset\.centre=middle"):
        centres(tmp_path, lines, centre=centre)
    assert centres(tmp_path, lines, centre="middle")[0][-2:] == [200, 200]


def test_a_line_unlike_the_peaks_of_its_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"line 2\): columns 7 to 10 are 'a', 'b', 'c', '40', and other lines are narrow"
    ):
        centres(tmp_path, [PEAK, "chr1\t100\t300\tp\t0\t.\ta\tb\tc\t40"])


def test_what_is_asked_for_goes_before_what_is_found(tmp_path: Path) -> None:
    assert centres(tmp_path, [PEAK], centre="middle") == (MIDDLE, ["x.bed: windows centred on 1 middle"])
    bed = "chr1\t100\t300\tt\t0\t+\t100\t300\t0\t12"
    assert centres(tmp_path, [bed], centre="summit") == ([112], ["x.bed: windows centred on 1 summit"])
    with pytest.raises(UserError, match=r"x\.bed, line 1\): dataset\.centre=summit: no column 10, the line has 6 col"):
        centres(tmp_path, [BEFORE], centre="summit")
    with pytest.raises(UserError, match=r"line 2\): dataset\.centre=summit: column 10 is -1, no summit"):
        centres(tmp_path, [PEAK, PEAK.replace("\t40", "\t-1")], centre="summit")


def test_the_note_counts_summits_and_middles(tmp_path: Path) -> None:
    assert centres(tmp_path, [PEAK, PEAK, BEFORE], "p.narrowPeak")[1] == [
        "p.narrowPeak: windows centred on 2 summits and 1 middle"
    ]
    (note,) = centres(tmp_path, ["chr1\t100\t300\tt\t0\t+\t100\t300\t0\t1"])[1]
    assert note.startswith("x.bed: windows centred on 1 middle; columns 7 to 10 are not narrowPeak's (dataset.centre=")


def test_rows_on_the_minus_strand_are_counted_where_it_is_ignored(tmp_path: Path) -> None:
    lines = [BEFORE.replace("+", strand) for strand in "+-.-"]
    note = (
        "x.bed: 2 rows on the minus strand are read on the plus strand (dataset.strand=apply takes their reverse comp"
    )
    assert centres(tmp_path, lines)[1][1].startswith(note)
    assert len(centres(tmp_path, lines, strand="apply")[1]) == 1


def test_the_setting_and_its_note_reach_the_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dlshap")
    centres(tmp_path, [PEAK])
    paths = [f"dataset.loci={tmp_path / 'x.bed'}", f"dataset.genome={tmp_path / 'g.fa'}", "dataset.length=20"]
    hashes = set()
    for centre in ("auto", "middle"):
        dataset = compose_config(["dataset=loci", *paths, f"dataset.centre={centre}"]).dataset
        source = open_source(dataset)
        hashes.add(ingest(source, dataset, lambda *first: Nowhere(), lambda n: None).facts.sha256)
        assert source.description["centre"] == centre
    assert len(hashes) == 2
    assert "x.bed: windows centred on 1 summit" in caplog.messages
    with pytest.raises(UserError, match=r"dataset\.centre=sumit; expected auto, summit or middle; did you mean summit"):
        compose_config(["dataset=loci", *paths, "dataset.centre=sumit"])
    with pytest.raises(UserError, match=r"dataset=fasta and dataset\.centre contradict each other; use dataset=loci"):
        compose_config(["dataset=fasta", "dataset.path=x.fa", "dataset.centre=middle"])


@pytest.mark.parametrize("more", ["", "\t", "\tx", "\t1.2\t0.9\t90\t310\t11.5\t42\t110\t290\t13.5\t38"])
def test_columns_of_peaks_have_their_names(tmp_path: Path, more: str) -> None:
    centres(tmp_path, [PEAK + more, PEAK + more])
    dataset = chosen(
        "dataset",
        name="loci",
        loci=str(tmp_path / "x.bed"),
        genome=str(tmp_path / "g.fa"),
        length=LENGTH,
        args=["signalValue", "peak"],
    )
    (rows,) = open_source(dataset).batches()
    assert [np.asarray(arg).tolist() for arg in rows.extra_inputs[0]] == [[12.5], [40]]
