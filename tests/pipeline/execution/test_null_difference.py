"""`null_difference`: what the alleles of variants differ by within references, and the p-values from it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pipeline
from dlshap_core.one_hot import one_hot
from dlshap_core.references import shuffle_codes
from dlshap_core.sequences import decode, encode
from pipeline.cli.main import dispatch
from pipeline.config.compose import compose_config
from pipeline.execution.null_difference import null_difference
from pipeline.execution.verify import verify
from pipeline.exports.variant_scores import p_value
from pipeline.messages.errors import UserError
from pipeline.models.example import ExampleNet
from pipeline.models.load import load_model
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import LENGTH, Inputs, random_sequences

R = 3
MIDDLE = LENGTH // 2


def within(reference: str, ref: str, alt: str) -> tuple[str, str]:
    """Both alleles in the middle of a reference, in text."""
    left, right = reference[:MIDDLE], reference[MIDDLE + len(ref) :]
    taken = reference[MIDDLE + len(alt) : MIDDLE + len(ref)]
    return left + ref + right, (left + alt + right + taken)[:LENGTH]


def test_alleles_lie_in_the_middle_of_every_reference() -> None:
    """Of a substitution, an insertion and a deletion; of windows that tell no alleles there is none."""
    window = random_sequences(1, LENGTH + 4, seed=1)[0]
    alleles = [(window[MIDDLE], "ACGT"["ACGT".index(window[MIDDLE]) - 1]), ("A", "ATTC"), ("ACCG", "A")]
    texts = []
    for ref, alt in alleles:
        tail = window[MIDDLE + len(ref) :]
        texts += [(window[:MIDDLE] + allele + tail)[:LENGTH] for allele in (ref, alt)]
    texts += random_sequences(2, LENGTH, seed=2)
    codes = np.stack([encode(text.encode()) for text in texts])
    references = np.repeat(shuffle_codes(codes[::2], range(R)), 2, axis=0)
    seen: dict[str, int] = {}

    def predict(X: Tensor, rows: np.ndarray) -> Tensor:
        texts = [decode(bases) for bases in X.argmax(1).numpy().astype(np.uint8)]
        assert 0 < len(texts) <= 4
        assert len(texts) == len(rows)
        numbers = [seen.setdefault(text, len(seen)) for text in texts]
        return torch.tensor([[2.0**-row, number] for row, number in zip(rows.tolist(), numbers, strict=True)])

    found = null_difference(codes, references, 2, 5, predict)
    assert found.shape == (4, 2, R)
    assert found[3].isnan().all()
    for v, (ref, alt) in enumerate(alleles):
        assert (found[v, 0] == 2.0 ** -(2 * v + 1) - 2.0 ** -(2 * v)).all(), "the extra inputs of its own rows"
        for k in range(R):
            first, second = within(decode(references[2 * v, k]), ref, alt)
            assert len(second) == LENGTH
            assert found[v, 1, k] == seen[second] - seen[first]


def test_a_run_keeps_what_the_model_predicts(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fold in range(2):
        torch.manual_seed(fold)
        save_file(ExampleNet(n_filters=4, n_hidden=4).state_dict(), tmp_path / f"{fold}.safetensors")
    genome = random_sequences(1, 400, seed=3)[0]
    places = range(60, 340, 40)
    alts = [genome[at].translate(str.maketrans("ACGT", "CGTA")) for at in places]
    lines = [f"chr1\t{at + 1}\t.\t{genome[at]}\t{alt}\t.\t.\t.\n" for at, alt in zip(places, alts, strict=True)]
    (tmp_path / "g.fa").write_text(f">chr1\n{genome}\n")
    (tmp_path / "v.vcf").write_text("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(lines))
    more = [
        *("dataset=variants", f"dataset.vcf={tmp_path}/v.vcf", f"dataset.genome={tmp_path}/g.fa"),
        *(f"dataset.length={LENGTH}", "engine.batch_size=7", "engine.reverse_complement=average"),
        *(f"model.checkpoint=[{tmp_path}/0.safetensors,{tmp_path}/1.safetensors]", "model.head=counts"),
    ]
    given = [line for line in inputs.overrides(tmp_path / "a.zarr", *more) if "dataset.path" not in line]
    pipeline.run([*given, "store.null_difference=true"])
    store = pipeline.open_store(tmp_path / "a.zarr")
    assert verify(RunDirectory(tmp_path / "a.zarr")).sound
    codes, folds = np.asarray(store.codes[:]), load_model(compose_config(given).model).folds
    null = np.asarray(store["null_difference"][:])
    assert null.shape == (len(alts), 1, R)
    for v, (at, alt) in enumerate(zip(places, alts, strict=True)):
        for k, reference in enumerate(shuffle_codes(codes[2 * v : 2 * v + 1], range(R))[0]):
            X = one_hot(np.stack([encode(t.encode()) for t in within(decode(reference), genome[at], alt)])).double()
            with torch.no_grad():
                y = [fold.double()(x) for fold in folds for x in (X, X.flip(1, 2))]
            expected = torch.stack(y).mean(0)[:, 0]
            assert null[v, 0, k] == pytest.approx(float(expected[1] - expected[0]), abs=1e-7)
    assert np.abs(null).max() > 1e-4

    capsys.readouterr()
    assert dispatch(["export", "variant-scores", store.url, str(tmp_path / "a.tsv")]) == 0
    assert f"against {null.size} differences" in capsys.readouterr().out
    with (tmp_path / "a.tsv").open() as file:
        scores = list(csv.DictReader(file, delimiter="\t"))
    for line in scores:
        at_least = (np.abs(null) / np.log(2) >= float(line["abs_logfc"])).sum()
        assert float(line["abs_logfc.pval"]) == pytest.approx((at_least + 1) / (null.size + 1), rel=1e-5)
    with pytest.raises(UserError, match=r"store\.null_difference is True there and False here"):
        pipeline.run(given)


def test_p_values_are_those_of_both_tails() -> None:
    null, values = np.array([-2.0, -1.0, 0.0, 1.0, 3.0]), np.array([-3.0, 0.5, 3.0, 4.0])
    np.testing.assert_allclose(p_value(values, null, is_right=True), np.array([6, 3, 2, 1]) / 6)
    np.testing.assert_allclose(p_value(values, null), [2 / 6, 1, 4 / 6, 2 / 6])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "dataset=example and store.null_difference=true contradict each other"),
        (
            ["dataset=variants", "dataset.genome=g.fa", "dataset.vcf=v.vcf", "dataset.length=9", "references=uniform"],
            "references=uniform and store.null_difference=true contradict each other",
        ),
    ],
)
def test_what_it_is_not_of(given: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config(["store.null_difference=true", *given])
    assert expected in str(caught.value)
