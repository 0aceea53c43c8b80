"""TF-MoDISco's pair of files: equal to the store, row by row of the map."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from dlshap_core.one_hot import one_hot
from dlshap_core.sequences import decode, reverse_complement
from pipeline.exports import modisco
from pipeline.exports.selection import Filters, select
from pipeline.messages.errors import UserError
from pipeline.store.reader import Store


def write(
    store: Store, out: Path, window: int, seed: int = 0, target: str | None = None
) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]]]:
    modisco.export(select(store, Filters(seed=seed), target, window), out, False, lambda n_rows: None)
    with np.load(out / "ohe.npz") as ohe, np.load(out / "attr.npz") as attr, (out / "rows.tsv").open() as table:
        return ohe["arr_0"], attr["arr_0"], list(csv.DictReader(table, delimiter="\t"))


@pytest.mark.parametrize("window", [2, 10, 40])
def test_the_files_are_the_store_cropped_and_shuffled(located: Store, tmp_path: Path, window: int) -> None:
    ohe, attr, table = write(located, tmp_path / "out", window, target="7")
    rows = np.array([int(line["store_row"]) for line in table])
    assert sorted(rows) == list(range(len(located)))
    assert rows.tolist() != sorted(rows)
    middle = slice(20 - window // 2, 20 + window // 2)
    np.testing.assert_array_equal(ohe, one_hot(np.asarray(located.codes[:])[rows][:, middle]))
    np.testing.assert_array_equal(attr, np.asarray(located.hypothetical[:])[rows, 1][..., middle])
    assert (ohe.dtype, attr.dtype) == (np.int8, np.float32)
    np.testing.assert_array_equal(ohe.sum(axis=1) == 0, np.asarray(located.codes[:])[rows][:, middle] == 4)
    for number, line in enumerate(table):
        row = int(line["store_row"])
        assert int(line["export_row"]) == number
        assert line["name"] == f"peak {row}"
        assert line["chrom"] == located.rows["chrom"][row]
        assert int(line["start"]) == located.rows["start"][row] + middle.start
        assert int(line["end"]) - int(line["start"]) == window
    bed = [line.split("\t") for line in (tmp_path / "out" / "rows.bed").read_text().splitlines()]
    columns = ("chrom", "start", "end", "name", "strand")
    assert [[*line[:4], line[5]] for line in bed] == [[line[name] for name in columns] for line in table]


@pytest.mark.slow
def test_its_own_commands_place_seqlets_where_rows_bed_says(located: Store, plain: Store, tmp_path: Path) -> None:
    """modisco's functions, given a file of motifs whose seqlets are known: their bases are those of the store there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it imports
        from modiscolite.io import write_bed_from_h5, write_fasta_from_h5
    for store, target in ((located, "7"), (plain, None)):
        out = tmp_path / str(target)
        write(store, out, 20, target=target)
        with h5py.File(out / "motifs.h5", "w") as file:
            file.attrs["window_size"] = 20
            seqlets = file.create_group("pos_patterns/pattern_0/seqlets")
            for name, values in (("example_idx", [0, 3, 11]), ("start", [2, 0, 9]), ("end", [9, 8, 20])):
                seqlets[name] = values
            seqlets["is_revcomp"] = [False, True, False]
        places = str(out / "motifs.h5"), str(out / "rows.bed")
        write_bed_from_h5(*places, str(out / "a.bed"), "*", None, True)
        write_fasta_from_h5(*places, str(out / "ohe.npz"), str(out / "a.fa"), "*", None, True)
        bases = (out / "a.fa").read_text().split("\n")[1::2]
        lines = [line.split("\t") for line in (out / "a.bed").read_text().splitlines()[1:]]
        assert len(lines) == 3
        for (chrom, start, end, *_), text in zip(lines, bases, strict=True):
            if target is None:
                row, left = store.rows["name"].tolist().index(chrom), 0
            else:
                row = next(
                    int(row) for row in store.rows_overlapping(f"{chrom}:{start}-{end}") if text in letters(store, row)
                )
                left = int(store.rows["start"][row])
            assert letters(store, row)[int(start) - left : int(end) - left] == text


def letters(store: Store, row: int) -> str:
    """The bases of a row, in the forward frame; A for an unknown one, as modisco writes it."""
    codes = np.asarray(store.codes[row : row + 1])
    if store.on_minus_strand[row]:
        codes = reverse_complement(codes)
    return decode(codes[0]).replace("N", "A")


def test_the_order_follows_the_seed(plain: Store, tmp_path: Path) -> None:
    orders = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        table = write(plain, tmp_path / name, 8, seed)[2]
        orders.append([line["store_row"] for line in table])
        assert {line["start"] for line in table} == {"-1"}  # no loci
    assert orders[0] == orders[1] != orders[2]
    assert (tmp_path / "a" / "attr.npz").read_bytes() == (tmp_path / "b" / "attr.npz").read_bytes()


def test_an_odd_window_is_refused(located: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--window 9: TF-MoDISco reads an even number of bases, such as 8"):
        write(located, tmp_path / "out", 9, target="0")
    assert not (tmp_path / "out").exists()


def test_too_few_rows_for_a_motif_are_said(plain: Store, tmp_path: Path) -> None:
    selection = select(plain, Filters(), None, 8)
    (_, warning) = modisco.export(selection, tmp_path / "out", False, lambda n_rows: None).notes
    assert warning.startswith(
        f"warning: {len(plain)} rows may be too few: TF-MoDISco looks for motifs where more than 100"
    )
    assert modisco._few(100) != []
    assert modisco._few(101) == []
