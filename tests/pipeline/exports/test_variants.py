"""Exports of stores of variants: a line for each in tables, and which alleles the others hold."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlshap_core.sequences import decode
from pipeline.analysis.fold_agreement import agreement
from pipeline.analysis.variant_effects import difference
from pipeline.cli.main import dispatch
from pipeline.exports.variant_scores import QUANTILES
from pipeline.store.reader import Store
from tests.pipeline.exports.stores import make_store, random_codes

MIDDLE = 30  # of the windows


def export(kind: str, store: Store, out: Path, *options: str) -> int:
    return dispatch(["export", kind, store.url, str(out), *options])


def test_a_line_for_each_variant(variants: Store, tmp_path: Path) -> None:
    assert export("parquet", variants, tmp_path / "a.parquet", "--k", "5") == 0
    lines = pq.read_table(tmp_path / "a.parquet").to_pylist()
    codes, attribution = np.asarray(variants.codes[:]), np.asarray(variants.attribution[:], dtype=np.float64)
    prediction, deltas = np.asarray(variants.prediction[:]), np.asarray(variants.convergence_delta[:])
    assert [line["variant"] for line in lines] == [f"rs{index}" for index in range(12)]
    for index, line in enumerate(lines):
        ref, alt = 2 * index, 2 * index + 1
        start, n_alt = 500 + 15 * index, 1 if index < 6 else 2
        assert (line["row"], line["chrom"], line["start"], line["end"]) == (ref, "chr3", start, start + 60)
        assert line["vcf_position"] == start + MIDDLE + 1
        assert line["ref"] == decode(codes[ref, MIDDLE : MIDDLE + 1])
        assert line["alt"] == decode(codes[alt, MIDDLE : MIDDLE + n_alt])
        for target, label in enumerate(["0", "7"]):
            assert line[f"prediction_ref_{label}"] == prediction[ref, target]
            assert line[f"prediction_alt_{label}"] == prediction[alt, target]
            assert line[f"prediction_difference_{label}"] == variants["prediction_difference"][index, target]
            references = np.asarray(variants.reference_prediction[ref, target], dtype=np.float64)
            apart = [abs(a - b) for a, b in itertools.combinations(references, 2)]
            least = abs(float(variants["prediction_difference"][index, target]))
            assert line[f"reference_spread_{label}"] == pytest.approx(references.std(ddof=1))
            assert line[f"reference_pair_share_{label}"] == pytest.approx(np.mean(np.array(apart) >= least))
            assert line[f"worst_delta_{label}"] == max([*deltas[ref, target], *deltas[alt, target]], key=abs)
            change = difference(attribution[ref, target], attribution[alt, target], 1, n_alt)
            sums = [np.abs(change[at : at + 5]).sum() for at in range(56)]
            at = line[f"change_start_{label}"] - start
            assert line[f"change_end_{label}"] == start + at + 5
            assert sums[at] == pytest.approx(max(sums))
            assert line[f"change_size_{label}"] == pytest.approx(max(sums))
            assert line[f"change_{label}"] == pytest.approx(change[at : at + 5].sum())
            most = np.asarray(variants["attribution_difference_sd"][index, target, at : at + 5]).sum()
            in_place = n_alt == 1 or at + 5 <= MIDDLE + 1
            assert line[f"change_sd_at_most_{label}"] == pytest.approx(most if in_place else np.nan, nan_ok=True)


def test_scores_have_the_names_of_the_variant_scorer(
    variants: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export("variant-scores", variants, tmp_path / "a.tsv", "--target", "0") == 2
    assert "these scores are of log counts" in capfd.readouterr().err
    codes = np.random.default_rng(2).integers(0, 4, (6, 60), dtype=np.uint8)
    codes[1::2] = codes[::2]
    codes[1::2, MIDDLE] = (codes[::2, MIDDLE] + 1) % 4
    names = [f"rs{row // 2}:{'alt' if row % 2 else 'ref'}" for row in range(6)]
    store = make_store(tmp_path / "a.zarr", codes, [("chr3", 500)] * 6, names, head="counts", alleles=True)
    assert export("variant-scores", store, tmp_path / "a.tsv") == 0
    with (tmp_path / "a.tsv").open() as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    prediction = np.asarray(store.prediction[:, 0], dtype=np.float64)
    references = np.asarray(store.reference_prediction[:, 0], dtype=np.float64)
    assert [line["variant_id"] for line in lines] == ["rs0", "rs1", "rs2"]
    for line, (one, two), of_references, row in zip(
        lines, prediction.reshape(3, 2), references[::2], codes[::2], strict=True
    ):
        assert (line["chr"], line["pos"]) == ("chr3", "531")
        assert (line["allele1"], line["allele2"]) == (decode(row[[MIDDLE]]), decode((row[[MIDDLE]] + 1) % 4))
        assert float(line["allele1_pred_counts"]) == pytest.approx(np.exp(one), rel=1e-5)
        assert float(line["logfc"]) == pytest.approx(np.log2(np.exp(two) / np.exp(one)), rel=1e-4)
        assert float(line["abs_logfc"]) == abs(float(line["logfc"]))
        assert float(line["reference_spread"]) == pytest.approx(np.log2(np.exp(of_references)).std(ddof=1), rel=1e-4)
        apart = [abs(a - b) for a, b in itertools.combinations(of_references, 2)]
        assert float(line["reference_pair_share"]) == pytest.approx(
            np.mean(np.array(apart) >= abs(two - one)), abs=1e-5
        )


def test_quantiles_are_among_the_peaks_of_the_same_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As the scorer has them: max(mean(peaks < allele), 1 / peaks)."""
    names = [f"rs{row // 2}:{'alt' if row % 2 else 'ref'}" for row in range(6)]
    of_store = {"head": "counts", "loci": [("chr3", 500)] * 6}
    store = make_store(tmp_path / "a.zarr", random_codes(6, 60), names=names, alleles=True, **of_store)
    peaks = make_store(tmp_path / "p.zarr", random_codes(9, 60), head="counts", seed=8)
    assert export("variant-scores", store, tmp_path / "a.tsv", "--peaks", peaks.url) == 0
    assert f"among the predicted counts of 9 rows of {peaks.url}" in capfd.readouterr().out
    with (tmp_path / "a.tsv").open() as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    of_peaks = np.exp(np.asarray(peaks.prediction[:, 0], dtype=np.float64))
    alleles = np.exp(np.asarray(store.prediction[:, 0], dtype=np.float64)).reshape(3, 2)
    for line, pair in zip(lines, alleles, strict=True):
        one, two = (max((of_peaks < counts).mean(), 1 / 9) for counts in pair)
        found = [float(line[name]) for name in QUANTILES]
        np.testing.assert_allclose(found, [one, two, max(one, two), two - one, abs(two - one)], atol=1e-5)
    assert len({line["active_allele_quantile"] for line in lines}) > 1, "there is something to compare"
    assert export("variant-scores", store, tmp_path / "b.tsv", "--peaks", store.url) == 2
    assert "expected a store of peaks" in capfd.readouterr().err
    (tmp_path / "p.zarr/zarr.json").write_text(
        (tmp_path / "p.zarr/zarr.json")
        .read_text()
        .replace('"fingerprint": {}', '"fingerprint": {"model.weights": "x"}')
    )
    assert export("variant-scores", store, tmp_path / "b.tsv", "--peaks", peaks.url) == 2
    assert "model.weights is x there and None for the variants" in capfd.readouterr().err


def test_folds_are_compared_by_what_a_variant_changes(variants: Store, tmp_path: Path) -> None:
    assert export("parquet", variants, tmp_path / "a.parquet", "--target", "7") == 0
    folds = np.asarray(variants["attribution_by_fold"][:, :, 1], dtype=np.float64)
    prediction = np.asarray(variants["prediction_by_fold"][:, :, 1], dtype=np.float64)
    for index, line in enumerate(pq.read_table(tmp_path / "a.parquet").to_pylist()):
        change = difference(folds[2 * index], folds[2 * index + 1], 1, 1 if index < 6 else 2)
        assert line["fold_agreement_7"] == pytest.approx(agreement(change[None]).mean())
        apart = np.ptp(prediction[2 * index + 1] - prediction[2 * index])
        assert line["prediction_difference_spread_7"] == pytest.approx(apart)


def test_a_variant_of_which_one_row_is_asked_for_has_its_line(
    variants: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export("tsv", variants, tmp_path / "a.tsv", "--name", "rs3:alt", "--name", "rs7:ref") == 0
    with (tmp_path / "a.tsv").open() as file:
        assert [line["variant"] for line in csv.DictReader(file, delimiter="\t")] == ["rs3", "rs7"]
    assert "a line for each of 2 variants" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("modisco", [], "ref"),
        ("modisco", ["--allele", "both"], "both"),
        ("finemo", [], "both"),
        ("finemo", ["--allele", "alt"], "alt"),
        ("chrombpnet", [], "both"),
        ("bigwig", [], "ref"),
    ],
)
def test_which_alleles_an_export_holds_is_said(
    variants: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, options: list[str], expected: str
) -> None:
    assert export(kind, variants, tmp_path / "out", "--target", "0", "--json", *options) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["rows"] == (24 if expected == "both" else 12)
    said = {"ref": "the reference alleles of", "alt": "the alternate alleles of", "both": "both alleles of each"}
    assert any(said[expected] in note for note in told["notes"])


def test_tf_modisco_gets_reference_alleles_once(variants: Store, tmp_path: Path) -> None:
    assert export("modisco", variants, tmp_path / "out", "--target", "0") == 0
    with (tmp_path / "out/rows.tsv").open() as file:
        names = [line["name"] for line in csv.DictReader(file, delimiter="\t")]
    assert sorted(names) == sorted(f"rs{index}:ref" for index in range(12))


def test_a_track_is_of_the_reference_alleles(variants: Store, tmp_path: Path) -> None:
    import pyBigWig

    assert export("bigwig", variants, tmp_path / "a.bw", "--target", "0") == 0
    with pyBigWig.open(str(tmp_path / "a.bw")) as track:
        found = track.values("chr3", 500, 530)
    np.testing.assert_array_equal(np.float32(found), variants.attribution[0, 0, :30])


def test_alleles_of_rows_that_have_none(
    located: Store, variants: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export("modisco", located, tmp_path / "out", "--target", "0", "--allele", "ref") == 2
    assert "the rows of" in (told := capfd.readouterr().err)
    assert "are no variants" in told
    assert export("bigwig", variants, tmp_path / "out", "--target", "0", "--name", "rs2:alt") == 2
    assert "asked for were 1 name and ref alleles" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
