"""`attribution_sd`: the spread over references of what a store holds, of folds, strands and variants too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pipeline
from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from dlshap_core.references import shuffle_codes
from pipeline.cli.main import dispatch
from pipeline.config.compose import compose_config
from pipeline.execution.verify import verify
from pipeline.messages.errors import UserError
from pipeline.models.example import ExampleNet
from pipeline.models.load import load_model
from pipeline.planning.bit_rounding import round_bits
from pipeline.store.reader import Store
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import SPREAD_BITS
from tests.pipeline.conftest import LENGTH, Inputs, random_sequences

R = 3
NEXT = str.maketrans("ACGT", "CGTA")


def pairs(module: torch.nn.Module, X: Tensor, references: Tensor) -> np.ndarray:
    """(N, T, R, L) attributions of the observed bases in float64, each reference explained by itself."""
    each = [
        attribute(module.double(), X.double(), references[:, k : k + 1].double(), device="cpu").hypothetical
        for k in range(references.shape[1])
    ]
    return (torch.stack(each, 2) * X[:, None, None]).sum(3).numpy()


def folds_of(overrides: list[str]) -> list[torch.nn.Module]:
    return list(load_model(compose_config(overrides).model).folds)


def require_spread(store: Store, name: str, values: np.ndarray) -> None:
    """The array is the standard deviation over the references (axis 2) of these values, rounded."""
    expected, found = values.std(axis=2, ddof=1), np.asarray(store[name][:])
    np.testing.assert_allclose(found, expected, rtol=2.0**-SPREAD_BITS, atol=1e-7)
    assert expected.max() > 1e-4, "there is something to compare"
    assert np.array_equal(round_bits(found, SPREAD_BITS), found)
    assert store[name].attrs["precision_bits"] == SPREAD_BITS


def test_of_one_model(inputs: Inputs, tmp_path: Path) -> None:
    overrides = inputs.overrides(tmp_path / "a.zarr", "engine.batch_size=2")  # references of a row over two batches
    assert pipeline.run(overrides).complete
    store = pipeline.open_store(tmp_path / "a.zarr")
    codes = np.asarray(store.codes[:])
    references = one_hot(torch.from_numpy(shuffle_codes(codes, list(range(R)))))
    require_spread(store, "attribution_sd", pairs(folds_of(overrides)[0], one_hot(codes), references))
    assert verify(RunDirectory(tmp_path / "a.zarr")).sound


def test_of_folds_and_strands_it_is_that_of_their_mean(inputs: Inputs, tmp_path: Path) -> None:
    for fold in range(2):
        torch.manual_seed(fold)
        save_file(ExampleNet(n_filters=4, n_hidden=4).state_dict(), tmp_path / f"{fold}.safetensors")
    checkpoints = f"model.checkpoint=[{tmp_path}/0.safetensors,{tmp_path}/1.safetensors]"
    more = (checkpoints, "engine.reverse_complement=average", "store.per_fold=true")
    overrides = inputs.overrides(tmp_path / "a.zarr", *more)
    pipeline.run(overrides)
    store = pipeline.open_store(tmp_path / "a.zarr")
    codes = np.asarray(store.codes[:])
    X, references = one_hot(codes), one_hot(torch.from_numpy(shuffle_codes(codes, list(range(R)))))
    found = []
    for module in folds_of(overrides):
        found.append(pairs(module, X, references))
        found.append(pairs(module, X.flip(1, 2), references.flip(2, 3))[..., ::-1])
    require_spread(store, "attribution_sd", np.mean(found, axis=0))
    assert "attribution_sd_by_fold" not in store.group
    assert verify(RunDirectory(tmp_path / "a.zarr")).sound


@pytest.mark.parametrize("without", [["store.spread=false"], ["references.n_shuffles=1"]])
def test_a_store_without_it_is_as_it_was(without: list[str], inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    overrides = inputs.overrides(tmp_path / "a.zarr", *without)
    pipeline.run(overrides)
    store = pipeline.open_store(tmp_path / "a.zarr")
    assert "attribution_sd" not in store.group
    assert not store.plan.spread
    assert verify(RunDirectory(tmp_path / "a.zarr")).sound
    assert json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]["plan"]["spread"] is False
    if without == ["store.spread=false"]:
        full = pipeline.open_store(finished)
        for name in ("attribution", "hypothetical", "prediction", "convergence_delta"):
            assert np.asarray(store[name][:]).tobytes() == np.asarray(full[name][:]).tobytes()
        with pytest.raises(UserError, match=r"store\.spread is False there and True here"):
            pipeline.run(inputs.overrides(tmp_path / "a.zarr"))


def test_of_variants_the_difference_has_one_too(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genome = random_sequences(1, 400, seed=3)[0]
    lines = [f"chr1\t{at + 1}\t.\t{genome[at]}\t{genome[at].translate(NEXT)}\t.\t.\t.\n" for at in range(60, 340, 40)]
    (tmp_path / "g.fa").write_text(f">chr1\n{genome}\n")
    (tmp_path / "v.vcf").write_text("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(lines))
    of_input = ["dataset=variants", f"dataset.vcf={tmp_path}/v.vcf", f"dataset.genome={tmp_path}/g.fa"]
    more = [*of_input, f"dataset.length={LENGTH}", "engine.batch_size=3"]  # the alleles in batches of their own
    overrides = [line for line in inputs.overrides(tmp_path / "a.zarr", *more) if "dataset.path" not in line]
    pipeline.run(overrides)
    store = pipeline.open_store(tmp_path / "a.zarr")
    codes = np.asarray(store.codes[:])
    shuffles = np.repeat(shuffle_codes(codes[::2], list(range(R))), 2, axis=0)
    values = pairs(folds_of(overrides)[0], one_hot(codes), one_hot(torch.from_numpy(shuffles)))
    require_spread(store, "attribution_sd", values)
    require_spread(store, "attribution_difference_sd", values[1::2] - values[::2])
    assert verify(RunDirectory(tmp_path / "a.zarr")).sound
    (damaged,) = (tmp_path / "a.zarr" / "attribution_difference_sd").glob("c.0.*")
    damaged.write_bytes(damaged.read_bytes()[::-1])
    for words in (["export", "tsv", "a.zarr", "a.tsv"], ["report", "a.zarr", "-o", "a.html"]):
        assert dispatch([str(tmp_path / word) if word.startswith("a.") else word for word in words]) == 2
        assert "attribution_difference_sd" in capsys.readouterr().err
