"""A line for each row, read back with pyarrow and as text."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlshap_core.sequences import decode
from pipeline.analysis.fold_agreement import agreement
from pipeline.exports.registry import exports
from pipeline.exports.row_table import strongest
from pipeline.exports.selection import Filters, select
from pipeline.messages.errors import UserError
from pipeline.store.reader import Store
from tests.pipeline.exports.stores import make_store, random_codes


def write(store: Store, out: Path, kind: str, targets: list[int], k: int = 5) -> None:
    selection = replace(select(store, Filters(), store.targets[0], None), targets=tuple(targets))
    exports()[kind].write(selection, out, False, lambda n_rows: None, k=k)


def test_parquet_says_what_the_store_says(located: Store, tmp_path: Path) -> None:
    write(located, tmp_path / "a.parquet", "parquet", [0, 1])
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [line["row"] for line in table] == list(range(len(located)))
    attribution, codes = np.asarray(located.attribution[:]), np.asarray(located.codes[:])
    deltas, reference = np.asarray(located.convergence_delta[:]), np.asarray(located.reference_prediction[:])
    for row, line in enumerate(table):
        for name in ("name", "chrom", "start", "end", "strand", "source_row"):
            assert line[name] == located.rows[name][row]
        for target, label in enumerate(["0", "7"]):
            assert line[f"prediction_{label}"] == located.prediction[row, target]
            assert line[f"mean_reference_prediction_{label}"] == pytest.approx(reference[row, target].mean(), abs=1e-6)
            assert line[f"worst_delta_{label}"] == max(deltas[row, target], key=abs)
            sums = [float(np.abs(attribution[row, target, at : at + 5]).sum()) for at in range(37)]
            start = line[f"kmer_start_{label}"]
            assert sums[start] == max(sums)
            assert line[f"kmer_attribution_{label}"] == pytest.approx(max(sums))
            assert line[f"kmer_{label}"] == decode(codes[row, start : start + 5])


def test_text_has_the_same_values(located: Store, tmp_path: Path) -> None:
    write(located, tmp_path / "a.tsv", "tsv", [1])
    write(located, tmp_path / "a.parquet", "parquet", [1])
    wanted = pq.read_table(tmp_path / "a.parquet").to_pylist()
    with (tmp_path / "a.tsv").open() as file:
        for line, row in zip(csv.DictReader(file, delimiter="\t"), wanted, strict=True):
            assert set(line) == set(row)
            for name, value in row.items():
                assert type(value)(line[name]) == pytest.approx(value)
                assert not isinstance(value, float) or line[name] == str(np.float32(value)), "the digits that tell"


def test_folds_that_are_kept_have_columns(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", random_codes(8, 24), targets=(2, 4), folds=("a", "b", "c"))
    write(store, tmp_path / "a.parquet", "parquet", [0, 1])
    agreements = agreement(np.asarray(store["attribution_by_fold"][:]).transpose(0, 2, 1, 3).reshape(16, 3, 24))
    agreements = agreements.mean(axis=1).reshape(8, 2)
    predictions = np.asarray(store["prediction_by_fold"][:], dtype=np.float64)
    for row, line in enumerate(pq.read_table(tmp_path / "a.parquet").to_pylist()):
        for target, label in enumerate(["2", "4"]):
            assert line[f"fold_agreement_{label}"] == pytest.approx(agreements[row, target])
            assert line[f"prediction_spread_{label}"] == pytest.approx(np.ptp(predictions[row, :, target]))


def test_folds_of_which_only_the_mean_is_kept_have_none(located: Store, tmp_path: Path) -> None:
    write(located, tmp_path / "a.tsv", "tsv", [0])
    assert "fold" not in (tmp_path / "a.tsv").read_text().splitlines()[0]


def test_names_with_tabs_stay_one_column(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", random_codes(1, 8), names=["a\tb\r\nc"])
    write(store, tmp_path / "a.tsv", "tsv", [0])
    header, line = (tmp_path / "a.tsv").read_text().splitlines()
    assert len(header.split("\t")) == len(line.split("\t"))
    assert line.split("\t")[2] == r"a\tb\r\nc"


def test_the_first_of_equal_places_is_taken() -> None:
    start, total = strongest(np.array([[0, -2, 1, 0, 2, -1, 0]], dtype=np.float32), 2)
    assert (start.tolist(), total.tolist()) == ([1], [3.0])


def test_k_must_fit(plain: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--k 25: the sequences have 24 bases"):
        write(plain, tmp_path / "a.tsv", "tsv", [0], k=25)
