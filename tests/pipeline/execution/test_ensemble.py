"""Folds and strands: means of what single runs give, over the same references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from dlshap_core.references import shuffle_codes
from pipeline.config.compose import compose_config
from pipeline.execution.verify import verify
from pipeline.messages.errors import UserError
from pipeline.models.example import ExampleNet
from pipeline.models.folds import fold_labels, fold_paths
from pipeline.models.load import load_model
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import COMPUTED, FOLD_ARRAYS
from tests.pipeline.conftest import N_ROWS, Inputs

N_FOLDS = 3


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("folds")
    paths = []
    for fold in range(N_FOLDS):
        torch.manual_seed(fold)
        paths.append(folder / f"fold_{fold}.safetensors")
        save_file(ExampleNet(n_filters=4, n_hidden=4).state_dict(), paths[-1])
    return paths


def listed(paths: list[Path]) -> str:
    return f"model.checkpoint=[{','.join(map(str, paths))}]"


def test_folds_are_averaged_and_kept(inputs: Inputs, folds: list[Path], tmp_path: Path) -> None:
    assert pipeline.run(inputs.overrides(tmp_path / "all.zarr", listed(folds), "store.per_fold=true")).complete
    together = pipeline.open_store(tmp_path / "all.zarr")
    singles = []
    for fold, path in enumerate(folds):
        pipeline.run(inputs.overrides(tmp_path / f"{fold}.zarr", f"model.checkpoint={path}"))
        singles.append(pipeline.open_store(tmp_path / f"{fold}.zarr"))
    assert list(together["fold"][:]) == ["fold_0", "fold_1", "fold_2"]
    for name in FOLD_ARRAYS:
        each = np.stack([np.asarray(store[name.removesuffix("_by_fold")][:]) for store in singles], axis=1)
        np.testing.assert_array_equal(together[name][:], each)
        np.testing.assert_allclose(together[name.removesuffix("_by_fold")][:], each.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(together["reference_checksum"][:], singles[0]["reference_checksum"][:])
    assert verify(RunDirectory(tmp_path / "all.zarr")).sound
    worst = max(store.attrs["run"]["deltas"]["largest"] for store in singles)
    assert together.attrs["run"]["deltas"]["largest"] == worst, "deltas are judged before they can cancel"


def test_a_mean_alone_and_a_pattern_give_the_same_mean(inputs: Inputs, folds: list[Path], tmp_path: Path) -> None:
    pattern = f"model.checkpoint='{folds[0].parent}/fold_*.safetensors'"
    pipeline.run(inputs.overrides(tmp_path / "pattern.zarr", pattern))
    pipeline.run(inputs.overrides(tmp_path / "list.zarr", listed(folds)))
    one, other = (pipeline.open_store(tmp_path / name) for name in ("pattern.zarr", "list.zarr"))
    assert not set(FOLD_ARRAYS) & set(one.group.array_keys())
    assert one.digest() == other.digest()
    with pytest.raises(UserError, match=r"belongs to another run: model\.weights is "):
        pipeline.run(inputs.overrides(tmp_path / "list.zarr", listed(folds[::-1])))
    with pytest.raises(UserError, match=r"settings\.store\.per_fold is False there and True here"):
        pipeline.run(inputs.overrides(tmp_path / "list.zarr", listed(folds), "store.per_fold=true"))


def test_folds_that_cannot_be_averaged_are_named(inputs: Inputs, folds: list[Path], tmp_path: Path) -> None:
    wide = tmp_path / "wide.safetensors"
    save_file(ExampleNet(n_filters=6, n_hidden=4).state_dict(), wide)
    cases = {
        listed([folds[0], wide]): r"wide\.safetensors does not fit ExampleNet",
        listed([folds[0], tmp_path / "gone.pt"]): r"gone\.pt: no such file",
        listed([folds[0], folds[0]]): r"fold_0\.safetensors twice",
        "model.checkpoint=[]": r"model\.checkpoint=\[\] is empty",
        f"model.checkpoint='{tmp_path}/no*'": r"no\* matches no file",
        f"model.checkpoint={folds[0]},{folds[1]}": rf"as a list: 'model\.checkpoint=\[{folds[0]},{folds[1]}\]'$",
    }
    for override, message in cases.items():
        with pytest.raises(UserError, match=message):
            pipeline.run(inputs.overrides(tmp_path / "a.zarr", override))
    assert [path.name for path in tmp_path.iterdir()] == ["wide.safetensors"]


def test_paths_and_labels_of_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b1.pt", "b2.pt", "a[1].pt"):
        (tmp_path / name).write_text("")
    assert fold_paths(None) == [None]
    assert fold_paths("b1.pt") == ["b1.pt"]
    assert fold_paths("a[1].pt") == ["a[1].pt"], "a file of that name is no pattern"
    assert fold_paths(["b?.pt", "a[1].pt"]) == ["b1.pt", "b2.pt", "a[1].pt"]
    assert fold_labels([Path("x/b1.pt"), Path("y/b2.pt")]) == ("b1", "b2")
    assert fold_labels([Path("x/b.pt"), Path("y/b.pt")]) == ("x/b.pt", "y/b.pt")
    assert fold_labels([None]) == ("0",)


def test_both_strands_are_averaged_in_the_frame_of_the_given_one(inputs: Inputs, tmp_path: Path) -> None:
    overrides = inputs.overrides(tmp_path / "a.zarr", "engine.reverse_complement=average")
    assert pipeline.run(overrides).complete
    store = pipeline.open_store(tmp_path / "a.zarr")
    X = one_hot(np.asarray(store.codes[:]))
    references = one_hot(torch.from_numpy(shuffle_codes(np.asarray(store.codes[:]), [0, 1, 2])))
    module = load_model(compose_config(overrides).model).module
    given = attribute(module, X, references)
    turned = attribute(module, X.flip(-1, -2), references.flip(-1, -2))
    expected = (given.hypothetical + turned.hypothetical.flip(-1, -2)) / 2
    np.testing.assert_allclose(store.hypothetical[:], expected, atol=1e-7)
    np.testing.assert_allclose(store.prediction[:], (given.prediction + turned.prediction) / 2, atol=1e-6)
    assert not np.allclose(store.hypothetical[:], given.hypothetical, atol=1e-4)
    difference = store.prediction[:] - store.reference_prediction[:].mean(axis=2)
    np.testing.assert_allclose(store.attribution[:].sum(axis=2), difference, atol=1e-5)
    with pytest.raises(UserError, match=r"engine\.reverse_complement is average there and none here"):
        pipeline.run(inputs.overrides(tmp_path / "a.zarr"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_instance")
def test_actors_average_the_same_bits(inputs: Inputs, folds: list[Path], tmp_path: Path) -> None:
    more = [listed(folds), "store.per_fold=true", "engine.reverse_complement=average"]
    for name, cluster in [("ray.zarr", ["cluster=local", "cluster.actors=2"]), ("here.zarr", [])]:
        assert pipeline.run(inputs.overrides(tmp_path / name, *more, *cluster)).rows_computed == N_ROWS
    one, other = (pipeline.open_store(tmp_path / name) for name in ("ray.zarr", "here.zarr"))
    assert one.digest() == other.digest()
    assert set(one.group.array_keys()) >= {*COMPUTED, *FOLD_ARRAYS}
