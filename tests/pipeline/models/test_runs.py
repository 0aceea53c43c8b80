"""Models in whole runs: what the person is told, what the store says, and settings that contradict each other."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pipeline
from pipeline.config.compose import compose_config
from pipeline.messages.errors import UserError
from pipeline.messages.progress import shown_on_stderr
from pipeline.models.bpnet import BPNet
from tests.pipeline.conftest import random_sequences, write_fasta
from tests.pipeline.models.keras_files.test_files import WEIGHTS, model, write

OWN = """
from torch import nn

class Dense(nn.Module):
    def __init__(self, n_features=48):
        super().__init__()
        layers = [nn.Conv1d(4, 8, 5), nn.ReLU(), nn.MaxPool1d(4), nn.Flatten(), nn.Linear(n_features, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return self.body(x)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With a model of one's own and sequences of 30 bases."""
    (tmp_path / "dense_models.py").write_text(OWN)
    write_fasta(tmp_path / "x.fa", random_sequences(4, 30))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("dense_models", None)


def overrides(*more: str) -> list[str]:
    given = ["dataset=fasta", "dataset.path=x.fa", "cluster=none", "references.n_shuffles=2", "store.path=a.zarr"]
    return [*given, *more]


def dense(n_features: int = 48) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = importlib.import_module("dense_models").Dense(n_features)
    return module


def attributes(store: str = "a.zarr") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(store, "zarr.json").read_text())["attributes"]
    return found


def test_trust_is_on_the_terminal_and_in_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(dense(), "whole.pt")
    with pytest.raises(UserError, match=r"trust_pickle=true"):
        pipeline.run(overrides("model=module", "model.checkpoint=whole.pt"))
    assert not Path("a.zarr").exists()
    assert "WARNING" not in capsys.readouterr().err
    with shown_on_stderr():
        pipeline.run(overrides("model=module", "model.checkpoint=whole.pt", "model.trust_pickle=true"))
    assert "WARNING: whole.pt was read as a pickle, which runs whatever code is in it" in capsys.readouterr().err
    assert attributes()["model"]["trust_pickle"] is True


def test_the_length_that_a_model_wants_is_named() -> None:
    torch.save(dense().state_dict(), "w.pt")
    of_model = ["model=module", "model._target_=dense_models.Dense", "model.checkpoint=w.pt"]
    write_fasta(Path("x.fa"), random_sequences(4, 50))
    with pytest.raises(UserError, match=r"takes sequences of 28 to 31 bases, not of 50; .*dataset\.length"):
        pipeline.run(overrides(*of_model))
    torch.save(BPNet(n_filters=2, n_layers=1, trimming=30).state_dict(), "bpnet.pt")
    with pytest.raises(UserError, match=r"length 50 .*needs more than 60 .*trained on"):
        pipeline.run(overrides("model=bpnet", "model.checkpoint=bpnet.pt", "model.init.trimming=30"))


def test_chrombpnet_with_its_bias(folder: Path) -> None:
    for i, name in enumerate(("acc0.pt", "acc1.pt", "bias.pt")):
        torch.manual_seed(i)
        torch.save(BPNet(n_filters=4, n_layers=2, n_outputs=1, trimming=5).state_dict(), name)
    of_model = ["model=chrombpnet", "model.checkpoint=acc?.pt", "model.init.trimming=5"]
    pipeline.run(overrides(*of_model, "store.path=alone.zarr"))
    pipeline.run(overrides(*of_model, "model.bias=bias.pt", "model.with_bias=true"))
    with_bias, alone = attributes(), attributes("alone.zarr")
    assert with_bias["model"]["with_bias"] is True
    assert (with_bias["model"]["bias"], alone["model"]["bias"]) == ("bias.pt", None)
    assert with_bias["convergence"] == alone["convergence"] == "passed"
    different = pipeline.open_store("a.zarr")["prediction"][:] - pipeline.open_store("alone.zarr")["prediction"][:]
    assert float(np.abs(different).min()) > 1e-4
    with pytest.raises(UserError, match=r"belongs to another run: .*model\.weights"):
        pipeline.run(overrides(*of_model))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model=bpnet", "model.checkpoint=x", "model.bias=y"], r"model=bpnet and model\.bias contradict.*chrombpnet"),
        (["model=bpnet", "model.checkpoint=x", "model.with_bias=true"], r"model\.with_bias contradict"),
        (
            ["model=chrombpnet", "model.checkpoint=x", "model.bias=y"],
            r"add model\.with_bias=true, or leave model\.bias",
        ),
        (["model=chrombpnet", "model._target_=x.Y"], r"model=chrombpnet and model\._target_ contradict"),
        (["model.input_layout=nlcc"], r"model\.input_layout=nlcc; expected ncl, nc1l, ncl1, n1cl or nlc"),
        (["model.bases=ACGG"], r"model\.bases=ACGG; expected A, C, G and T"),
        (["model.bases=acgt"], r"model\.bases=acgt"),
    ],
)
def test_settings_that_contradict_each_other(more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(overrides(*more))


def test_a_file_of_keras() -> None:
    described = model()
    described["config"]["layers"][0]["config"]["batch_input_shape"] = [None, None, 4]
    described["config"]["layers"][2] |= {"class_name": "GlobalAveragePooling1D"}
    last = {"dense/kernel:0": np.arange(3, dtype="f4").reshape(3, 1), "dense/bias:0": np.zeros(1, "f4")}
    write(Path("m.h5"), described, WEIGHTS | {"dense": last})
    of_model = overrides("model=keras", "model.checkpoint=m.h5")
    pipeline.run(of_model)
    assert attributes()["model"]["target"] == "pipeline.models.keras_files.model.KerasModel"
    assert np.allclose(pipeline.open_store("a.zarr")["prediction"][:], 6)
    write(Path("m.h5"), described, WEIGHTS | {"dense": last | {"dense/bias:0": np.ones(1, "f4")}})
    with pytest.raises(UserError, match=r"belongs to another run: .*model\.weights"):
        pipeline.run(of_model)
