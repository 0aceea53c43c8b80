"""FASTA, loci, variants and genomes that are wrong in ways that tables and arrays are tested for elsewhere."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlshap_core.sequences import decode
from pipeline.inputs.base import RowBatch
from pipeline.inputs.fasta import FastaSource
from pipeline.inputs.loci import LociSource
from pipeline.inputs.variants import VariantSource
from pipeline.messages.errors import UserError

LONG = "ACGT" * 250_000


def fasta(folder: Path, content: bytes) -> RowBatch:
    (folder / "x.fa").write_bytes(content)
    (rows,) = FastaSource(folder / "x.fa").batches()
    return rows


def loci(folder: Path, content: bytes, genome: str = f">chr1\n{LONG}\n", length: int = 4) -> RowBatch:
    (folder / "l.bed").write_bytes(content)
    (folder / "g.fa").write_text(genome)
    (rows,) = LociSource(folder / "l.bed", folder / "g.fa", length).batches()
    return rows


def variants(folder: Path, content: bytes, genome: str = f">chr1\n{LONG}\n") -> RowBatch:
    (folder / "v.vcf").write_bytes(content)
    (folder / "g.fa").write_text(genome)
    (rows,) = VariantSource(folder / "v.vcf", folder / "g.fa", 4).batches()
    return rows


def test_fasta_with_a_line_of_a_million_characters(tmp_path: Path) -> None:
    rows = fasta(tmp_path, f">a\n{LONG}\n>{LONG}\nAC\n".encode())
    assert [decode(codes) for codes in rows.codes if codes is not None] == [LONG, "AC"]
    assert rows.name == ["a", LONG]
    assert len(str(fasta(tmp_path, f">{LONG}\n{LONG}X\n".encode()).problem[0])) < 300


def test_fasta_with_tabs_in_names(tmp_path: Path) -> None:
    rows = fasta(tmp_path, b">a\tb c\r\nAC\r\n>\td\r\nGT\r\n")
    assert rows.name == ["a", "d"]
    assert rows.problem == [None, None]


def test_fasta_of_a_header_alone(tmp_path: Path) -> None:
    assert "record 0 'a' (x.fa, line 1) has no sequence" in str(fasta(tmp_path, b">a\n").problem[0])


def test_fasta_with_the_same_name_twice(tmp_path: Path) -> None:
    rows = fasta(tmp_path, b">a\nAC\n>a\nGT\n")
    assert (rows.name, rows.problem) == (["a", "a"], [None, None])


def test_loci_on_a_genome_of_one_long_line(tmp_path: Path) -> None:
    rows = loci(tmp_path, b"chr1\t500000\t500004\n")
    assert [decode(codes) for codes in rows.codes if codes is not None] == ["ACGT"]


def test_loci_with_a_line_of_a_million_characters(tmp_path: Path) -> None:
    rows = loci(tmp_path, f"chr1\t8\t12\t{LONG}\nchr1\t{'9' * 1_000_000}\t12\n".encode())
    assert (rows.name[0], rows.problem[0]) == (LONG, None)
    assert "row 1 " in str(rows.problem[1])
    assert "column 2 (start) is '9999" in str(rows.problem[1])
    assert len(str(rows.problem[1])) < 300


def test_loci_with_tabs_in_names(tmp_path: Path) -> None:
    rows = loci(tmp_path, b"chr1\t8\t12\ta\tb\t0\t-\n")  # the name's second half is the score, the score the strand
    assert "column 6 (strand) is '0'; expected +, - or ." in str(rows.problem[0])


def test_loci_in_bed12(tmp_path: Path) -> None:
    rows = loci(tmp_path, b"chr1\t8\t12\ttx\t0\t-\t8\t12\t0,0,0\t1\t4,\t0,\r\n")
    assert (rows.name, rows.strand, rows.start.tolist()) == (["tx"], ["-"], [8])
    assert [decode(codes) for codes in rows.codes if codes is not None] == ["ACGT"]


def test_peaks_and_tiles_in_one_file(tmp_path: Path) -> None:
    rows = loci(tmp_path, b"chr1\t8\t90\tpeak\t0\t.\t1\t2\t3\t40\nchr1\t100\t200\n")
    assert (rows.name, rows.start.tolist()) == (["peak", "chr1:100-200"], [46, 148])


def test_loci_that_are_there_twice_and_have_no_length(tmp_path: Path) -> None:
    rows = loci(tmp_path, b"chr1\t10\t10\nchr1\t10\t10\n")
    assert (rows.start.tolist(), rows.problem) == ([8, 8], [None, None])  # a point is a centre; both are kept


def test_loci_cut_short(tmp_path: Path) -> None:
    lines = "".join(f"chr1\t{start}\t{start + 9}\n" for start in np.random.RandomState(0).randint(9, 9999, 500))
    (tmp_path / "l.bed.gz").write_bytes(gzip.compress(lines.encode())[:-50])
    (tmp_path / "g.fa").write_text(">chr1\nACGT\n")
    with pytest.raises(UserError, match=r"l\.bed\.gz is truncated after line \d+"):
        list(LociSource(tmp_path / "l.bed.gz", tmp_path / "g.fa", 4).batches())


@pytest.mark.parametrize(
    ("near", "other"), [("chr1", "1"), ("1", "chr1"), ("MT", "chrM"), ("chrM", "MT"), ("chr1", "Chr1"), ("chrX", "x")]
)
def test_chromosomes_of_another_naming(tmp_path: Path, near: str, other: str) -> None:
    rows = loci(tmp_path, f"{other}\t1\t3\n".encode(), f">{near}\nACGTACGT\n")
    assert f"no chromosome '{other}' in g.fa; it has '{near}': rename one of the two" in str(rows.problem[0])


# --- variants -------------------------------------------------------------------------------------------------------


def test_variants_with_other_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    rows = variants(tmp_path, b"\xef\xbb\xbf##x\r\n#CHROM\r\n\r\nchr1\t9\trs1\tA\tC\r\nchr1\t10\trs2\tC\tG")
    assert rows.problem == [None] * 4
    assert rows.name == ["rs1:ref", "rs1:alt", "rs2:ref", "rs2:alt"]


def test_variants_cut_short(tmp_path: Path) -> None:
    lines = "".join(f"chr1\t{place}\t.\tA\tC\n" for place in np.random.RandomState(0).randint(9, 9999, 500))
    with pytest.raises(UserError, match=r"v\.vcf is truncated after line \d+"):
        variants(tmp_path, gzip.compress(lines.encode())[:-50])


def test_variants_with_a_line_of_a_million_characters(tmp_path: Path) -> None:
    rows = variants(tmp_path, f"chr1\t9\tlong\tA\t{LONG}\nchr1\t9\trs2\t{LONG}X\tA\n".encode())
    assert rows.problem[:2] == [None, None]
    assert "line 2): column 4 (REF)" in str(rows.problem[2])
    assert len(str(rows.problem[2])) < 300


def test_variants_that_are_not_text(tmp_path: Path) -> None:
    rows = variants(tmp_path, b"chr1\t9\t\xff\xfe\tA\tC\nchr1\t9\trs\tA\tC\n")
    assert "row 0 chr1:9 (v.vcf, line 1): the line is not UTF-8 text" in str(rows.problem[0])
    assert rows.problem[2:] == [None, None]


def test_variants_that_are_there_twice(tmp_path: Path) -> None:
    rows = variants(tmp_path, b"chr1\t9\trs\tA\tC\n" * 2)
    assert (rows.name, rows.problem) == (["rs:ref", "rs:alt"] * 2, [None] * 4)


def test_variants_that_are_loci(tmp_path: Path) -> None:
    assert "3 columns; expected CHROM, POS, ID, REF, ALT" in str(variants(tmp_path, b"chr1\t8\t12\n").problem[0])
    assert "column 3 (end) is '.'" in str(loci(tmp_path, b"##x\n#CHROM\nchr1\t9\t.\tA\tC\n").problem[0])


# --- what is no text ------------------------------------------------------------------------------------------------


def test_line_ends_of_a_carriage_return_alone(tmp_path: Path) -> None:
    assert r"has no sequence; its lines end in a carriage return alone: tr '\r' '\n'" in str(
        fasta(tmp_path, b">a\rACGT\r>b\rACGT\r").problem[0]
    )
    rows = fasta(tmp_path, b">a\r\nACGT\n>b\rACGT\n>c\nAC")
    assert [problem is None for problem in rows.problem] == [True, False, True]
    for read, line in ((loci, b"chr1\t9\t12\r"), (variants, b"chr1\t9\t.\tA\tC\r")):
        assert r"its lines end in a carriage return alone: tr '\r' '\n'" in str(read(tmp_path, line * 2).problem[0])


def test_the_names_of_columns_are_no_locus(tmp_path: Path) -> None:
    first, second = loci(tmp_path, b"chrom\tstart\tend\nchr1\t8\tend\n").problem
    assert "column 2 (start) is 'start'; expected a whole number; a line of headings begins with #" in str(first)
    assert "headings" not in str(second)


def test_a_genome_with_a_byte_order_mark(tmp_path: Path) -> None:
    rows = loci(tmp_path, b"chr1\t2\t6\n", "\ufeff>chr1\nACGTACGT\n")
    assert [decode(codes) for codes in rows.codes if codes is not None] == ["GTAC"]


@pytest.mark.parametrize("read", [fasta, loci, variants])
@pytest.mark.parametrize("form", ["tar", "UTF-16"])
def test_what_gzip_holds_is_no_text(tmp_path: Path, read: Callable[[Path, bytes], RowBatch], form: str) -> None:
    content = "chr1\t9\t12\tA\tC\n".encode("utf-16")
    if form == "tar":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("folder/x"))
        content = buffer.getvalue()
    said = r"is not text; an archive \(tar\) must be unpacked" if form == "tar" else "is UTF-16 text; convert it: "
    with pytest.raises(UserError, match=said):
        read(tmp_path, gzip.compress(content))


def test_a_real_bcf_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is BCF; convert it"):
        variants(tmp_path, gzip.compress(b"BCF\2\2\x10\0\0\0##fileformat=VCFv4.2\n\0"))
