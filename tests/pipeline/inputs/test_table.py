"""Tables in all the states that users' files are in."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from dlshap_core.sequences import decode
from pipeline.inputs.base import RowBatch
from pipeline.inputs.table import TableSource
from pipeline.messages.errors import UserError
from tests.pipeline.inputs.file_forms import lists, one_hot_of, write


def rows_of(source: TableSource) -> RowBatch:
    (rows,) = source.batches()
    return rows


def read(folder: Path, content: str | bytes, name: str = "t.csv", **settings: object) -> RowBatch:
    path = write(folder / name, content if isinstance(content, bytes) else content.encode())
    return rows_of(TableSource(path, **settings))  # type: ignore[arg-type]


def write_parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def texts(rows: RowBatch) -> list[str]:
    assert rows.problem == [None] * len(rows)
    return [decode(codes) for codes in rows.codes if codes is not None]


def test_columns_by_their_usual_names(tmp_path: Path) -> None:
    rows = read(tmp_path, "#Chr,chromStart,END,strand,ID,Sequence,x\nchr2,5,9,-,a b,acgn,1\nchr3,0,4,,,ACGU,\n")
    assert texts(rows) == ["ACGN", "ACGT"]
    assert (rows.name, rows.chrom) == (["a b", "chr3:0-4"], ["chr2", "chr3"])
    assert (rows.start.tolist(), rows.end.tolist(), rows.strand) == ([5, 0], [9, 4], ["-", "."])
    assert rows.source_row.tolist() == [0, 1]


def test_columns_by_given_names_and_left_out(tmp_path: Path) -> None:
    text = "seq,insert,name,chrom,start,end\nACGT,TTT,n,chr1,1,9\n"
    left_out = {"name": "none", "chrom": "none"}
    rows = read(tmp_path, text, column="insert", columns=left_out)
    assert (texts(rows), rows.name, rows.chrom) == (["TTT"], ["row_0"], [""])
    rows = read(
        tmp_path,
        "s;where;a;b\nACGT;chr7;5.0;9.0\n",
        "t.txt",
        column="s",
        columns={"chrom": "where", "start": "a", "end": "b"},
    )
    assert (rows.name, rows.start.tolist(), rows.end.tolist()) == (["chr7:5-9"], [5], [9])


def test_a_name_may_be_a_locus_as_in_fasta(tmp_path: Path) -> None:
    rows = read(tmp_path, "name\tseq\nchr1:5-9(-)\tACGT\nchr1:5-10\tACGT\n", "t.tsv")
    assert (rows.chrom, rows.start.tolist(), rows.strand) == (["chr1", ""], [5, -1], ["-", "."])


def test_comments_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    rows = read(tmp_path, b"\xef\xbb\xbf## made by x\n# on a day\n\nname,seq\r\n\r\na,ACGT\r\n\nb,CC\n")
    assert (rows.name, texts(rows)) == (["a", "b"], ["ACGT", "CC"])


def test_tabs_quotes_and_delimiters_in_names(tmp_path: Path) -> None:
    rows = read(tmp_path, 'name\tseq\n"a\tb"\tAC\n"say ""x"", y"\tGG\n', "t.tsv")
    assert rows.name == ["a\tb", 'say "x", y']
    assert read(tmp_path, "name,seq\na\tb,AC\n").name == ["a\tb"]


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_line_of_a_million_characters(tmp_path: Path, quote: str) -> None:
    letters = "ACGT" * 250_000
    assert texts(read(tmp_path, f"name,seq\na,{quote}{letters}{quote}\n")) == [letters]


BAD_LINES = [
    ("b,AC,GT", "3 fields where the header has 2"),
    ("b", "1 field where the header has 2"),
    ("b,", "it has no sequence"),
    ("b,ACXT", "'X' at position 2"),
    ("b,MKVLPQ", "'L' at position 3"),
    ("b,ACé", "'é' at position 2"),
    ('b,"AC', "its quotes do not close within the line"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_LINES)
def test_bad_lines_are_named_and_stay_in_place(tmp_path: Path, line: str, problem: str) -> None:
    rows = read(tmp_path, f"name,seq\na,ACGT\n\n{line}\nc,GG\n")
    assert "row 1 " in str(rows.problem[1])
    assert "(t.csv, line 4): " in str(rows.problem[1])
    assert problem in str(rows.problem[1])
    assert rows.codes[1] is None
    assert [decode(rows.codes[i]) for i in (0, 2)] == ["ACGT", "GG"]


def test_a_line_that_is_not_utf8(tmp_path: Path) -> None:
    rows = read(tmp_path, b"name,seq\ncaf\xe9,ACGT\nb,AC\n")
    assert str(rows.problem[0]).endswith("(t.csv, line 2): the line is not UTF-8 text")
    with pytest.raises(UserError, match=r"t\.csv, line 1: the header is not UTF-8 text"):
        read(tmp_path, b"caf\xe9,seq\nb,AC\n")


LOCI = [
    ("chr1,-1,3", "start -1 is negative"),
    ("chr1,9,5", "end 5 lies before start 9"),
    ("chr1,1,4", "its locus 1-4 has 3 bases, and its sequence 4; coordinates are 0-based"),
    ("chr1,0,900", "has 900 bases, and its sequence 4"),
    ("chr1,x,4", "start is 'x'; expected a whole number"),
    ("chr1,0,4.5", "end is '4.5'"),
    (",0,4", "a start and no chromosome"),
    ("chr1,0,99999999999999999999", "end is '99999999999999999999'"),
]


@pytest.mark.parametrize(("locus", "problem"), LOCI)
def test_loci_that_cannot_be(tmp_path: Path, locus: str, problem: str) -> None:
    text = f"chrom,start,end,seq\n{locus},ACGT\n"
    rows = read(tmp_path, text)
    assert problem in str(rows.problem[0])
    assert "dataset.columns.chrom=none" in str(rows.problem[0])
    assert texts(read(tmp_path, text, columns={"chrom": "none"})) == ["ACGT"]


def test_a_strand_that_cannot_be(tmp_path: Path) -> None:
    assert "strand is 'x'" in str(read(tmp_path, "strand,seq\nx,ACGT\n").problem[0])


@pytest.mark.parametrize(
    ("content", "name", "settings", "message"),
    [
        ("", "t.csv", {}, "is empty; expected a first line that names the columns"),
        ("\n\n", "t.csv", {}, "is empty"),
        ("name,seq\n", "t.csv", {}, "holds no rows below its header"),
        (
            "name\tseq\na\tA\n",
            "t.csv",
            {},
            "its name says comma, the header has tabs; give dataset.delimiter=tab",
        ),
        ("a,b\tc\n", "t.txt", {}, "has comma and tabs; say dataset.delimiter=comma"),
        ("a,seq\n", "t.csv", {"delimiter": "pipe"}, "dataset.delimiter=pipe, the header has commas"),
        ("a,b\nx,ACGT\n", "t.csv", {}, "no column is called sequence or seq; its columns are 'a', 'b'"),
        ("ACGTACGT\nGGGGTTTT\n", "t.csv", {}, "no column is called sequence or seq; its columns are 'ACGTACGT'"),
        ("seq,sequence\n", "t.csv", {}, "2 columns may be the sequence"),
        ("seq,b\n", "t.csv", {"column": "c"}, r"has no column 'c' \(dataset\.column\); its columns are 'seq', 'b'"),
        ("c,c\n", "t.csv", {"column": "c"}, r"has 2 columns 'c'"),
        ("seq,b\n", "t.csv", {"columns": {"name": "x"}}, r"has no column 'x' \(dataset\.columns\.name\)"),
        (
            "seq,b\n",
            "t.csv",
            {"columns": {"chrom": "b"}},
            r"a locus needs chrom, start and end; give dataset\.columns\.start",
        ),
        ('"seq,b\n', "t.csv", {}, "line 1: the header cannot be read"),
    ],
)
def test_tables_that_cannot_be_read(
    tmp_path: Path, content: str, name: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content, name, **settings)
    assert str(tmp_path / name) in str(caught.value)


def test_truncated_gzip(tmp_path: Path) -> None:
    letters = "".join(np.random.RandomState(0).choice(list("ACGT"), 5000))
    content = gzip.compress(f"name,seq\na,{letters}\nb,{letters[::-1]}\n".encode())
    with pytest.raises(UserError, match=r"t\.csv\.gz is truncated after line \d"):
        read(tmp_path, content[:-900], "t.csv.gz")
    with pytest.raises(UserError, match=r"t\.csv\.gz is truncated after line 0"):
        read(tmp_path, content[:15], "t.csv.gz")


# --- Parquet and Arrow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
def test_types_of_text(tmp_path: Path, type_: pa.DataType) -> None:
    seq = pa.array(["ACGT", None, "", " acg "]).cast(type_)
    if pa.types.is_string_view(type_):
        path = tmp_path / "t.arrow"
        feather.write_feather(pa.table({"seq": seq}), path, compression="uncompressed")
    else:
        path = write_parquet(tmp_path / "t.parquet", seq=seq)
    rows = rows_of(TableSource(path))
    assert [None if codes is None else decode(codes) for codes in rows.codes] == ["ACGT", None, None, "ACG"]
    assert f"row 1 'row_1' ({path.name}): it has no sequence" in str(rows.problem[1])
    assert rows.problem[2] is not None


def test_numbers_and_gaps_in_other_columns(tmp_path: Path) -> None:
    columns = {"chrom": ["chr1", None], "start": [1.0, None], "end": [5.0, None], "id": [7, 8], "seq": ["ACGT", "ACGT"]}
    rows = rows_of(TableSource(write_parquet(tmp_path / "t.parquet", **columns)))
    assert (rows.name, rows.chrom, rows.start.tolist()) == (["7", "8"], ["chr1", ""], [1, -1])


def test_a_column_of_one_hot_with_gaps_and_wrong_values(tmp_path: Path) -> None:
    values = one_hot_of(["ACGTA", "CCCCC", "GGGGG"]).astype(np.float32)
    values[1, 2, 3] = 0.5
    column = pa.concat_arrays([lists(values), pa.nulls(1, lists(values).type)])
    rows = rows_of(TableSource(write_parquet(tmp_path / "t.parquet", seq=column)))
    assert [None if codes is None else decode(codes) for codes in rows.codes] == ["ACGTA", None, "GGGGG", None]
    assert "position 3 (0-based) is not one-hot: soft values" in str(rows.problem[1])
    assert "no sequence" in str(rows.problem[3])


@pytest.mark.parametrize(
    ("column", "settings", "message"),
    [
        (pa.array([1, 2]), {}, "column 'seq' is int64; expected text, or one-hot or codes as lists"),
        (pa.array([[1, 2], [3]]), {}, r"'seq' holds lists of different sizes; expected all like the first, 2$"),
        (pa.array([[[1, 0], [0, 1]], [[1, 0], [1]]]), {}, "expected one-hot .* or codes"),
        (pa.array([{"a": 1}]), {}, "column 'seq' is struct<.*>; expected text"),
        (pa.array([["A", "C"]]), {}, "column 'seq' is list<element: string>; expected text, numbers or lists"),
        (lists(np.zeros((2, 4, 4))), {}, "may be .* say which: dataset.axes=N4L or NL4"),
        (lists(np.zeros((2, 4, 5))), {"axes": "NL4"}, "is not dataset.axes=NL4; it may be N4L"),
        (lists(np.zeros((2, 3, 5))), {}, r"has the shape \(0, 3, 5\); expected one-hot"),
    ],
)
def test_columns_that_cannot_be_sequences(
    tmp_path: Path, column: pa.Array, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rows_of(TableSource(write_parquet(tmp_path / "t.parquet", seq=column), **settings))  # type: ignore[arg-type]


def test_binary_tables_without_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t\.parquet holds no rows"):
        rows_of(TableSource(write_parquet(tmp_path / "t.parquet", seq=pa.array([], pa.string()))))


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
def test_binary_tables_cut_short(tmp_path: Path, name: str, keep: float) -> None:
    sequences = ["".join(np.random.RandomState(i).choice(list("ACGT"), 50)) for i in range(200)]
    path = tmp_path / name
    if name == "t.arrow":
        feather.write_feather(pa.table({"seq": sequences}), path)
    else:
        write_parquet(path, seq=sequences)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(UserError, match=rf"{name} is truncated or damaged: .*copy or download it again"):
        rows_of(TableSource(path))


def test_old_feather_and_a_delimiter_for_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Feather version 1; write it again"):
        rows_of(TableSource(write(tmp_path / "t.feather", b"FEA1 and more")))
    with pytest.raises(UserError, match=r"dataset\.delimiter=tab is for text"):
        TableSource(write_parquet(tmp_path / "t.parquet", seq=["A"]), delimiter="tab")
