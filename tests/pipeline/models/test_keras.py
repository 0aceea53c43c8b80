"""model=keras: its settings, what is refused, and layers of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from pipeline.messages.errors import UserError
from pipeline.models.load import load_model
from tests.pipeline.conftest import chosen
from tests.pipeline.models.keras_files.test_files import WEIGHTS, layer, model, write


def load(path: Path, **settings: Any) -> Any:
    return load_model(chosen("model", "keras", checkpoint=str(path), **settings))


def bases() -> torch.Tensor:
    return torch.eye(4)[:, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]].unsqueeze(0)


@pytest.fixture
def own_layers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    class Scaled(nn.Module):
        """Times the number that its settings say, plus the one weight that it may have."""

        def __init__(self, config: dict[str, Any], weights: list[torch.Tensor]) -> None:
            super().__init__()
            self.by, self.weights = config.get("by", 2.0), nn.ParameterList(weights)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[1:] == (3, 9), "features before positions"
            return self.by * x + sum(self.weights)

    module = ModuleType("own_keras_layers")
    Scaled.__module__ = module.__name__
    module.Scaled = Scaled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def with_scale(kind: str, **config: Any) -> dict[str, Any]:
    """The model with a layer between the convolution and the flatten."""
    found = model()
    layers = found["config"]["layers"]
    described = {"class_name": kind, "name": "scale", "config": {"name": "scale", **config}}
    layers.insert(2, described | {"inbound_nodes": [[["conv", 0, 0, {}]]]})
    layers[3]["inbound_nodes"] = [[["scale", 0, 0, {}]]]
    return found


def test_a_run_of_it_knows_what_it_is(tmp_path: Path) -> None:
    loaded = load(write(tmp_path / "m.h5"))
    assert loaded.module(bases()).item() == 54
    assert loaded.description["target"] == "pipeline.models.keras_files.model.KerasModel"
    assert loaded.description["stored_as"] == []


def test_settings_that_are_not_for_it(tmp_path: Path) -> None:
    problems = [*chosen("model", "keras", init={"a": 1}, prefix="b.").problems()]
    assert [problem.partition(" is not")[0] for problem in problems] == ["model.init", "model.prefix"]


def test_a_layer_by_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.h5", layer("conv", class_name="ConvDNA"))
    with pytest.raises(UserError, match=r"'conv' \(ConvDNA\).*: model\.layers\.ConvDNA=Conv1D, say"):
        load(path)
    for name in ("ConvDNA", "conv"):  # of the class, or of the layer
        assert load(path, layers={name: "Conv1D"}).module(bases()).item() == 54
    with pytest.raises(UserError, match=r"model\.layers\.ConvDNA=Conv1; expected the class of a layer.*Conv1D"):
        load(path, layers={"ConvDNA": "Conv1"})


def test_an_activation_by_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.h5", with_scale("Activation", activation="my_gelu"))
    with pytest.raises(UserError, match=r"'scale' \(Activation\): its activation my_gelu is not one of Keras's own"):
        load(path)
    found = load(path, layers={"my_gelu": "gelu"}).module(bases()).item()
    assert found == pytest.approx(27 * nn.functional.gelu(torch.tensor(2.0)).item())
    described = write(tmp_path / "l.h5", with_scale("Lambda", function=["x", None, None]))
    assert load(described, layers={"scale": "relu"}).module(bases()).item() == 54


@pytest.mark.parametrize("name", ["Scaled", "scale"])
def test_a_class_of_ones_own(tmp_path: Path, own_layers: ModuleType, name: str) -> None:
    weights = WEIGHTS | {"scale": {"scale/offset:0": np.ones((), "f4")}}
    path = write(tmp_path / "m.h5", with_scale("Scaled", by=3.0), weights)
    loaded = load(path, layers={name: "own_keras_layers.Scaled"})
    assert loaded.module(bases()).item() == 27 * 7
    assert "own_keras_layers.Scaled" in loaded.identity["settings.modules"] or loaded.code.hashes


def test_a_lambda_and_the_module_for_it(tmp_path: Path, own_layers: ModuleType) -> None:
    path = write(tmp_path / "m.h5", with_scale("Lambda", function=["4wEAAAA=", None, None]))
    with pytest.raises(
        UserError, match=r"'scale' \(Lambda\): it is code .*, which is not run; .*model\.layers\.scale="
    ):
        load(path)
    assert load(path, layers={"scale": "own_keras_layers.Scaled"}).module(bases()).item() == 108


def test_a_class_that_fails(tmp_path: Path, own_layers: ModuleType) -> None:
    path = write(tmp_path / "m.h5", with_scale("Scaled"))
    with pytest.raises(UserError, match=r"model\.layers\.Scaled=absent\.Class cannot be imported: No module"):
        load(path, layers={"Scaled": "absent.Class"})
    own_layers.Fails = lambda config, weights: weights[3]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"layers\.Scaled=own_keras_layers\.Fails with \(config, weights\): IndexError"):
        load(path, layers={"Scaled": "own_keras_layers.Fails"})
    own_layers.Text = lambda config, weights: "x"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"own_keras_layers\.Text gives a str; expected a torch\.nn\.Module"):
        load(path, layers={"Scaled": "own_keras_layers.Text"})


def test_folds(tmp_path: Path) -> None:
    renamed = {f"{name}_7": arrays for name, arrays in WEIGHTS.items()}
    found = model()
    for described in found["config"]["layers"]:
        if described["name"] in WEIGHTS:
            described["name"] += "_7"
        for before in described["inbound_nodes"]:
            before[0][0] += "_7" if before[0][0] in WEIGHTS else ""
    found["config"]["output_layers"][0][0] = "dense_7"
    paths = [write(tmp_path / "a.h5"), write(tmp_path / "b.h5", found, renamed)]
    loaded = load_model(chosen("model", "keras", checkpoint=[str(path) for path in paths]))
    assert loaded.labels == ("a", "b")
    assert [fold(bases()).item() for fold in loaded.folds] == [54, 54]


def test_weights_in_float64_and_those_that_are_nan(tmp_path: Path) -> None:
    def with_bias(value: float) -> Any:
        return WEIGHTS | {"dense": WEIGHTS["dense"] | {"dense/bias:0": np.full(1, value)}}

    loaded = load(write(tmp_path / "m.h5", weights=with_bias(1.0)))
    assert loaded.description["stored_as"] == ["float64"]
    assert any("float64 and were converted to float32" in note for note in loaded.notes)
    with pytest.raises(UserError, match=r"'network\.layers\.dense\.bias' holds 1 of 1 values that are NaN"):
        load(write(tmp_path / "m.h5", weights=with_bias(1e300)))


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py to be read; .*pip install 'dlshap\[keras\]'"):
        load(path)


def test_an_architecture_that_is_not_there(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match=r"model\.architecture=no\.json: no such file"):
        load(tmp_path / "m.h5", architecture="no.json")
