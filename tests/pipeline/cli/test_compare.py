"""`dlshap compare`: the same run twice, other seeds and inputs, a changed byte, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

import pipeline
from pipeline.analysis.comparison import pair_targets
from pipeline.analysis.kmers import KmerTotals
from pipeline.cli.main import dispatch
from pipeline.messages.errors import UserError
from pipeline.store.reader import Store
from tests.pipeline.conftest import N_ROWS, Inputs, random_sequences, write_fasta
from tests.pipeline.damage import copy_of
from tests.pipeline.exports.stores import make_store, random_codes


@pytest.fixture(scope="module")
def other(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with other references."""
    store = tmp_path_factory.mktemp("other") / "other.zarr"
    assert pipeline.run(inputs.overrides(store, "seed=7")).complete
    return store


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int) -> dict[str, Any]:
    assert dispatch(["compare", *map(str, arguments), "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


def test_the_same_run_twice(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = copy_of(finished, tmp_path / "again.zarr", with_run=True)
    assert dispatch(["compare", str(finished), str(again)]) == 0
    out = capsys.readouterr().out
    assert f"{N_ROWS} rows compared: the same bits" in out
    assert "no setting that values depend on differs" in out


def test_two_seeds(finished: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, table = tmp_path / "page.html", tmp_path / "rows.tsv"
    found = told(capsys, finished, other, "-o", page, "--tsv", table, code=1)
    assert found["settings"] == ["seed is 0 in the first and 7 in the second"]
    assert (found["identical"], found["same"], found["files"]) == (False, False, [str(page), str(table)])
    stores = [pipeline.open_store(path) for path in (finished, other)]
    a, b = (np.asarray(store.attribution[:, 0], dtype=np.float64) for store in stores)
    correlation = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    of = {name: [row[i] for row in lines[1:]] for i, name in enumerate(lines[0])}
    np.testing.assert_allclose(np.array(of["correlation"], float), correlation, rtol=1e-6)
    assert of["prediction"] == [str(value) for value in stores[0].prediction[:, 0]], "no more digits than float32 has"
    np.testing.assert_allclose(np.array(of["largest_difference"], float), np.abs(a - b).max(1), rtol=1e-5)
    scaled = [x / np.sqrt((x**2).mean()) for x in (a, b)]
    change = np.sqrt(((scaled[0] - scaled[1]) ** 2).mean(1))
    np.testing.assert_allclose(np.array(of["change"], float), change, rtol=1e-6)
    assert of["name"] == [f"s{row}" for row in range(N_ROWS)]
    (target,) = found["targets"]
    assert [row["row"] for row in target["most_changed"]] == np.argsort(-change)[:5].tolist()
    totals = KmerTotals(6)
    totals.add(np.asarray(stores[0].codes[:]), scaled[1] - scaled[0])
    for name, negative in (("gained", False), ("lost", True)):
        expected = totals.strongest(8, negative)
        assert [text for text, _ in target[name]] == [kmer.text for kmer in expected]
        np.testing.assert_allclose([size for _, size in target[name]], [kmer.attribution for kmer in expected])
    drawn = page.read_text()
    assert drawn.count("<figure") >= 2 + 6
    assert "seed is 0 in the first and 7 in the second" in drawn
    assert found["largest_relative_difference"] > 0.01
    assert told(capsys, finished, other, "--tolerance", "1e3", code=0)["same"]


def test_a_value_that_was_changed(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = copy_of(finished, tmp_path / "changed.zarr", with_run=True)
    array = zarr.open_group(changed, mode="r+")["attribution"]
    assert isinstance(array, zarr.Array)
    row = np.asarray(array[5])
    row[0, 3] = np.nextafter(row[0, 3], np.float32(9))
    array[5] = row
    found = told(capsys, finished, changed, code=1)
    assert [each["name"] for each in found["arrays"] if not each["identical"]] == ["attribution"]
    assert found["targets"][0]["most_changed"] == [
        {**found["targets"][0]["most_changed"][0], "row": 5, "name": "s5"}
    ], "no other row changed"
    assert told(capsys, finished, changed, "--tolerance", "1e-6", code=0)["same"]


def test_other_sequences_are_refused(
    inputs: Inputs, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequences = random_sequences()
    sequences[3] = random_sequences(1, seed=9)[0]
    fasta = write_fasta(tmp_path / "x.fa", sequences)
    pipeline.run(inputs.overrides(tmp_path / "x.zarr", f"dataset.path={fasta}"))
    assert "row 3 is another sequence in " in told(capsys, finished, tmp_path / "x.zarr", code=2)["error"]
    short = write_fasta(tmp_path / "y.fa", sequences[:4])
    pipeline.run(inputs.overrides(tmp_path / "y.zarr", f"dataset.path={short}"))
    assert "run both models on the same input" in told(capsys, finished, tmp_path / "y.zarr", code=2)["error"]
    assert "not nothing" in told(capsys, finished, finished, "--target", "nothing", code=2)["error"]


def test_a_flipped_byte_is_damage_and_no_difference(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copy_of(finished, tmp_path / "damaged.zarr", with_run=True)
    path = damaged / "attribution" / "c.1.0.0"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    error = told(capsys, finished, damaged, code=2)["error"]
    assert "attribution is damaged in rows 0 to 21; `dlshap verify " in error


@pytest.mark.parametrize(
    ("first", "second", "wanted", "pairs"),
    [
        (["0"], ["3"], [], [(0, 0)]),
        (["0", "1", "2"], ["2", "0"], [], [(0, 1), (2, 0)]),
        (["K562", "a=b"], ["HepG2", "a=b"], ["K562=HepG2", "a=b"], [(0, 0), (1, 1)]),
    ],
)
def test_targets_are_paired_by_label(
    first: list[str], second: list[str], wanted: list[str], pairs: list[tuple[int, int]]
) -> None:
    a, b = (SimpleNamespace(url=url, targets=labels) for url, labels in (("a.zarr", first), ("b.zarr", second)))
    assert pair_targets(a, b, wanted) == pairs  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--target nothing: a\.zarr has .*, not nothing"):
        pair_targets(a, b, ["nothing"])  # type: ignore[arg-type]
    b.targets = ["other", "another"]
    with pytest.raises(UserError, match="say which to compare: --target "):
        pair_targets(a, b)  # type: ignore[arg-type]


def test_targets_folds_and_rows_of_two_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = random_codes(9, 30)
    hypothetical = np.random.RandomState(0).normal(size=(9, 3, 4, 30))
    a = make_store(tmp_path / "a.zarr", codes, targets=[4, 5, 6], hypothetical=hypothetical, folds=["x", "y"])
    swapped = hypothetical[:, [2, 0, 1]]
    swapped[3, 1, :, 11] += 5.0
    b = make_store(tmp_path / "b.zarr", codes, targets=[6, 4, 5], hypothetical=swapped, done=[0])
    assert told(capsys, a.url, b.url, code=2)["error"].startswith(f"{b.url} is not complete")
    found = told(capsys, a.url, b.url, "--allow-incomplete", code=1)
    assert found["rows"] == 6
    assert [target["labels"] for target in found["targets"]] == [["4", "4"], ["5", "5"], ["6", "6"]]
    changed = [[row["row"] for row in target["most_changed"]] for target in found["targets"]]
    assert changed == [[3], [], []]
    assert f"attribution_by_fold: only {a.url} has it" in found["not_compared"]
    attribution = next(array for array in found["arrays"] if array["name"] == "attribution")
    assert attribution["largest_difference"] == pytest.approx(5.0)


def test_sequences_are_read_once_for_all_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = random_codes(9, 30)
    for name in "ab":
        make_store(tmp_path / f"{name}.zarr", codes, targets=[4, 5, 6], folds=["x", "y"])
    reads, read = [], Store._read
    monkeypatch.setattr(Store, "_read", lambda self, name, part: reads.append(name) or read(self, name, part))
    found = told(capsys, str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"), code=0)
    assert len(found["targets"]) == 3
    assert reads.count("codes") == 2
    assert reads.count("attribution") == 6
