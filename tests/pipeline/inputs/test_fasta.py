"""FASTA in all the states that users' files are in."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from dlshap_core.sequences import decode
from pipeline.config import limits
from pipeline.config.schema import LimitsConfig
from pipeline.inputs import base
from pipeline.inputs.base import RowBatch
from pipeline.inputs.fasta import FastaSource, locus_of
from pipeline.inputs.open import open_source
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import chosen


def write(path: Path, content: bytes, compression: str = "plain") -> Path:
    if compression == "gzip":
        content = gzip.compress(content)
    elif compression == "members":  # what bgzip writes: several gzip members, one after the other
        half = len(content) // 2
        content = gzip.compress(content[:half]) + gzip.compress(content[half:]) + gzip.compress(b"")
    path.write_bytes(content)
    return path


def read(path: Path) -> RowBatch:
    batches = list(FastaSource(path).batches())
    assert len(batches) == 1
    return batches[0]


@pytest.mark.parametrize("name", ["sequences.fa", "sequences.fa.gz"])
@pytest.mark.parametrize("compression", ["plain", "gzip", "members"])
def test_reads_by_content_whatever_the_name(tmp_path: Path, name: str, compression: str) -> None:
    content = b">first words of a header\nACGT\nacg\n\n>second\r\nNRYU\r\n"
    rows = read(write(tmp_path / name, content, compression))
    assert rows.name == ["first", "second"]
    assert [decode(codes) for codes in rows.codes] == ["ACGTACG", "NNNT"]
    assert rows.codes[0].dtype == np.uint8
    assert rows.problem == [None, None]
    assert rows.source_row.tolist() == [0, 1]
    assert rows.source_row.dtype == rows.start.dtype == rows.end.dtype == np.int64
    assert (rows.chrom, rows.strand) == (["", ""], [".", "."])
    assert rows.start.tolist() == rows.end.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("name", "length", "locus"),
    [
        ("chr1:100-200", 100, ("chr1", 100, 200, ".")),
        ("chr1:100-200(+)", 100, ("chr1", 100, 200, "+")),
        ("chr1:100-200(-)", 100, ("chr1", 100, 200, "-")),
        ("chrUn_KI270:0-7", 7, ("chrUn_KI270", 0, 7, ".")),
        ("peak_7::chr2:5-9(-)", 4, ("chr2", 5, 9, "-")),
        ("chr1:101-200", 100, ("", -1, -1, ".")),  # 1-based: the length does not agree
        ("chr1:200-100", 100, ("", -1, -1, ".")),
        ("chr1:a-b", 1, ("", -1, -1, ".")),
        ("chr1:1-2:3-4", 1, ("", -1, -1, ".")),
        ("example_0001", 5, ("", -1, -1, ".")),
        ("chr1:100-200(?)", 100, ("", -1, -1, ".")),
    ],
)
def test_locus_in_a_name(name: str, length: int, locus: tuple[str, int, int, str]) -> None:
    assert locus_of(name, length) == locus


def test_a_name_beyond_the_limit_is_not_searched_for_a_locus() -> None:
    longest = limits.current().name
    name = "x" * (longest - 11) + "::chr1:7-9"
    assert locus_of("x" + name, 2) == ("chr1", 7, 9, ".")
    assert locus_of("xx" + name, 2) == ("", -1, -1, ".")
    with limits.using(LimitsConfig(name=longest + 1)):
        assert locus_of("xx" + name, 2) == ("chr1", 7, 9, ".")


def test_locus_reaches_the_rows(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.fa", b">chrX:10-14(-) note\nACGT\n>chrX:10-15\nACGT\n"))
    assert rows.chrom == ["chrX", ""]
    assert rows.start.tolist() == [10, -1]
    assert rows.end.tolist() == [14, -1]
    assert rows.strand == ["-", "."]
    assert decode(rows.codes[0]) == "ACGT"  # recorded, not applied


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b">a\n>b\nACGT\n", ["record 0 'a' (x.fa, line 1)", "no sequence"]),
        (b">b\nACGT\n>a\n", ["record 1 'a' (x.fa, line 3)", "no sequence"]),
        (b">b\nACGT\n>\nAC\n", ["record 1 '' (x.fa, line 3)", "no name"]),
        (b">a\nACGT\nACXT\n", ["record 0 'a' (x.fa, line 1)", "in line 3", "'X' at position 6 (0-based)"]),
        (b">a\nAC GT\n", ["in line 2", "' ' at position 2"]),
        (b">a\nACGT*\n", ["'*' at position 4"]),
        (b">a\nAC-T\n", ["'-' at position 2"]),
        (b">a\nMKVLAAGIVGLLLAQWERTYIPASDFGHKLCVNM\n", ["protein"]),
        (b">caf\xe9\nACGT\n", ["record 0", "line 1", "not UTF-8"]),
        (b">a\nAC\xffGT\n", ["in line 2", "at position 2"]),
    ],
)
def test_bad_records_are_named_and_stay_in_place(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    rows = read(write(tmp_path / "x.fa", content))
    bad = [i for i, problem in enumerate(rows.problem) if problem is not None]
    assert len(bad) == 1
    assert rows.codes[bad[0]] is None
    for part in parts:
        assert part in str(rows.problem[bad[0]])
    assert [i for i, codes in enumerate(rows.codes) if codes is None] == bad
    assert rows.source_row.tolist() == list(range(len(rows)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no FASTA records"),
        (b"\n\n", "no FASTA records"),
        (b"ACGT\n>a\nACGT\n", "line 1: text before the first FASTA header.*'ACGT'"),
        (b"\n\nchr1\t5\t9\n", "line 3: text before the first FASTA header"),
        (b"@read\nACGT\n+\nIIII\n", "line 1.*FASTQ"),
        (b"PK\x03\x04zip", "zip archive"),
        (b"BZh91AY", "is truncated after line 0"),
        (b"\xff\xfe>\x00a\x00", "UTF-16"),
    ],
)
def test_files_that_are_not_fasta(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "x.fa", content)
    with pytest.raises(UserError, match=message) as raised:
        list(FastaSource(path).batches())
    assert str(path) in str(raised.value)


def test_empty_gzip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no FASTA records"):
        list(FastaSource(write(tmp_path / "x.fa.gz", b"", "gzip")).batches())


def test_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert read(write(tmp_path / "x.fa", b"\xef\xbb\xbf>a\nACGT")).name == ["a"]


def damaged_gzip() -> list[tuple[str, bytes]]:
    records = b"".join(
        b">r%d\n%s\n" % (i, bytes(np.random.RandomState(i).choice(list(b"ACGT"), 50))) for i in range(500)
    )
    whole = gzip.compress(records)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    return [("truncated", whole[: len(whole) // 2]), ("damaged", bytes(flipped)), ("damaged", whole + b"garbage!")]


@pytest.mark.parametrize(("kind", "content"), damaged_gzip())
def test_damaged_gzip_names_file_and_line(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / "x.fa.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.fa\.gz is {kind} after line \d+"):
        list(FastaSource(path).batches())


def test_batches_are_bounded_and_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(base, "BYTES_PER_BATCH", 100)
    short = b"".join(b">s%d\nACGT\n" % i for i in range(10))
    source = FastaSource(write(tmp_path / "x.fa", short + b">long\n" + b"A" * 120 + b"\n>end\nC\n"))
    for _ in range(2):
        batches = list(source.batches())
        assert [len(batch) for batch in batches] == [4, 4, 3, 1]
        assert np.concatenate([batch.source_row for batch in batches]).tolist() == list(range(12))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "dataset.path is not set"),
        ("", "dataset.path is not set"),
        ("missing.fa", "dataset.path=missing.fa: no such file"),
        (".", "is a directory"),
    ],
)
def test_open_source_names_the_setting(path: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(chosen("dataset", "fasta", timeout_s=60, path=path))


def test_open_source_of_an_unknown_kind() -> None:
    with pytest.raises(UserError, match=r"dataset\.name=fastq; expected array, .* did you mean fasta"):
        open_source(chosen("dataset", "fastq", timeout_s=60))


@pytest.mark.real
def test_real_peaks(real_data: Path) -> None:
    source = open_source(chosen("dataset", "fasta", timeout_s=60, path=str(real_data / "ctcf_peaks_100bp.fa.gz")))
    batches = list(source.batches())
    assert sum(len(rows) for rows in batches) == 39184
    first = batches[0]
    assert (first.name[0], first.chrom[0], first.start[0], first.end[0]) == (
        "chr1:17036408-17036508",
        "chr1",
        17036408,
        17036508,
    )
    assert all(rows.problem == [None] * len(rows) for rows in batches)
    assert all(len(codes) == 100 for rows in batches for codes in rows.codes)
