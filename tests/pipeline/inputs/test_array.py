"""Arrays: every order of axes, and what must not be taken for sequences."""

from __future__ import annotations

import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from dlshap_core.sequences import decode
from pipeline.config.compose import compose_config
from pipeline.inputs import numbers
from pipeline.inputs.array import ArraySource
from pipeline.inputs.base import RowBatch
from pipeline.inputs.open import open_source
from pipeline.messages.errors import UserError
from tests.pipeline.inputs.file_forms import codes_of, one_hot_of

SEQUENCES = ["ACGTN", "CCCCC", "GATTA"]


def read(path: Path, **settings: str) -> RowBatch:
    (rows,) = ArraySource(path, **settings).batches()
    return rows


def read_array(folder: Path, values: np.ndarray, **settings: str) -> RowBatch:
    np.save(folder / "x.npy", values)
    return read(folder / "x.npy", **settings)


def texts(rows: RowBatch) -> list[str]:
    assert rows.problem == [None] * len(rows)
    return [decode(codes) for codes in rows.codes if codes is not None]


@pytest.mark.parametrize("type_", ["bool", "int8", "uint8", "int64", "float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("block", [1, 20, 1 << 22])
def test_types_and_orders(tmp_path: Path, type_: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_BLOCK_VALUES", block)
    values = one_hot_of(SEQUENCES).astype(type_)
    assert texts(read_array(tmp_path, values)) == SEQUENCES
    assert texts(read_array(tmp_path, values.transpose(0, 2, 1))) == SEQUENCES
    if type_ != "bool":
        assert texts(read_array(tmp_path, codes_of(SEQUENCES).astype(type_))) == SEQUENCES
    rows = read_array(tmp_path, values)
    assert (rows.name, rows.chrom, rows.start.tolist()) == (["row_0", "row_1", "row_2"], [""] * 3, [-1] * 3)


def test_four_by_four_must_be_said(tmp_path: Path) -> None:
    values = one_hot_of(["ACGT", "AAAC"])
    with pytest.raises(
        UserError, match=r"\(2, 4, 4\), which may be \(N, 4, L\) or \(N, L, 4\).*dataset\.axes=N4L or NL4"
    ):
        read_array(tmp_path, values)
    assert texts(read_array(tmp_path, values, axes="N4L")) == ["ACGT", "AAAC"]
    assert texts(read_array(tmp_path, values.transpose(0, 2, 1), axes="NL4")) == ["ACGT", "AAAC"]
    rows = read_array(tmp_path, values, axes="NL4")
    assert rows.problem[0] is None, "the identity reads both ways"
    assert "more than one base is 1; are the axes in another order? dataset.axes" in str(rows.problem[1])


@pytest.mark.parametrize("values", [one_hot_of(["ACGTTT"])[0], one_hot_of(["ACGTTT"])[0].T.copy()])
def test_one_sequence_without_an_axis_of_rows(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"looks like one one-hot sequence.*array\[None\].*dataset\.axes=NL"):
        read_array(tmp_path, values)
    assert len(read_array(tmp_path, values, axes="NL")) == len(values)
    assert texts(read_array(tmp_path, values[None] if len(values) == 4 else values.T[None])) == ["ACGTTT"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({(1, 2, 3): 0.5}, "(0, 1, 0.5, 0) at position 3 (0-based) is not one-hot: soft values"),
        ({(1, 0, 0): 1}, "(1, 1, 0, 0) at position 0 (0-based) is not one-hot: more than one base is 1"),
        ({(1, 1, 4): np.nan}, "(0, nan, 0, 0) at position 4 (0-based) is not one-hot: it is not finite"),
        ({(1, 1, 4): np.inf}, "it is not finite"),
        ({(1, 1, 4): -1}, "(0, -1, 0, 0) at position 4"),
        ({(1, 1, 4): 2}, "(0, 2, 0, 0) at position 4"),
    ],
)
def test_rows_that_are_not_one_hot(tmp_path: Path, change: dict[tuple[int, ...], float], problem: str) -> None:
    values = one_hot_of(SEQUENCES).astype(np.float32)
    for place, value in change.items():
        values[place] = value
    rows = read_array(tmp_path, values)
    assert [codes is None for codes in rows.codes] == [False, True, False]
    assert str(rows.problem[1]).startswith("row 1 (x.npy): ")
    assert problem in str(rows.problem[1])


@pytest.mark.parametrize(("value", "shown"), [(5, "5"), (-1, "-1"), (0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_codes_that_are_none(tmp_path: Path, value: float, shown: str) -> None:
    values = codes_of(SEQUENCES).astype(np.int16 if isinstance(value, int) else np.float32)
    values[2, 3] = value
    rows = read_array(tmp_path, values)
    assert f"row 2 (x.npy): {shown} at position 3 (0-based); expected codes: 0..3" in str(rows.problem[2])
    assert rows.problem[:2] == [None, None]


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_nothing_is_unpickled(tmp_path: Path, name: str) -> None:
    trap = tmp_path / "it ran"
    values = np.array([Attack(trap)], dtype=object)
    np.save(tmp_path / name, values, allow_pickle=True) if name == "x.npy" else np.savez(tmp_path / name, x=values)
    with pytest.raises(UserError, match="holds Python objects, which are pickled and not loaded"):
        read(tmp_path / name)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Attack(trap)))
    with pytest.raises(UserError, match=r"y\.npy cannot be read"):
        read(tmp_path / "y.npy")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((0, 4, 9)), r"\(0, 4, 9\): it holds no rows"),
        (np.zeros((3, 4, 0)), r"\(3, 4, 0\): its sequences have no bases"),
        (np.zeros((3, 0)), "its sequences have no bases"),
        (np.zeros(7), r"\(7,\); expected one-hot \(N, 4, L\)"),
        (np.float64(3), r"\(\); expected one-hot"),
        (np.zeros((3, 5, 7)), r"\(3, 5, 7\); expected one-hot"),
        (np.zeros((2, 2, 4, 9)), r"\(2, 2, 4, 9\); expected one-hot"),
        (np.array(["ACGT"]), "holds text; .*sequences as text belong in a table or FASTA"),
        (np.zeros(3, dtype=[("a", "i4")]), "holds records"),
        (np.zeros((3, 9), dtype=complex), "holds values of kind 'c'"),
    ],
)
def test_arrays_that_cannot_be_sequences(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_array(tmp_path, values)
    assert str(tmp_path / "x.npy") in str(caught.value)


@pytest.mark.parametrize(
    ("size", "message"),
    [(0, "cannot be read"), (5, "cannot be read"), (60, "cannot be read"), (200, "is truncated in row 3 of 9")],
)
def test_npy_cut_short(tmp_path: Path, size: int, message: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((9, 4, 5), dtype=np.int8))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:size])
    with pytest.raises(UserError, match=rf"x\.npy {message}.*copy or download it again"):
        read(tmp_path / "x.npy")


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=one_hot_of(SEQUENCES))
    assert texts(read(path)) == SEQUENCES
    np.savez(path, x=one_hot_of(SEQUENCES), y=np.zeros(3))
    with pytest.raises(UserError, match=r"x\.npz holds 2 arrays: x, y; say which: dataset\.key=x"):
        read(path)
    with pytest.raises(UserError, match=r"dataset\.key=z: .*x\.npz holds 2 arrays: x, y"):
        read(path, key="z")
    assert texts(read(path, key="x")) == SEQUENCES
    np.savez(path)
    with pytest.raises(UserError, match="holds no array"):
        read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_npz_with_two_arrays_of_one_name(tmp_path: Path) -> None:
    np.savez(path := tmp_path / "x.npz", x=one_hot_of(SEQUENCES), X=one_hot_of(SEQUENCES))
    assert texts(read(path, key="x")) == SEQUENCES
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", archive.read("X.npy"))
    assert texts(read(path, key="X")) == SEQUENCES
    for settings in ({}, {"key": "x"}):
        with pytest.raises(UserError, match="holds two arrays of the name x; save them again"):
            read(path, **settings)


def test_fortran_order(tmp_path: Path) -> None:
    values = np.asfortranarray(one_hot_of(SEQUENCES))
    assert texts(read_array(tmp_path, values)) == SEQUENCES
    np.savez(tmp_path / "x.npz", x=values)
    with pytest.raises(UserError, match=r"Fortran order.*save numpy\.ascontiguousarray\(x\), or as npy"):
        read(tmp_path / "x.npz")


def test_npz_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.random.RandomState(0).randint(0, 4, size=(50, 99)))
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    with pytest.raises(UserError, match="is a truncated npz file"):
        read(path)
    path.write_bytes(whole[:500] + bytes([whole[500] ^ 255]) + whole[501:])
    with pytest.raises(UserError, match=r"x\.npz cannot be read: .*copy or download it again"):
        read(path)


def test_a_key_for_what_has_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.key=x is for npz and Zarr"):
        read_array(tmp_path, one_hot_of(SEQUENCES), key="x")
    zarr.create_array(tmp_path / "x.zarr", data=one_hot_of(SEQUENCES))
    with pytest.raises(UserError, match=r"dataset\.key=x: .*x\.zarr is one array; leave the key out"):
        read(tmp_path / "x.zarr", key="x")


def test_zarr_groups(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr")
    with pytest.raises(UserError, match="holds no array"):
        read(tmp_path / "x.zarr")
    group.create_array("one", data=one_hot_of(SEQUENCES))
    assert texts(read(tmp_path / "x.zarr")) == SEQUENCES
    group.create_group("deep").create_array("two", data=codes_of(SEQUENCES))
    assert texts(read(tmp_path / "x.zarr", key="deep/two")) == SEQUENCES
    group.create_array("two", data=codes_of(SEQUENCES))
    with pytest.raises(UserError, match="holds 2 arrays: one, two; say which"):
        read(tmp_path / "x.zarr")
    with pytest.raises(UserError, match=r"dataset\.key=three: "):
        read(tmp_path / "x.zarr", key="three")


@pytest.mark.parametrize("content", [b"", b"{", b'{"node_type": "array"}', b"\xff\xff"])
def test_zarr_without_its_metadata(tmp_path: Path, content: bytes) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=one_hot_of(SEQUENCES))
    (tmp_path / "x.zarr" / "zarr.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.zarr cannot be read"):
        read(tmp_path / "x.zarr")


@pytest.mark.parametrize(
    ("name", "content"), [("zarr.json", '{"node_type": "array", "zarr_format": 3}'), (".zarray", "[]")]
)
def test_zarr_with_metadata_that_lack_something(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / name).write_text(content)
    with pytest.raises(UserError, match=r"x\.zarr has damaged metadata .*copy or download it again"):
        read(tmp_path / "x.zarr")


@pytest.mark.parametrize(
    ("shape", "message"),
    [((-3, 4, 9), r"its shape is \(-3, 4, 9\)"), ((3, 4, 10**13), "each row has 40 TB, more than the limit")],
)
def test_npy_of_an_impossible_shape(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|i1", "fortran_order": False, "shape": shape})
    dataset = compose_config(["dataset=array", f"dataset.path={tmp_path / 'x.npy'}"]).dataset
    with pytest.raises(UserError, match=message):
        list(open_source(dataset).batches())


def test_zarr_with_a_damaged_chunk(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=one_hot_of(SEQUENCES), chunks=(1, 4, 5))
    chunk = next(path for path in (tmp_path / "x.zarr").rglob("*") if path.is_file() and path.name != "zarr.json")
    chunk.write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"x\.zarr cannot be read"):
        read(tmp_path / "x.zarr")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays_are_not_read_at_once(tmp_path: Path, name: str) -> None:
    values = np.zeros((4000, 4, 2000), dtype=np.int8)
    values[:, 1] = 1
    np.save(tmp_path / name, values) if name == "x.npy" else np.savez(tmp_path / name, x=values)
    n_bytes = values.nbytes
    del values
    tracemalloc.start()
    n_rows = sum(len(rows) for rows in ArraySource(tmp_path / name).batches())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_rows == 4000
    assert peak < n_bytes * 0.9
