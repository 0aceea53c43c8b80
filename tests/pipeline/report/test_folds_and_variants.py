"""What a report says of folds and of variants: its numbers are the store's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.analysis.fold_agreement import agreement, of_row
from pipeline.analysis.variant_effects import difference, strongest_change
from tests.pipeline.report.stores import Synthetic, random_codes
from tests.pipeline.report.test_page import assert_stands_alone, page_of

N, LENGTH = 24, 60


def alleles(n: int, length: int) -> np.ndarray:
    """Codes of n / 2 variants of one base, reference and alternate allele in turn."""
    codes = random_codes(n // 2, length).repeat(2, axis=0)
    codes[1::2, length // 2] = (codes[1::2, length // 2] + 1) % 4
    return codes


def test_folds_that_agree_least_are_named(tmp_path: Path) -> None:
    synthetic = Synthetic(random_codes(N, LENGTH), targets=(0, 3), folds=("a", "b", "c"))
    path = synthetic.write(tmp_path / "folds.zarr")
    page = page_of(path, tmp_path)
    assert_stands_alone(page, (tmp_path / "page.html").read_text())
    store = pipeline.open_store(path)
    for target in (0, 1):
        per_fold = agreement(np.asarray(store["attribution_by_fold"][:, :, target]))
        of_rows = of_row(per_fold)
        assert page.value("n-agreement", target) == N
        assert page.value("median-agreement", target) == pytest.approx(np.median(of_rows))
        least = [float(value) for value in page.values["least-agreement"][8 * target : 8 * target + 8]]
        np.testing.assert_allclose(least, np.sort(of_rows)[:8])
        folds = [float(value) for value in page.values["fold-agreement"][3 * target : 3 * target + 3]]
        np.testing.assert_allclose(folds, per_fold.mean(axis=0))
        spreads = np.ptp(np.asarray(store["prediction_by_fold"][:, :, target]), axis=1)
        assert page.value("median-spread", target) == pytest.approx(np.median(spreads))
        worst = store.rows["name"][of_rows.argmin()]
        assert f"row agreement mean prediction apart by {worst} {of_rows.argmin()}" in page.text


def test_rows_without_an_agreement_are_counted(tmp_path: Path) -> None:
    synthetic = Synthetic(random_codes(N, LENGTH), folds=("a", "b"))
    values = np.random.default_rng(0).normal(size=(N, 2, 1, LENGTH)).astype(np.float32)
    values[3, 1] = 0
    synthetic.values["attribution_by_fold"] = values
    page = page_of(synthetic.write(tmp_path / "folds.zarr"), tmp_path)
    assert page.value("n-agreement") == N - 1
    assert "1 row left out: of a fold or more" in page.text
    synthetic.values["attribution_by_fold"] = 0 * values
    page = page_of(synthetic.write(tmp_path / "none.zarr"), tmp_path)
    assert f"{N} rows left out: of a fold or more" in page.text


def test_a_store_without_values_of_folds_says_nothing_of_their_agreement(finished: Path, tmp_path: Path) -> None:
    text = page_of(finished, tmp_path).text
    assert "Agreement of the folds" not in text
    assert "Variants" not in text


def test_the_strongest_variants_are_listed_and_drawn(tmp_path: Path) -> None:
    codes = alleles(N, LENGTH)
    names = [f"rs{row // 2}:{'alt' if row % 2 else 'ref'}" for row in range(N)]
    loci = [("chr1", 1000 + 7 * (row // 2), "+") for row in range(N)]
    path = Synthetic(codes, names=names, loci=loci, alleles=True, spread=True).write(tmp_path / "variants.zarr")
    page = page_of(path, tmp_path)
    assert_stands_alone(page, (tmp_path / "page.html").read_text())
    store = pipeline.open_store(path)
    differences = np.asarray(store["prediction_difference"][:, 0], dtype=np.float64)
    order = np.argsort(-np.abs(differences))
    assert page.value("n-variants") == N // 2
    assert page.value("n-up") == (differences > 0).sum()
    found = [float(value) for value in page.values["variant-difference"]]
    np.testing.assert_allclose(found, differences[order])
    strongest = int(order[0])
    ref, alt = np.asarray(store.attribution[2 * strongest : 2 * strongest + 2, 0], dtype=np.float64)
    change = difference(ref, alt, 1, 1)
    np.testing.assert_allclose(change, np.asarray(store["attribution_difference"][strongest, 0]), atol=1e-7)
    start, end = strongest_change(change, 20)
    assert page.value("variant-change") == pytest.approx(change[start:end].sum())
    sd = np.asarray(store["attribution_difference_sd"][strongest, 0, start:end], dtype=np.float64)
    assert page.value("variant-error") == pytest.approx(sd.sum() / np.sqrt(store.plan.n_references))
    bases = ["ACGT"[codes[2 * strongest + allele, LENGTH // 2]] for allele in (0, 1)]
    left = 1000 + 7 * strongest
    locus = f"chr1:{left + start:,}-{left + end:,}"
    assert f"rs{strongest} chr1:{left + LENGTH // 2 + 1:,} {bases[0]} to {bases[1]}" in page.text
    assert locus in page.text
    drawn = [label for label in page.labels if label is not None and label.startswith(f"Logo of rs{strongest}, ")]
    assert [label.split(", ")[1] for label in drawn] == ["reference", "alternate", "difference"]


def test_how_sure_the_attributions_are_as_the_references_were_drawn(tmp_path: Path) -> None:
    synthetic = Synthetic(random_codes(N, LENGTH), targets=(0, 3), n_references=5, spread=True)
    signal = np.random.default_rng(1).normal(size=(N, 2, LENGTH)).astype(np.float32)
    signal[3] = 0  # a row that nobody can be sure of
    synthetic.values["attribution"], synthetic.values["attribution_sd"] = signal, np.full_like(signal, 0.5)
    synthetic.values["attribution_sd"][3] = 0
    page = page_of(synthetic.write(tmp_path / "a.zarr"), tmp_path)
    assert_stands_alone(page, (tmp_path / "page.html").read_text())
    for target in (0, 1):
        total = np.delete(signal[:, target], 3, axis=0).astype(np.float64).var(axis=1)
        found = total - 0.25 / 5
        assert page.value("n-certain", target) == N - 1
        assert page.value("certainty-median", target) == pytest.approx(np.median(np.sqrt(found / total)))
        assert page.value("n-reached", target) == (np.sqrt(found / total) >= 0.99).sum()
        enough = 0.25 / found * 0.99**2 / (1 - 0.99**2)
        assert page.value("enough", target) == np.ceil(np.median(enough))
        assert 0.5 < page.value("kept", target) < 1
    synthetic.values["attribution"] = 0 * signal
    assert "No sequence has attributions" in page_of(synthetic.write(tmp_path / "none.zarr"), tmp_path).text
    noise = Synthetic(
        random_codes(N, LENGTH), spread=True, values={"attribution_sd": np.ones((N, 1, LENGTH), np.float32)}
    )
    assert "Half of the sequences have only noise" in page_of(noise.write(tmp_path / "noise.zarr"), tmp_path).text


def test_variants_without_a_finite_difference_are_counted(tmp_path: Path) -> None:
    prediction = np.random.default_rng(0).normal(size=(N, 1)).astype(np.float32)
    prediction[2] = np.nan
    synthetic = Synthetic(alleles(N, LENGTH), alleles=True, values={"prediction": prediction})
    page = page_of(synthetic.write(tmp_path / "variants.zarr"), tmp_path)
    assert "1 variant left out: the difference is not finite" in page.text
    assert len(page.values["variant-difference"]) == N // 2 - 1
