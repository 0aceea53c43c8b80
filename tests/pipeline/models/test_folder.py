"""Folders as model hubs hand them out. Fixtures, written to the layout that safetensors and model hubs document."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.messages.errors import UserError
from pipeline.models.load import LoadedModel, load_model
from tests.pipeline.conftest import chosen

INIT = {"in_features": 4, "out_features": 2}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(4, 2).state_dict()


def load(path: Path, **values: Any) -> LoadedModel:
    values = {"name": "module", "_target_": "torch.nn.Linear", "checkpoint": str(path), **values}
    return load_model(chosen("model", **values))


def folder(path: Path, settings: object = None, parts: bool = False) -> Path:
    path.mkdir()
    if settings is not None:
        (path / "config.json").write_text(json.dumps(settings))
    if not parts:
        save_file(weights(), path / "model.safetensors")
        return path
    files = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(weights(), 1)}
    for name, file in files.items():
        save_file({name: weights()[name]}, path / file)
    index = {"metadata": {"total_size": 40}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("settings", [None, {**INIT, "architectures": ["Linear"], "_name_or_path": "x"}])
def test_a_folder_is_its_weights(tmp_path: Path, parts: bool, settings: dict[str, Any] | None) -> None:
    found = load(folder(tmp_path / "hub", settings, parts), init={} if settings else INIT)
    for name, values in found.folds[0].state_dict().items():
        assert torch.equal(values, weights()[name.removeprefix("model.")])
    assert found.description["init"] == INIT  # what the class does not take is left out
    assert found.description["checkpoint"] == "hub"
    assert found.labels == ("hub",)
    torch.save(weights(), tmp_path / "w.pt")
    assert found.weights_hash == load(tmp_path / "w.pt", init=INIT).weights_hash


def test_arguments_of_the_command_come_before_those_of_the_folder(tmp_path: Path) -> None:
    path = folder(tmp_path / "hub", {**INIT, "out_features": 9})
    assert load(path, init={"out_features": 2}).description["init"] == INIT
    with pytest.raises(UserError, match=r"weight \(2, 4\) \(model: \(9, 4\)\)"):
        load(path)


def test_folders_may_be_folds(tmp_path: Path) -> None:
    for fold in range(2):
        folder(tmp_path / f"fold{fold}", INIT)
    assert load(tmp_path / "fold?").labels == ("fold0", "fold1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**INIT, "bias": {"_target_": "os.mkdir", "path": "ran"}}, "holds _target_, which would run code"),
        ({**INIT, "x": [{"_args_": [1], "_partial_": True}]}, "holds _args_, which would run code"),
        ({**INIT, "device": "${oc.env:HOME}"}, r"oc\.env:HOME.*replaced by something else"),
        ([1], "holds a JSON list"),
    ],
)
def test_settings_that_would_call_something(
    tmp_path: Path, settings: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "hub", settings)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load(path)
    assert os.listdir(tmp_path) == ["hub"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"weight": "../w.safetensors"}, r"names '\.\./w\.safetensors'; its parts must lie beside it"),
        ({"weight": "/etc/passwd"}, "must lie beside it"),
        ({"weight": ".."}, "must lie beside it"),
        ({"weight": "a.safetensors", "bias": "a.safetensors"}, r"a\.safetensors is missing.*for weight and 1 more"),
        ({"wait": "model-00001-of-00002.safetensors"}, r"has no wait, which model\.safetensors\.index\.json says"),
        ({}, "no weight_map"),
        ({"weight": 3}, "no weight_map"),
    ],
)
def test_indices_that_do_not_hold(tmp_path: Path, weight_map: dict[str, Any], message: str) -> None:
    path = folder(tmp_path / "hub", INIT, parts=True)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        load(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_files_that_are_not_json(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path / "hub", INIT, parts=True)
    (path / name).write_text("{")
    with pytest.raises(UserError, match=f"{name} is not JSON"):
        load(path)


def test_a_part_that_is_damaged(tmp_path: Path) -> None:
    path = folder(tmp_path / "hub", INIT, parts=True)
    part = path / "model-00002-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is a damaged safetensors file"):
        load(path)


def test_what_was_taken_of_a_folder_is_said(tmp_path: Path) -> None:
    path = folder(tmp_path / "hub", {**INIT, "bias": True, "architectures": ["Linear"]})
    arguments = f"arguments of torch.nn.Linear from {path}/config.json: in_features=4, out_features=2, bias=True"
    assert load(path).notes == (arguments,)
    assert load(path, init={"bias": True, "in_features": 4}).notes == (
        f"arguments of torch.nn.Linear from {path}/config.json: out_features=2",
    )
    torch.save(weights(), path / "pytorch_model.bin")
    assert load(path).notes == (
        f"{path} holds several files of weights: model.safetensors is taken, not pytorch_model.bin "
        f"(model.checkpoint={path / 'pytorch_model.bin'} takes that one)",
        arguments,
    )


def test_the_files_of_a_pattern_are_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(weights(), tmp_path / f"{name}.safetensors")
    assert load(tmp_path / "*.safetensors", init=INIT).notes == (
        f"model.checkpoint={tmp_path / '*.safetensors'}: 2 files, whose mean is attributed: a.safetensors, "
        "b.safetensors",
    )
    assert load(tmp_path / "[a].safetensors", init=INIT).notes == ()
