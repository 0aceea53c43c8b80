"""Windows around loci: every coordinate worked out by hand on genomes small enough to see."""

from __future__ import annotations

import gzip
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from dlshap_core.sequences import decode
from pipeline.inputs import genome
from pipeline.inputs.base import RowBatch
from pipeline.inputs.loci import LociSource
from pipeline.inputs.open import open_source
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import chosen

# positions      0         1
#                0123456789012345678
CHR1 = "ACGTTGCAAGGCTTACGAT"
CHR2 = "TTTTTCCCCC"
GENOME = f">chr1 the first\n{CHR1[:8]}\n{CHR1[8:16]}\n{CHR1[16:]}\n>chr2\n{CHR2[:8]}\n{CHR2[8:]}\n"
FORMS = ["plain", "gzip", "members", "uneven"]


def write_genome(folder: Path, form: str = "plain", text: str = GENOME) -> Path:
    content = text.encode()
    if form == "uneven":  # no index can describe lines of different lengths
        content = content.replace(CHR1[:8].encode(), CHR1[:3].encode() + b"\n" + CHR1[3:8].encode())
    if form == "gzip":
        content = gzip.compress(content)
    if form == "members":
        content = gzip.compress(content[:20]) + gzip.compress(content[20:])
    path = folder / "genome.fa"
    path.write_bytes(content)
    return path


def read(folder: Path, loci: str | bytes, length: int, form: str = "plain", name: str = "loci.bed") -> RowBatch:
    path = folder / name
    path.write_bytes(loci if isinstance(loci, bytes) else loci.encode())
    batches = list(LociSource(path, write_genome(folder, form), length).batches())
    assert len(batches) == 1
    return batches[0]


def texts(rows: RowBatch) -> list[str]:
    assert rows.problem == [None] * len(rows)
    return [decode(codes) for codes in rows.codes if codes is not None]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("line", "length", "start", "text"),
    [
        ("chr1\t4\t10", 4, 5, "GCAA"),  # centre 7, [5, 9)
        ("chr1\t4\t10", 5, 5, "GCAAG"),  # odd length: one more on the right, [5, 10)
        ("chr1\t4\t11", 4, 5, "GCAA"),  # odd locus: the middle rounds down to 7
        ("chr1\t7\t7", 2, 6, "CA"),  # between two bases
        ("chr1\t7\t8", 1, 7, "A"),
        ("chr1\t0\t4", 4, 0, "ACGT"),  # the very beginning
        ("chr1\t15\t19", 4, 15, "CGAT"),  # the very end
        ("chr1\t0\t19", 19, 0, CHR1),  # centre 9, [0, 19)
        ("chr2\t4\t6", 4, 3, "TTCC"),
        ("chr1\t2\t12\tpeak\t5\t+\t1.5\t-1\t-1\t0", 4, 0, "ACGT"),  # summit 2 + 0
        ("chr1\t2\t12\tpeak\t5\t+\t1.5\t-1\t-1\t9", 4, 9, "GGCT"),  # summit 11
        ("chr1\t4\t10\tpeak\t5\t+\t1.5\t-1\t-1\t-1", 4, 5, "GCAA"),  # no summit: the middle
        ("chr1\t4\t10\tb\t0\t-\t4\t10\t0", 4, 5, "GCAA"),  # nine columns: BED
        ("chr1\t4\t10\tb\t0\t-\t4\t10\t0\t1\t6\t0", 4, 5, "GCAA"),  # twelve: BED
        ("chr1 4  10", 4, 5, "GCAA"),  # blanks for tabs
    ],
)
def test_windows(tmp_path: Path, form: str, line: str, length: int, start: int, text: str) -> None:
    rows = read(tmp_path, line, length, form)
    assert texts(rows) == [text]
    assert (rows.start[0], rows.end[0]) == (start, start + length)
    assert rows.chrom == [line.split()[0]]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("compression", ["plain", "gzip"])
def test_lines_that_are_not_data(tmp_path: Path, ending: str, compression: str) -> None:
    lines = [
        "browser position chr1:1-9",
        'track name="x"',
        "# note",
        "",
        "chr1\t4\t10\tp1\t0\t-",
        "  ",
        "chr2\t4\t6",
        "",
    ]
    content = ending.join(lines).encode()
    rows = read(tmp_path, gzip.compress(content) if compression == "gzip" else content, 4)
    assert texts(rows) == ["GCAA", "TTCC"]
    assert rows.source_row.tolist() == [0, 1]
    assert rows.name == ["p1", "chr2:4-6"]
    assert rows.strand == ["-", "."]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("chr3\t4\t10", ["chr3:4-10", "no chromosome 'chr3'", "it has chr1, chr2"]),
        ("1\t4\t10", ["no chromosome '1'", "it has 'chr1'"]),
        ("chr1\t1\t2", ["the window -1-3 leaves chr1, which spans 0-19"]),
        ("chr1\t17\t19", ["the window 16-20 leaves chr1, which spans 0-19"]),
        ("chr1\t90\t100", ["leaves chr1"]),
        ("chr1\t-4\t10", ["start -4 is negative"]),
        ("chr1\t10\t4", ["end 4 lies before start 10"]),
        ("chr1\tfour\t10", ["column 2 (start) is 'four'"]),
        ("chr1\t4\t1e1", ["column 3 (end) is '1e1'"]),
        ("chr1\t4.0\t10", ["column 2 (start) is '4.0'"]),
        ("chr1\t1_0\t12", ["column 2 (start) is '1_0'"]),
        ("chr1\t4\t99999999999999999999", ["column 3 (end)", "whole number"]),
        ("chr1\t4\t", ["column 3 (end) is ''"]),
        ("\t4\t10", ["column 1 (chromosome) is empty"]),
        ("chr1\t4", ["2 columns"]),
        ("chrom\tstart\tend", ["column 2 (start) is 'start'"]),
        ("chr1,4,10", ["1 columns"]),
        ("chr1\t4\t10\tp\t0\tx", ["column 6 (strand) is 'x'"]),
        ("chr1\t4\t10\tp\t0\t+\t1\t1\t1\tx", ["column 10 (summit offset) is 'x'"]),
        ("chr1\t4\t10\tp\t0\t+\t1\t1\t1\t6", ["summit offset 6 lies beyond the peak"]),
        ("chr1\t4\t10\tp\t0\t+\t1\t1\t1\t-2", ["summit offset -2"]),
    ],
)
def test_bad_rows_are_named_by_row_and_line(tmp_path: Path, form: str, line: str, parts: list[str]) -> None:
    rows = read(tmp_path, f"# note\nchr2\t4\t6\n{line}\nchr1\t4\t10\n", 4, form)
    assert rows.codes[1] is None
    for part in ["row 1 ", "(loci.bed, line 3)", *parts]:
        assert part in str(rows.problem[1])
    assert rows.problem[0] is rows.problem[2] is None
    assert [decode(rows.codes[i]) for i in (0, 2)] == ["TTCC", "GCAA"]
    assert rows.source_row.tolist() == [0, 1, 2]


def test_a_line_that_is_not_text(tmp_path: Path) -> None:
    rows = read(tmp_path, b"chr1\t4\t10\tp\xe9ak\n", 4)
    assert "line 1): the line is not UTF-8" in str(rows.problem[0])


@pytest.mark.parametrize("form", FORMS)
def test_letters_of_the_genome(tmp_path: Path, form: str) -> None:
    text = ">chr1\nacgtNN\nRyACGX\nACGTAC\n"
    (tmp_path / "loci.bed").write_text("chr1\t2\t6\nchr1\t4\t8\nchr1\t10\t14\n")
    (rows,) = LociSource(tmp_path / "loci.bed", write_genome(tmp_path, form, text), 4).batches()
    assert [decode(codes) for codes in rows.codes[:2]] == ["GTNN", "NNNN"]
    assert "row 2" in str(rows.problem[2])
    assert "'X' at position 1" in str(rows.problem[2])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", ["", "# only\n\ntrack name=x\n"])
def test_no_loci(tmp_path: Path, form: str, content: str) -> None:
    with pytest.raises(UserError, match="holds no loci"):
        read(tmp_path, content, 4, form)


def test_loci_that_are_fasta(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loci\.bed, line 1: looks like FASTA"):
        read(tmp_path, ">chr1\nACGT\n", 4)


@pytest.mark.parametrize("compression", ["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no FASTA records"),
        (b"ACGT\n>chr1\nACGT\n", "text before the first FASTA header"),
        (b">chr1\nAC\n>chr1\nACGT\n", "chr1"),
        (b">\nACGT\n", "without a name"),
    ],
)
def test_genomes_that_cannot_be_read(tmp_path: Path, content: bytes, message: str, compression: str) -> None:
    (tmp_path / "genome.fa").write_bytes(gzip.compress(content) if compression == "gzip" else content)
    (tmp_path / "loci.bed").write_text("chr1\t0\t2\n")
    with pytest.raises(UserError, match=message) as raised:
        list(LociSource(tmp_path / "loci.bed", tmp_path / "genome.fa", 2).batches())
    assert "genome.fa" in str(raised.value)


def test_truncated_genome(tmp_path: Path) -> None:
    letters = "".join(np.random.RandomState(0).choice(list("ACGT"), 5000))
    (tmp_path / "genome.fa.gz").write_bytes(gzip.compress(f">chr1\n{letters}\n".encode())[:-300])
    (tmp_path / "loci.bed").write_text("chr1\t0\t2\n")
    with pytest.raises(UserError, match=r"genome\.fa\.gz is truncated"):
        list(LociSource(tmp_path / "loci.bed", tmp_path / "genome.fa.gz", 2).batches())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
def test_rows_keep_their_order_whatever_the_genomes(
    tmp_path: Path, form: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genome, "_CHUNK_BYTES", chunk)
    starts = np.random.RandomState(0).randint(0, 8, size=40)
    chroms = np.random.RandomState(1).choice(["chr1", "chr2"], size=40)
    lines = [f"{chrom}\t{start}\t{start + 2}" for chrom, start in zip(chroms, starts, strict=True)]
    rows = read(tmp_path, "\n".join(lines), 2, form)
    sequences = {"chr1": CHR1, "chr2": CHR2}
    assert texts(rows) == [sequences[chrom][start : start + 2] for chrom, start in zip(chroms, starts, strict=True)]
    assert rows.start.tolist() == starts.tolist()


def test_loci_in_the_genomes_order_hold_one_chromosome_at_a_time(tmp_path: Path) -> None:
    text = "".join(f">c{i}\n{'ACGT' * (i + 1)}\n" for i in range(5))
    path = write_genome(tmp_path, "gzip", text)
    opened = genome.open_genome(path)
    assert isinstance(opened, genome.StreamedGenome)
    assert opened.lengths == {f"c{i}": 4 * (i + 1) for i in range(5)}
    opened.expect({"c1", "c3", "c4", "elsewhere"})
    held = []
    for chrom in ("c1", "c3", "c4"):
        assert opened.fetch(chrom, 1, 4) == b"CGT"
        held.append(set(opened._held))
        opened.release(chrom)
    assert held == [{"c1"}, {"c3"}, {"c4"}]  # c0 and c2 are not wanted
    opened.close()


def test_an_index_is_made_beside_a_plain_genome_and_made_again_when_it_is_old(tmp_path: Path) -> None:
    assert texts(read(tmp_path, "chr2\t4\t6", 4)) == ["TTCC"]
    index = tmp_path / "genome.fa.fai"
    assert index.exists()
    os.utime(index, (1, 1))
    (tmp_path / "genome.fa").write_text(">chr2\nGGGGGAAAAA\n")
    (rows,) = LociSource(tmp_path / "loci.bed", tmp_path / "genome.fa", 4).batches()
    assert texts(rows) == ["GGAA"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage\n",
        b"\xff\xfe",
        b"chr1\tx\t16\t8\t9\n",
        b"chr1\t19\t16\t8\t9\n",  # cut short: chr2 is missing
        b"chr1\t19\t16\t8\t9\nchr7\t10\t44\t8\t9\n",
        b"chr1\t19\t15\t8\t9\nchr2\t10\t44\t8\t9\n",
        b"chr2\t10\t16\t8\t9\n",
        b"chr1\t0\t0\t0\t0\n",
        b"chr1\t19\t16\t8\t9\nchr2\t1000000000000\t44\t8\t9\n",  # what is not there
        b"chr1\t" + b"9" * 5000 + b"\t16\t8\t9\n",
    ],
)
def test_an_index_that_does_not_fit_is_made_again(tmp_path: Path, content: bytes) -> None:
    path, index = write_genome(tmp_path), tmp_path / "genome.fa.fai"
    index.write_bytes(content)
    assert not genome.describes(index, path)
    assert texts(read(tmp_path, "chr1\t4\t10\nchr2\t4\t6\n", 4)) == ["GCAA", "TTCC"]
    index.touch()
    assert genome.describes(index, path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["genome.fa", "genome.fa.fai", "loci.bed"]


def test_an_index_that_fits_is_used_as_it_is(tmp_path: Path) -> None:
    path, index = write_genome(tmp_path), tmp_path / "genome.fa.fai"
    index.write_bytes(b"chr1\t19\t16\t8\t9\nchr2\t10\t44\t8\t9\n")
    before = index.stat()
    assert genome.describes(index, path)
    opened = genome.open_genome(path)
    assert isinstance(opened, genome.IndexedGenome)
    assert opened.lengths == {"chr1": 19, "chr2": 10}
    opened.close()
    assert index.stat() == before


def test_no_index_is_left_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    write_genome(folder)
    (tmp_path / "loci.bed").write_text("chr2\t4\t6\n")
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    real_access = os.access  # the superuser may write anywhere
    monkeypatch.setattr(
        genome.os, "access", lambda path, mode: False if str(path).startswith(str(folder)) else real_access(path, mode)
    )
    try:
        (rows,) = LociSource(tmp_path / "loci.bed", folder / "genome.fa", 4).batches()
        assert texts(rows) == ["TTCC"]
        assert sorted(path.name for path in folder.iterdir()) == ["genome.fa"]
    finally:
        folder.chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loci": "nowhere.bed"}, "dataset.loci=nowhere.bed: no such file"),
        ({"genome": None}, "dataset.genome is not set"),
    ],
)
def test_open_source_names_the_setting(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    (tmp_path / "loci.bed").write_text("chr1\t4\t10\n")
    settings = {
        "name": "loci",
        "timeout_s": 60,
        "loci": tmp_path / "loci.bed",
        "genome": write_genome(tmp_path),
        "length": 4,
    }
    assert open_source(chosen("dataset", **settings)).description["kind"] == "loci"
    with pytest.raises(UserError, match=message):
        open_source(chosen("dataset", **{**settings, **changed}))


@pytest.mark.real
def test_real_peaks_in_a_block_gzipped_genome(real_data: Path) -> None:
    loci = real_data / "ctcf_peaks.chr1_1m.narrowPeak"
    (rows,) = LociSource(loci, real_data / "hg38_chr1_1m.fa.gz", 2114).batches()
    summits = [int(line.split()[1]) + int(line.split()[9]) for line in loci.read_text().splitlines()]
    assert rows.problem == [None] * 15
    assert (rows.start + 1057).tolist() == summits
    with gzip.open(real_data / "hg38_chr1_1m.fa.gz", "rt") as file:
        letters = "".join(line.strip() for line in file if not line.startswith(">")).upper()
    for codes, start in zip(rows.codes, rows.start, strict=True):
        assert decode(codes) == letters[start : start + 2114]
