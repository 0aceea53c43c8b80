"""Files of chrombpnet, made anew with Keras: the same predictions in the module of bpnet-lite's models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.messages.errors import UserError
from pipeline.models.load import load_model
from tests.pipeline.conftest import chosen
from tests.pipeline.models.keras_files.oracle import keras, one_hot, predictions, randomised, save

LENGTH, WIDTH = 200, 60


def bpnet(k: Any, prefix: str = "", n_layers: int = 2, name: str | None = None, **odd: Any) -> Any:
    """As chrombpnet lays it out: the names of the bias, or with `wo_bias_` before them."""
    L, tails = k.layers, f"{prefix}bpnet_" if prefix else ""
    sequence = k.Input((LENGTH, 4), name="sequence")
    x = L.Conv1D(6, 21, activation="relu", name=f"{prefix}bpnet_1st_conv")(sequence)
    for i in range(1, n_layers + 1):
        dilated = {"dilation_rate": 2**i, "activation": "relu", "name": f"{prefix}bpnet_{i}conv"}
        conv = L.Conv1D(6, 3, **dilated | odd)(x)
        crop = L.Cropping1D((x.shape[1] - conv.shape[1]) // 2, name=f"{prefix}bpnet_{i}crop")(x)
        x = L.add([conv, crop])
    profile = L.Conv1D(1, 75, name=f"{tails}prof_out_precrop")(x)
    crop = L.Cropping1D(profile.shape[1] // 2 - WIDTH // 2, name=f"{tails}logits_profile_predictions_preflatten")(
        profile
    )
    profile = L.Flatten(name=f"{tails}logits_profile_predictions")(crop)
    counts = L.Dense(1, name=f"{tails}logcount_predictions")(L.GlobalAveragePooling1D(name="gap")(x))
    return k.Model(sequence, [profile, counts], **({"name": name} if name else {}))


def _logsumexp(x: Any) -> Any:
    return x.exp().sum(-1, keepdim=True).log() if isinstance(x, torch.Tensor) else x[:, :1]


def both(k: Any) -> Any:
    """The accessibility and the bias in one model."""
    L, sequence = k.layers, k.Input((LENGTH, 4), name="sequence")
    bias, own = bpnet(k, n_layers=1), bpnet(k, "wo_bias_", name="model_wo_bias")
    found, added = own(sequence), bias(sequence)
    profile = L.Add(name="logits_profile_predictions")([found[0], added[0]])
    joined = L.Concatenate(axis=-1)([found[1], added[1]])
    summed = L.Lambda(_logsumexp, name="logcount_predictions")(joined)
    return k.Model(sequence, [profile, summed])


def loaded(family: str, path: Path, **settings: Any) -> Any:
    return load_model(chosen("model", family, checkpoint=str(path), head="none", output=None, **settings))


def bare(found: Any) -> Any:
    return found.module.model


def require_same(found: Any, model: Any) -> None:
    x = one_hot(LENGTH)
    profile, counts = predictions(model, [x])
    with torch.no_grad():
        ours = bare(found)(torch.from_numpy(x).transpose(1, 2))
    torch.testing.assert_close(ours[0], torch.from_numpy(profile).unsqueeze(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], torch.from_numpy(counts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("prefix", "family", "form"),
    [("", "bpnet", "keras"), ("wo_bias_", "bpnet", "h5"), ("wo_bias_", "chrombpnet", "h5")],
)
def test_one_part(tmp_path: Path, prefix: str, family: str, form: str) -> None:
    model = randomised(bpnet(keras(), prefix))
    path, _ = save(model, tmp_path, form)
    found = loaded(family, path)
    require_same(found, model)
    assert (bare(found).trimming, bare(found).n_layers) == ((LENGTH - WIDTH) // 2, 2)


def test_both_parts(tmp_path: Path) -> None:
    k = keras()
    model = randomised(both(k))
    path, _ = save(model, tmp_path, "h5")
    require_same(loaded("chrombpnet", path, with_bias=True), model)
    alone = loaded("chrombpnet", path)
    require_same(alone, model.get_layer("model_wo_bias"))
    assert any("holds a bias, which is left out; model.with_bias=true" in note for note in alone.notes)


def test_both_parts_from_files_of_their_own(tmp_path: Path) -> None:
    k = keras()
    model = randomised(both(k))
    paths = []
    for part in (model.get_layer("model_wo_bias"), next(layer for layer in model.layers if "functional" in layer.name)):
        (tmp_path / part.name).mkdir()
        paths.append(save(part, tmp_path / part.name, "h5")[0])
    require_same(loaded("chrombpnet", paths[0], bias=str(paths[1]), with_bias=True), model)


def test_files_that_are_another_part(tmp_path: Path) -> None:
    k = keras()
    path, _ = save(bpnet(k), tmp_path, "h5")
    with pytest.raises(UserError, match=r"holds the bias alone, .* model=bpnet, or .* model\.with_bias=true"):
        loaded("chrombpnet", path)
    path, _ = save(both(k), tmp_path, "h5")
    with pytest.raises(UserError, match="holds a ChromBPNet; use model=chrombpnet"):
        loaded("bpnet", path)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (
            {"activation": "tanh"},
            r"'bpnet_1conv' .*: activation is 'tanh'; expected relu, as chrombpnet has it; model=keras",
        ),
        ({"dilation_rate": 3}, r"'bpnet_1conv' .*: dilation_rate is \[3\]; expected \[2\]"),
        ({"kernel_size": 5}, r"its kernel is 5 wide, which no BPNet's is"),
        ({"padding": "same"}, r"padding is 'same'; expected valid"),
    ],
)
def test_another_layout(tmp_path: Path, odd: dict[str, Any], message: str) -> None:
    k = keras()
    if "kernel_size" in odd:
        L, x = k.layers, k.Input((LENGTH, 4))
        y = L.Conv1D(4, 21, activation="relu", name="bpnet_1st_conv")(x)
        conv = L.Conv1D(4, 5, dilation_rate=2, activation="relu")(y)
        model = k.Model(x, L.Flatten()(L.Add()([conv, L.Cropping1D(4)(y)])))
    else:
        model = bpnet(k, n_layers=1, **odd)
    path, _ = save(model, tmp_path, "h5")
    with pytest.raises(UserError, match=message):
        loaded("bpnet", path)


def test_other_models(tmp_path: Path) -> None:
    k = keras()
    path, _ = save(k.Sequential([k.Input((20, 4)), k.layers.Flatten(), k.layers.Dense(1)]), tmp_path, "h5")
    with pytest.raises(UserError, match=r"no layer wo_bias_bpnet_1st_conv or bpnet_1st_conv, .*model=keras reads"):
        loaded("bpnet", path)
    L, x = k.layers, k.Input((LENGTH, 4))
    first = L.Conv1D(4, 21, activation="relu", name="bpnet_1st_conv")(x)
    path, _ = save(k.Model(x, L.Dense(1)(L.Flatten()(first))), tmp_path, "h5")
    with pytest.raises(UserError, match=r"no GlobalAveragePooling1D follows on layer 'bpnet_1st_conv'"):
        loaded("bpnet", path)


def test_parts_that_are_not_summed(tmp_path: Path) -> None:
    k = keras()
    L, x = k.layers, k.Input((LENGTH, 4))
    own, bias = (part(x) for part in (bpnet(k, "wo_bias_"), bpnet(k)))
    counts = L.Concatenate()([own[1], bias[1]])
    path, _ = save(k.Model(x, [L.Maximum()([own[0], bias[0]]), L.Dense(1)(counts)]), tmp_path, "h5")
    with pytest.raises(UserError, match="are not joined as chrombpnet joins them"):
        loaded("chrombpnet", path)
