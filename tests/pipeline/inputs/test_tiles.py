"""Windows of a whole genome: every coordinate worked out by hand, and what is left out."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dlshap_core.sequences import decode
from pipeline.config.compose import compose_config
from pipeline.inputs import tiles
from pipeline.inputs.base import RowBatch
from pipeline.inputs.ingest import Nowhere, ingest
from pipeline.inputs.open import open_source
from pipeline.inputs.tiles import TileSource
from pipeline.messages.errors import UserError

# positions 0         1
#           0123456789012345678
CHR1 = "ACGTTGCAAGGCTTACGAT"
CHR2 = "TTNNNCCCCC"
GENOME = f">chr1 the first\n{CHR1[:8]}\n{CHR1[8:16]}\n{CHR1[16:]}\n>tiny\nAC\n>chr2\n{CHR2[:8]}\n{CHR2[8:]}\n"


def write(path: Path, text: str = GENOME) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(source: TileSource) -> RowBatch:
    (rows,) = source.batches()
    return rows


def windows(rows: RowBatch) -> dict[str, str]:
    assert rows.problem == [None] * len(rows)
    return {name: decode(codes) for name, codes in zip(rows.name, rows.codes, strict=True) if codes is not None}


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_windows_one_after_the_other(tmp_path: Path, name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_BLOCK_BASES", block)
    source = TileSource(write(tmp_path / name), 5)
    rows = read(source)
    assert windows(rows) == {
        "chr1:0-5": "ACGTT",
        "chr1:5-10": "GCAAG",
        "chr1:10-15": "GCTTA",  # what follows, 15-19, is no whole window
        "chr2:5-10": "CCCCC",  # chr2:0-5 has 2 known bases of 5
    }
    assert rows.chrom == ["chr1", "chr1", "chr1", "chr2"]
    assert (rows.start.tolist(), rows.end.tolist()) == ([0, 5, 10, 5], [5, 10, 15, 10])
    assert rows.source_row.tolist() == [0, 1, 2, 4], "a row keeps its number among all windows"
    assert (source.description["n_windows"], source.description["n_unknown"]) == (5, 1)


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
@pytest.mark.parametrize("block", [1, 9, 1 << 22])
@pytest.mark.parametrize(("length", "stride"), [(5, 1), (5, 3), (3, 7), (19, 1), (1, 1), (4, 4)])
def test_strides(
    tmp_path: Path, name: str, block: int, length: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_BLOCK_BASES", block)
    rows = read(TileSource(write(tmp_path / name), length, stride, chroms=["chr1"]))
    starts = range(0, len(CHR1) - length + 1, stride)
    assert windows(rows) == {f"chr1:{start}-{start + length}": CHR1[start : start + length] for start in starts}


def test_chromosomes_are_in_the_genomes_order(tmp_path: Path) -> None:
    rows = read(TileSource(write(tmp_path / "g.fa"), 2, chroms=["chr2", "tiny"], min_known=1))
    assert list(windows(rows)) == ["tiny:0-2", "chr2:0-2", "chr2:6-8", "chr2:8-10"]


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ("chr1\t5\t6\n", ["chr1:0-5", "chr1:10-15"]),
        ("chr1\t4\t5\n", ["chr1:5-10", "chr1:10-15"]),
        ("chr1\t4\t6\tx\nchr1\t8\t9\n", ["chr1:10-15"]),
        ("chr1\t5\t5\n", ["chr1:0-5", "chr1:5-10", "chr1:10-15"]),  # an empty interval holds no base
        ("chr1\t1\t2\nchr1\t0\t99\nchrX\t0\t9\n", []),
        ("# none\n", ["chr1:0-5", "chr1:5-10", "chr1:10-15"]),
    ],
)
def test_blacklists(tmp_path: Path, lines: str, left: list[str]) -> None:
    (tmp_path / "b.bed").write_text(lines)
    source = TileSource(write(tmp_path / "g.fa"), 5, blacklist=tmp_path / "b.bed")
    assert [name for name in windows(read(source)) if name.startswith("chr1")] == left
    assert source.description["n_blacklisted"] == 3 - len(left)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"chr1\t9\t5\n", r"dataset\.blacklist=\S+b\.bed, line 1: end 5 lies before start 9"),
        (b"chr1\t-9\t5\n", "line 1: start -9 is negative"),
        (b"chr1 x y\n", r"line 1: column 2 \(start\) is 'x'"),
        (b"chr1\t1\t2\nch\xe9\t1\t2\n", "line 2: the line is not UTF-8 text"),
        (b"1\t1\t2\n", r"no chromosome '1' in g\.fa; it has 'chr1': rename one of the two"),
    ],
)
def test_blacklists_that_cannot_be_used(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "b.bed").write_bytes(line)
    with pytest.raises(UserError, match=message):
        read(TileSource(write(tmp_path / "g.fa"), 5, blacklist=tmp_path / "b.bed"))


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (GENOME, {"chroms": ["1"]}, r"dataset\.chroms: no chromosome '1' in g\.fa; it has 'chr1'"),
        (GENOME, {"chroms": ["chrMT"]}, r"dataset\.chroms: no chromosome 'chrMT' in g\.fa; it has chr1, tiny, chr2"),
        (GENOME, {"length": 20}, r"no chromosome of g\.fa has dataset\.length=20 bases; the longest has 19"),
        (GENOME, {"chroms": ["tiny"]}, "the longest has 2"),
        ("", {}, "no FASTA records"),
        ("ACGT\n", {}, "text before the first FASTA header"),
    ],
)
@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
def test_genomes_without_windows(
    tmp_path: Path, name: str, text: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message.replace(r"g\.fa", name)):
        read(TileSource(write(tmp_path / name, text), **{"length": 5, **settings}))  # type: ignore[arg-type]


def test_a_letter_that_is_no_nucleotide_is_a_bad_row(tmp_path: Path) -> None:
    rows = read(TileSource(write(tmp_path / "g.fa", ">c\nACGTACXTACGT\n"), 4))
    assert rows.problem[0] is rows.problem[2] is None
    assert str(rows.problem[1]).startswith("window 1 c:4-8 (g.fa): character 'X' at position 2")


def test_what_is_left_out_is_said_and_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dlshap")
    dataset = compose_config(
        ["dataset=tiles", f"dataset.genome={write(tmp_path / 'g.fa')}", "dataset.length=5"]
    ).dataset
    source = open_source(dataset)
    ingested = ingest(source, dataset, lambda *first: Nowhere(), lambda n: None)
    assert (ingested.n_rows, ingested.n_bad) == (4, 0)
    assert source.description["n_unknown"] == 1
    assert "left out of the genome: 1 window with fewer known bases than dataset.min_known" in caplog.text


def test_a_genome_of_unknown_bases(tmp_path: Path) -> None:
    path = write(tmp_path / "g.fa", f">c\n{'N' * 50}\n")
    dataset = compose_config(
        ["dataset=tiles", f"dataset.genome={path}", "dataset.length=5", "dataset.min_known=0"]
    ).dataset
    with pytest.raises(UserError, match="the input holds no sequences"):
        ingest(open_source(dataset), dataset, lambda *first: Nowhere(), lambda n: None)


def test_memory_does_not_grow_with_the_genome(tmp_path: Path) -> None:
    letters = "".join(np.random.RandomState(0).choice(list("ACGT"), 60))
    with (tmp_path / "g.fa").open("w") as file:
        file.write(">c\n")
        file.writelines(f"{letters}\n" for _ in range(500_000))
    source = TileSource(tmp_path / "g.fa", 2000, 30_000)
    tracemalloc.start()
    n_rows = sum(len(rows) for rows in source.batches())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_rows == 1000
    assert peak < 20_000_000  # of 30 million bases
