"""What earlier versions of Keras wrote otherwise, and trained files of theirs."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.keras_files.load import load_keras
from pipeline.models.keras_files.model import KerasModel
from tests.conftest import real_data_directory
from tests.pipeline.models.keras_files.oracle import keras, one_hot, predictions, randomised, save
from tests.pipeline.models.keras_files.test_files import LAYERS, WEIGHTS, model, write

REAL = real_data_directory() / "keras"


def chain(*calls: tuple[str, int]) -> dict[str, Any]:
    """An outer model of Keras 2: the chain within it, called on the input, under the given numbers of its calls."""
    inner = model() | {"name": "inner"}
    inner["config"]["name"] = "inner"
    described = [
        {**LAYERS[0], "inbound_nodes": []},
        {**inner, "inbound_nodes": [[["dna", 0, 0, {}]] for _ in calls]},
        {
            "class_name": "Add",
            "name": "add",
            "config": {"name": "add"},
            "inbound_nodes": [[[name, number, 0, {}] for name, number in calls]],
        },
    ]
    ends = {"input_layers": [["dna", 0, 0]], "output_layers": [["add", 0, 0]]}
    return {"class_name": "Model", "config": {"name": "outer", "layers": described, **ends}}


@pytest.mark.parametrize("first", [0, 1])
def test_calls_of_a_model_within_a_model_are_counted_from_0_or_1(tmp_path: Path, first: int) -> None:
    weights = {"inner": {name: values for arrays in WEIGHTS.values() for name, values in arrays.items()}}
    described = chain(("inner", first), ("inner", first + 1))
    module = load_keras(write(tmp_path / "m.h5", described, weights)).module
    x = torch.from_numpy(one_hot(10)).transpose(1, 2)
    assert module(x).tolist() == [[108.0]] * 3


def test_weights_within_a_model_are_told_by_name_where_their_order_is_another(tmp_path: Path) -> None:
    arrays = [(name, values) for arrays in WEIGHTS.values() for name, values in arrays.items()]
    weights = {"inner": dict(arrays[2:] + arrays[:2])}
    described = chain(("inner", 1), ("inner", 2))
    assert load_keras(write(tmp_path / "m.h5", described, weights)).module(torch.zeros(1, 4, 10)).item() == 0


def test_a_sequential_model_as_a_list(tmp_path: Path) -> None:
    """Keras before 2.2.3; the shape is among the settings of its first layer."""
    layers = [{"class_name": layer["class_name"], "config": dict(layer["config"])} for layer in LAYERS[1:]]  # type: ignore[call-overload]
    layers[0]["config"]["batch_input_shape"] = [None, 10, 4]
    module = load_keras(write(tmp_path / "m.h5", {"class_name": "Sequential", "config": layers})).module
    assert module.length == 10
    assert module(torch.from_numpy(one_hot(10)).transpose(1, 2)).tolist() == [[54.0]] * 3


def test_names_in_pieces(tmp_path: Path) -> None:
    """A list of names over 64 KiB is written in several attributes."""

    def split(file: h5py.File) -> None:
        group = file["model_weights"]
        names = [*group.attrs["layer_names"]]
        del group.attrs["layer_names"]
        for index, name in enumerate(names):
            group.attrs[f"layer_names{index}"] = [name]

    module = load_keras(write(tmp_path / "m.h5", change=split)).module
    assert module(torch.from_numpy(one_hot(10)).transpose(1, 2)).tolist() == [[54.0]] * 3


def test_an_archive_of_keras_2_13(tmp_path: Path) -> None:
    """It calls the layers' groups otherwise, and attention's parts by their private names."""
    k = keras()
    L, x = k.layers, k.Input((12, 4))
    net = randomised(k.Model(x, L.Dense(2)(L.Flatten()(L.MultiHeadAttention(2, 3)(x, x)))))
    path, _ = save(net, tmp_path, "keras")
    old = tmp_path / "old.keras"
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(old, "w") as found:
        found.writestr("config.json", new.read("config.json"))
        found.writestr("metadata.json", json.dumps({"keras_version": "2.13.1"}))
        (tmp_path / "weights.h5").write_bytes(new.read("model.weights.h5"))
        with h5py.File(tmp_path / "weights.h5", "a") as file:
            file.move("layers", "_layer_checkpoint_dependencies")
            attention = file["_layer_checkpoint_dependencies/multi_head_attention"]
            for name in ("query", "key", "value", "output"):
                attention.move(f"{name}_dense", f"_{name}_dense")
        found.write(tmp_path / "weights.h5", "model.weights.h5")
    sequences = torch.from_numpy(one_hot(12)).transpose(1, 2)
    assert torch.equal(load_keras(old).module(sequences), load_keras(path).module(sequences))


def trained(name: str, description: str | None = None, **layers: str) -> KerasModel:
    return load_keras(REAL / name, REAL / description if description else None, layers).module


@pytest.mark.parametrize(
    ("name", "length", "more"), [("mmsplice_Donor", 18, 0), ("mmsplice_Intron3", 80, 0), ("xpresso", 10_500, 6)]
)
class TestTrained:
    pytestmark = pytest.mark.real

    def test_predictions_are_those_of_keras(self, name: str, length: int, more: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = keras().saving.load_model(REAL / f"{name}.h5", compile=False)
        x = one_hot(length, 2)
        others = [np.random.RandomState(0).rand(2, more).astype("f4")] if more else []
        (wanted,) = predictions(theirs, [x, *others])
        found = trained(f"{name}.h5")(torch.from_numpy(x).transpose(1, 2), *map(torch.from_numpy, others))
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5, atol=1e-6)


def weights_of(name: str) -> dict[str, Tensor]:
    """Every array of a file in float64, by its last two names."""
    found: dict[str, Tensor] = {}

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and "optimizer" not in path:
            layer, weight = path.split("/")[-2:]
            found[f"{layer}/{weight.split(':')[0]}"] = torch.from_numpy(item[()]).double()

    with h5py.File(REAL / name) as file:
        file.visititems(visit)
    return found


def convolved(x: Tensor, weights: dict[str, Tensor], name: str, norm: str, padding: int) -> Tensor:
    """(N, C, L): a convolution with ReLU, then batch normalisation."""
    x = F.relu(F.conv1d(x, weights[f"{name}/kernel"].permute(2, 1, 0), weights[f"{name}/bias"], padding=padding))
    mean, variance, gamma, beta = (weights[f"{norm}/{w}"] for w in ("moving_mean", "moving_variance", "gamma", "beta"))
    return F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)


@pytest.mark.real
def test_trained_files_that_keras_3_does_not_read() -> None:
    x = torch.from_numpy(one_hot(145, 2)).transpose(1, 2).double()
    weights = weights_of("mpra_dragonn_conv.weights.h5")
    hidden = x
    for i in (1, 2, 3):
        hidden = convolved(hidden, weights, f"conv1d_{i}", f"batch_normalization_{i}", 0)
    wanted = hidden.transpose(1, 2).flatten(1) @ weights["dense_1/kernel"] + weights["dense_1/bias"]
    found = trained("mpra_dragonn_conv.weights.h5", "mpra_dragonn_conv.json").double()(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)

    x, weights = x[:, :, :53], weights_of("mmsplice_Acceptor.h5")
    hidden = convolved(x, weights, "convSpliceSite", "batch_normalization_1", 7)
    hidden = convolved(hidden, weights, "conv1by1", "batch_normalization_2", 0)
    wanted = hidden.transpose(1, 2).flatten(1) @ weights["denseSS/kernel"] + weights["denseSS/bias"]
    found = trained("mmsplice_Acceptor.h5", ConvDNA="Conv1D").double()(x)
    torch.testing.assert_close(found, wanted.sigmoid(), rtol=0, atol=1e-12)
