"""Further inputs of the model as the sources give them: which row gets which values, and what is refused."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyBigWig
import pytest
import zarr

from dlshap_core.sequences import decode
from pipeline.config.compose import compose_config
from pipeline.config.dataset_args import absolute, entry_problems, files_of, parse
from pipeline.config.registry import schema
from pipeline.inputs.base import Row, batched
from pipeline.inputs.bigwig import Tracks
from pipeline.inputs.ingest import Ingested, ingest, signature
from pipeline.inputs.open import open_source
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import random_sequences

N, LENGTH = 7, 30
SEQUENCES = random_sequences(N, LENGTH, seed=5)


class Kept:
    """Takes rows and keeps them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def append(self, **row: Any) -> None:
        self.rows.append(row)


def read(*overrides: str) -> tuple[list[dict[str, Any]], Ingested]:
    """The good rows of an input."""
    dataset, kept = compose_config(overrides).dataset, Kept()
    return kept.rows, ingest(open_source(dataset), dataset, lambda *first: kept, lambda n: None)


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(*overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def table(folder: Path, cells: list[str], sequences: list[str] = SEQUENCES) -> list[str]:
    lines = [
        "name,sequence,dose",
        *(f"s{i},{seq},{cell}" for i, (seq, cell) in enumerate(zip(sequences, cells, strict=True))),
    ]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return ["dataset=table", f"dataset.path={folder / 't.csv'}", "dataset.args=[dose]"]


def fasta(folder: Path, args: str, sequences: list[str] = SEQUENCES) -> list[str]:
    (folder / "a.fa").write_text("".join(f">s{i}\n{seq}\n" for i, seq in enumerate(sequences)))
    return ["dataset=fasta", f"dataset.path={folder / 'a.fa'}", f"dataset.args={args}"]


def saved(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


# --- what is written ------------------------------------------------------------------------------------------------


def test_what_is_written_is_understood() -> None:
    assert parse("dose").name == "dose"
    assert parse(7).name == "7"
    assert (parse("score:float").name, parse("score:float").dtype) == ("score", "float32")
    assert (parse("a b.npy").paths, parse("a b.npy").key) == (("a b.npy",), None)
    assert (parse("d/x.npz:y/z").paths, parse("d/x.npz:y/z").key) == (("d/x.npz",), "y/z")
    assert (parse("x.zarr:y:int").key, parse("x.zarr:y:int").dtype) == ("y", "int64")
    assert parse("my.zarr/x.npy").paths == ("my.zarr/x.npy",)
    assert parse("C.bigWig").is_track
    assert parse(["a.bw", "b.BW"]).paths == ("a.bw", "b.BW")
    assert files_of(["dose", "x.npz:y", ["a.bw", "b.bw"]]) == ["x.npz", "a.bw", "b.bw"]
    here = str(Path().absolute())
    assert absolute(["dose", "x.npz:y", ["a.bw", "b.bw"]]) == [
        "dose",
        f"{here}/x.npz:y",
        [f"{here}/a.bw", f"{here}/b.bw"],
    ]


@pytest.mark.parametrize(
    ("dataset", "args", "message"),
    [
        ("fasta", ["dose"], "dataset=fasta has no column or array 'dose'; expected a path such as x.npy"),
        ("tiles", ["score"], "dataset=tiles has no column or array 'score'"),
        ("table", ["c.bw"], "c.bw is a track of a genome, and dataset=table has no windows of one; use dataset=loci"),
        ("loci", [["a.bw"]], "[a.bw] is a list; expected two bigWigs, of the plus and the minus strand"),
        ("loci", [["a.bw", "b.npy"]], "[a.bw,b.npy] is a list; expected two bigWigs"),
        ("loci", ["c.bw:float"], "c.bw:float: a bigWig has no keys, and its values are float32"),
        ("table", [""], "dataset.args holds an empty name"),
        ("table", [None], "None is neither a name nor a path; quote a name that looks like something else"),
        ("table", [{"a": 1}], "{'a': 1} is neither a name nor a path"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(dataset: str, args: list[Any], message: str) -> None:
    (problem,) = entry_problems(
        dataset, args, *(getattr(schema("dataset", dataset), name) for name in ("has_columns", "is_of_genome"))
    )
    assert message in problem


# --- text -----------------------------------------------------------------------------------------------------------


def test_fractions_of_a_text_are_float32(tmp_path: Path) -> None:
    numbers = np.random.RandomState(0).randint(0, 2**32, 600, dtype=np.uint64).astype(np.uint32).view(np.float32)
    finite = numbers[np.isfinite(numbers)]
    rows, ingested = read(*table(tmp_path, [str(number) for number in finite], [SEQUENCES[0]] * len(finite)))
    assert ingested.extra_inputs == [{"shape": [1], "dtype": "float32"}]
    np.testing.assert_array_equal([row["arg_0"][0] for row in rows], finite)


def test_whole_numbers_of_a_text_are_int64_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    cells = ["0", "-3", "+7", str(2**53 + 1), "12", " 5 ", "9"]
    settings = table(tmp_path, cells)
    rows, ingested = read(*settings)
    assert [int(row["arg_0"][0]) for row in rows] == [int(cell) for cell in cells], "to the last digit"
    assert ingested.extra_inputs == [{"shape": [1], "dtype": "int64"}]
    rows, ingested = read(*settings, "dataset.args=[dose:float]")
    assert ingested.extra_inputs == [{"shape": [1], "dtype": "float32"}]
    assert rows[1]["arg_0"].tolist() == [-3.0]
    rows, _ = read(*table(tmp_path, ["1.0", "2", "3e1", "4", "5", "6", "7"]), "dataset.args=[dose:int]")
    assert [int(row["arg_0"][0]) for row in rows] == [1, 2, 30, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("cell", "setting", "expected"),
    [
        ("", "dose", "is ''; expected a number"),
        ("abc", "dose", "is 'abc'; expected a number"),
        ("nan", "dose", "is 'nan'; expected a number"),
        ("1_0", "dose", "is '1_0'; expected a number"),
        ("inf", "dose", "is inf; expected finite numbers, which float32 can hold"),
        ("1e39", "dose", "is 1e+39; expected finite numbers, which float32 can hold"),
        ("2.5", "dose:int", "is 2.5; expected whole numbers, which int64 can hold"),
    ],
)
def test_a_bad_cell_is_a_bad_row(tmp_path: Path, cell: str, setting: str, expected: str) -> None:
    settings = [*table(tmp_path, ["1", "2", "3", cell, "4", "5", "6"]), f"dataset.args=[{setting}]"]
    found = refused(*settings)
    assert found.startswith("1 of 7 rows cannot be used: row 3 's3': dataset.args: column 'dose' of t.csv, line 5, ")
    assert expected in found
    assert found.endswith("dataset.on_bad=skip leaves them out")
    rows, _ = read(*settings, "dataset.on_bad=skip")
    assert [(row["name"], float(row["arg_0"][0])) for row in rows] == [
        ("s0", 1), ("s1", 2), ("s2", 3), ("s4", 4), ("s5", 5), ("s6", 6)
    ]  # fmt: skip


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    settings = table(tmp_path, ["1"] * N)
    found = refused(*settings, "dataset.args=[dosis]")
    assert found == (
        f"{tmp_path / 't.csv'} has no column 'dosis' (dataset.args); its columns are 'name', 'sequence', 'dose'"
    )
    assert "7 of 7 rows cannot be used: row 0 's0': dataset.args: column 'name'" in refused(
        *settings, "dataset.args=[name]"
    )


# --- Parquet and Arrow ----------------------------------------------------------------------------------------------


def parquet(folder: Path, column: Any, args: str = "x") -> list[str]:
    pq.write_table(pa.table({"sequence": SEQUENCES, "x": column}), folder / "t.parquet", row_group_size=3)
    return ["dataset=table", f"dataset.path={folder / 't.parquet'}", f"dataset.args=[{args}]"]


def fixed(values: list[Any], inner: pa.DataType, *sizes: int) -> pa.Array:
    type_ = inner
    for size in reversed(sizes):
        type_ = pa.list_(type_, size)
    return pa.array(values, type_)


@pytest.mark.parametrize(
    ("column", "shape", "dtype"),
    [
        (pa.array(range(N), pa.uint8()), [1], "int64"),
        (pa.array([0.5] * N, pa.float16()), [1], "float32"),
        (pa.array([True] * N), [1], "float32"),
        (fixed([[i, i + 1] for i in range(N)], pa.int32(), 2), [2], "int64"),
        (fixed([[[i, 1.5, 2], [3, 4, 5]] for i in range(N)], pa.float64(), 2, 3), [2, 3], "float32"),
    ],
    ids=["uint8", "float16", "bool", "list", "list of lists"],
)
def test_columns_of_numbers_and_of_fixed_size_lists(
    tmp_path: Path, column: pa.Array, shape: list[int], dtype: str
) -> None:
    rows, ingested = read(*parquet(tmp_path, column))
    assert ingested.extra_inputs == [{"shape": shape, "dtype": dtype}]
    expected = [np.array(value, dtype).reshape(shape) for value in column.to_pylist()]
    for row, value in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row["arg_0"], value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["a"] * N), "is string; expected numbers, or fixed-size lists of them"),
        (pa.array([[1.0]] * N), "list<.*double>; expected numbers, or fixed-size lists of them"),
        (pa.array([0] * N, pa.timestamp("s")), r"is timestamp\[.*; expected numbers"),
        (pa.array([*range(N - 1), None]), "1 of 7 rows .*row 6 'row_6': .*column 'x' of t.parquet is empty"),
        (pa.array([0.0, float("nan"), *[1.0] * 5]), "row 1 'row_1': dataset.args: column 'x' of t.parquet is nan; exp"),
        (fixed([[1, 2]] * 6 + [[1, None]], pa.int64(), 2), "row 6 .*column 'x' of t.parquet is empty, or has an empty"),
        (fixed([[1.0, 2.0]] * 6 + [[1.0, None]], pa.float32(), 2), "row 6 .*'x' of t.parquet is empty, or has"),
        (fixed([[[1], [2]]] * 6 + [[[1], None]], pa.int64(), 2, 1), "column 'x': a list holds an empty place"),
    ],
)  # fmt: skip
def test_columns_that_hold_no_numbers_are_refused(tmp_path: Path, column: pa.Array, message: str) -> None:
    assert re.search(message, refused(*parquet(tmp_path, column)))


# --- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (1, LENGTH), (2, 3, LENGTH)])
@pytest.mark.parametrize("kind", ["npy", "Fortran npy", "npz", "zarr"])
def test_arrays_of_any_trailing_shape(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    values = np.random.RandomState(0).rand(N, *shape).astype(np.float32)
    if kind == "zarr":
        zarr.create_group(tmp_path / "x.zarr").create_array("v", data=values, chunks=(2, *shape))
    elif kind == "npz":
        np.savez(tmp_path / "x.npz", v=values, w=values)
    else:
        saved(tmp_path / "x.npy", np.asfortranarray(values) if kind.startswith("F") else values)
    where = {"zarr": "x.zarr:v", "npz": "x.npz:v"}.get(kind, "x.npy")
    rows, ingested = read(*fasta(tmp_path, f"[{tmp_path / where}]"))
    assert ingested.extra_inputs == [{"shape": list(shape), "dtype": "float32"}]
    np.testing.assert_array_equal(np.array([row["arg_0"] for row in rows]), values)


NAN = np.where(np.arange(2 * N) == 9, np.nan, 0).reshape(N, 2)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((N - 1, 2)), r"x\.npy has 6 rows; expected one for each record .*, and the input has record 6 \(cou"),
        (np.zeros((N + 3, 2)), r"x\.npy has 10 rows; expected one for each record .*, and the input has 7 records"),
        (np.array(["a"] * N), r"x\.npy holds text; expected numbers"),
        (np.zeros((N, 0)), r"x\.npy has the shape \(7, 0\); expected a row for each record"),
        (np.array(3.0), r"x\.npy has the shape \(\); expected a row for each record"),
        (np.zeros(N, complex), r"x\.npy holds values of kind 'c'; expected numbers"),
        (np.full(N, 2**63, np.uint64), r"7 of 7 rows .* is 9223372036854775808; expected whole numbers, which int64"),
        (NAN, r"row 4 's4': dataset\.args: row 4 of \S+x\.npy is nan at \(1,\) of it; expected finite numbers"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    saved(tmp_path / "x.npy", array)
    assert re.search(message, refused(*fasta(tmp_path, f"[{tmp_path / 'x.npy'}]")))


def test_files_and_keys_that_are_not_there_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(N), b=np.zeros(N))
    assert "no.npy: no such file" in refused(*fasta(tmp_path, f"[{tmp_path / 'no.npy'}]"))
    assert re.search(
        r"2 arrays: a, b; say which: dataset\.args=\[\S+x\.npz:a\]", refused(*fasta(tmp_path, f"[{tmp_path}/x.npz]"))
    )
    assert re.search(r"x\.npz:c\]: \S+ holds 2 arrays: a, b", refused(*fasta(tmp_path, f"[{tmp_path}/x.npz:c]")))
    array = ["dataset=array", f"dataset.path={tmp_path / 'x.npz'}", "dataset.key=a", "dataset.axes=NL"]
    assert re.search(r"dataset\.args=\[c\]: \S+ holds 2 arrays", refused(*array, "dataset.args=[c]"))
    saved(tmp_path / "o.npy", np.array([{}] * N, dtype=object))
    assert "Python objects" in refused(*fasta(tmp_path, f"[{tmp_path}/o.npy]"))


def test_a_row_that_is_left_out_takes_its_values_with_it(tmp_path: Path) -> None:
    sequences = [*SEQUENCES]
    sequences[2], sequences[5] = "N" * LENGTH, "ACGT"
    path = saved(tmp_path / "x.npy", np.arange(2 * N, dtype=np.float32).reshape(N, 2))
    rows, ingested = read(*fasta(tmp_path, f"[{path}]", sequences), "dataset.on_bad=skip")
    assert ingested.n_bad == 2
    assert {row["name"]: row["arg_0"].tolist() for row in rows} == {
        f"s{i}": [2 * i, 2 * i + 1] for i in (0, 1, 3, 4, 6)
    }


def test_large_values_come_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.inputs.extra_inputs._BYTES_PER_BATCH", 100)
    path = saved(tmp_path / "x.npy", np.arange(N * 10, dtype=np.float32).reshape(N, 10))
    dataset = compose_config(fasta(tmp_path, f"[{path}]")).dataset
    batches = list(open_source(dataset).batches())
    assert [len(rows) for rows in batches] == [2, 2, 2, 1]
    assert [rows.extra_inputs[i][0][0] for rows in batches for i in range(len(rows))] == [10.0 * i for i in range(N)]


def test_files_of_values_are_part_of_the_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "x.npy", np.zeros(N))
    monkeypatch.chdir(tmp_path)
    settings = fasta(tmp_path, "[x.npy]")
    one = signature(compose_config(settings).dataset)
    assert one is not None
    assert one == signature(compose_config([*settings, f"dataset.args=[{tmp_path / 'x.npy'}]"]).dataset)
    assert str(tmp_path / "x.npy") in one["files"]
    assert one["settings"]["args"] == [str(tmp_path / "x.npy")]


# --- windows of a genome --------------------------------------------------------------------------------------------

GENOME = random_sequences(1, 200, seed=8)[0]
PLUS, MINUS = (np.random.RandomState(seed).rand(200).astype(np.float32) for seed in (1, 2))


@pytest.fixture
def tracks(tmp_path: Path) -> Path:
    """A folder with a genome, plus.bw and minus.bw, whose bases 20 to 29 have no value."""
    (tmp_path / "genome.fa").write_text(f">chr1\n{GENOME}\n>chr2\n{GENOME[:90]}\n")
    for name, values in (("plus", PLUS), ("minus", MINUS)):
        with pyBigWig.open(str(tmp_path / f"{name}.bw"), "w") as file:
            file.addHeader([("chr1", 200)])
            for start, stop in ((0, 20), (30, 200)):
                file.addEntries("chr1", start, values=values[start:stop], span=1, step=1)
    return tmp_path


def filled(values: np.ndarray) -> np.ndarray:
    return np.where((np.arange(200) >= 20) & (np.arange(200) < 30), np.float32(0), values)


def loci(folder: Path, lines: str, args: str, *more: str) -> list[str]:
    (folder / "l.bed").write_text(lines)
    files = [f"dataset.loci={folder / 'l.bed'}", f"dataset.genome={folder / 'genome.fa'}"]
    return ["dataset=loci", *files, f"dataset.length={LENGTH}", f"dataset.args={args}", *more]


def windows(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], slice]]:
    return ((row, slice(int(row["start"]), int(row["end"]))) for row in rows)


def test_a_track_is_that_of_the_window_and_0_where_it_has_none(tracks: Path) -> None:
    rows, ingested = read(*loci(tracks, "chr1\t10\t40\nchr1\t100\t101\n", f"[{tracks}/plus.bw]"))
    assert ingested.extra_inputs == [{"shape": [1, LENGTH], "dtype": "float32"}]
    for row, where in windows(rows):
        np.testing.assert_array_equal(row["arg_0"], filled(PLUS)[None, where])


@pytest.mark.parametrize("strand", ["apply", "ignore"])
def test_tracks_turn_with_their_rows_and_strands_change_places(tracks: Path, strand: str) -> None:
    pair = f"[[{tracks}/plus.bw,{tracks}/minus.bw],{tracks}/plus.bw]"
    lines = "chr1\t10\t40\ta\t0\t+\nchr1\t60\t90\tb\t0\t-\nchr1\t100\t130\tc\t0\t.\n"
    rows, _ = read(*loci(tracks, lines, pair, f"dataset.strand={strand}"))
    for row, where in windows(rows):
        both = np.stack([filled(PLUS)[where], filled(MINUS)[where]])
        turned = strand == "apply" and row["name"] == "b"
        np.testing.assert_array_equal(row["arg_0"], both[::-1, ::-1] if turned else both)
        np.testing.assert_array_equal(row["arg_1"], both[:1, ::-1] if turned else both[:1])
        if turned:
            assert decode(row["codes"]) == GENOME[where][::-1].translate(str.maketrans("ACGT", "TGCA"))


def test_tracks_that_do_not_reach_a_window_are_problems_of_its_row(tracks: Path) -> None:
    lines = "chr1\t10\t40\nchr2\t10\t40\n"
    found = refused(*loci(tracks, lines, f"[{tracks}/plus.bw]"))
    assert (
        "1 of 2 rows cannot be used: row 1 'chr2:10-40': dataset.args: no chromosome 'chr2' in plus.bw; it has chr1"
        in found
    )
    rows, _ = read(*loci(tracks, lines, f"[{tracks}/plus.bw]"), "dataset.on_bad=skip")
    assert [row["chrom"] for row in rows] == ["chr1"]
    with pyBigWig.open(str(tracks / "short.bw"), "w") as file:
        file.addHeader([("chr1", 35)])
        file.addEntries("chr1", 0, values=[1.0, float("inf")], span=1, step=1)
    found = refused(*loci(tracks, lines, f"[{tracks}/short.bw]"))
    assert "the window 10-40 leaves chr1 of short.bw, which spans 0-35; is it of another build of the genome?" in found
    assert "short.bw is infinite at chr1:1-2" in refused(*loci(tracks, "chr1\t0\t30\n", f"[{tracks}/short.bw]"))
    (tracks / "no.bw").write_text("track")
    assert re.search(r"no\.bw cannot be read as a bigWig", refused(*loci(tracks, lines, f"[{tracks}/no.bw]")))


def test_a_track_needs_the_library_that_reads_it(tracks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    found = refused(*loci(tracks, "chr1\t10\t40\n", f"[{tracks}/plus.bw]"))
    assert found == "pyBigWig is not installed; `pip install 'dlshap[exports]'` adds it"


def test_columns_of_loci_by_name_and_number(tracks: Path) -> None:
    peaks = "chr1\t10\t40\ta\t700\t.\t1.5\t2.5\t3.5\t7\nchr1\t60\t90\tb\t800\t.\t4\t5\t6\t8\n"
    args = "[score,signalValue,PVALUE,9,peak]"
    rows, ingested = read(*loci(tracks, f"# a comment\n\n{peaks}", args))
    assert [arg["dtype"] for arg in ingested.extra_inputs] == ["int64", "float32", "float32", "float32", "int64"]
    assert [[float(row[f"arg_{i}"][0]) for i in range(5)] for row in rows] == [
        [700, 1.5, 2.5, 3.5, 7],
        [800, 4, 5, 6, 8],
    ]
    bed = "chr1\t10\t40\ta\t700\nchr1\t60\t90\tb\n"
    assert "has no column of numbers 'signalValue'; expected start, end or score, the number" in refused(
        *loci(tracks, bed, "[signalValue]")
    )
    assert (
        "1 of 2 rows cannot be used: row 1 'b': dataset.args: column 5 of l.bed, line 2, is not there; expected"
        in refused(*loci(tracks, bed, "[5]"))
    )


def test_tiles_take_the_row_of_their_window_those_left_out_counted(tracks: Path) -> None:
    (tracks / "genome.fa").write_text(f">chr1\n{GENOME[:60]}{'N' * 30}{GENOME[90:200]}\n")
    settings = ["dataset=tiles", f"dataset.genome={tracks / 'genome.fa'}", f"dataset.length={LENGTH}"]
    path = saved(tracks / "x.npy", np.arange(6, dtype=np.float32))
    rows, _ = read(*settings, f"dataset.args=[{path},{tracks}/minus.bw]")
    assert [float(row["arg_0"]) for row in rows] == [0, 1, 3, 4, 5]
    assert [float(row["source_row"]) for row in rows] == [0, 1, 3, 4, 5]
    for row, where in windows(rows):
        np.testing.assert_array_equal(row["arg_1"], filled(MINUS)[None, where])
    saved(path, np.arange(5, dtype=np.float32))
    assert "has 5 rows" in refused(*settings, f"dataset.args=[{path}]")
    (tracks / "genome.fa").write_text(f">chr1\n{GENOME[:150]}{'N' * 50}\n")  # the last window is left out
    assert "has 5 rows; expected one for each record of the input, also for those" in refused(
        *settings, f"dataset.args=[{path}]"
    )


def test_both_alleles_of_a_variant_have_the_values_of_its_line(tracks: Path) -> None:
    lines = [f"chr1\t{p + 1}\t.\t{GENOME[p]}\t{alt}\t.\t.\t.\n" for p, alt in ((50, "A,C"), (5, "A"), (90, "G"))]
    (tracks / "v.vcf").write_text("##fileformat=VCFv4.2\n" + "".join(lines))
    path = saved(tracks / "x.npy", np.arange(3, dtype=np.float32))
    settings = ["dataset=variants", f"dataset.vcf={tracks / 'v.vcf'}", f"dataset.genome={tracks / 'genome.fa'}"]
    rows, ingested = read(
        *settings, f"dataset.length={LENGTH}", f"dataset.args=[{path},{tracks}/plus.bw]", "dataset.on_bad=skip"
    )
    assert ingested.n_bad == 2, "the window of the second leaves the chromosome"
    assert [float(row["arg_0"]) for row in rows] == [0, 0, 0, 0, 2, 2]
    for row, where in windows(rows):
        np.testing.assert_array_equal(row["arg_1"], filled(PLUS)[None, where])


def _values_that_are_none(data: bytearray) -> None:
    start = int.from_bytes(data[16:24], "little")
    data[start + 8 : start + 40] = b"\xff" * 32


def _index_in_a_circle(data: bytearray) -> None:
    """The library follows it until its stack is full."""
    root = int.from_bytes(data[24:32], "little") + 48
    data[root : root + 4] = struct.pack("<BBH", 0, 0, 1)
    data[root + 20 : root + 28] = struct.pack("<Q", root)


def _blocks_of_4_gb(data: bytearray) -> None:
    data[52:56] = b"\xff" * 4


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_values_that_are_none, r"\(.*\); copy or download it again"),
        (_index_in_a_circle, r": the process that reads it ended \(SIG[A-Z]+\); copy or download it again"),
        (_blocks_of_4_gb, r"\(.*\); copy or download it again"),
    ],
)
def test_a_bigwig_whose_values_are_damaged(tmp_path: Path, spoil: Callable[[bytearray], None], told: str) -> None:
    with pyBigWig.open(str(tmp_path / "x.bw"), "w") as track:
        track.addHeader([("chr1", 1000)])
        track.addEntries("chr1", list(range(0, 900, 10)), values=[1.0] * 90, span=5)
    data = bytearray((tmp_path / "x.bw").read_bytes())
    spoil(data)
    (tmp_path / "x.bw").write_bytes(data)
    (rows,) = batched([Row(0, np.zeros(4, np.uint8), None, "a", "chr1", 0, 4)])
    with pytest.raises(UserError, match=rf"x\.bw is damaged at chr1:0-4 ?{told}$"):
        Tracks([tmp_path / "x.bw"], 4, "ignore").take(rows)


def test_a_negative_infinity_is_infinite(tmp_path: Path) -> None:
    with pyBigWig.open(str(tmp_path / "x.bw"), "w") as track:
        track.addHeader([("chr1", 100)])
        track.addEntries("chr1", [2], values=[float("-inf")], span=1)
    (rows,) = batched([Row(i, np.zeros(4, np.uint8), None, "a", "chr1", 50 * i, 50 * i + 4) for i in range(2)])
    tracks = Tracks([tmp_path / "x.bw"], 4, "ignore")
    _, problems = tracks.take(rows)
    assert problems == ["x.bw is infinite at chr1:2-3; expected finite numbers", None]
    tracks.finish(2)
