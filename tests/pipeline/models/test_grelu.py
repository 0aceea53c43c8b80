"""gReLU's checkpoints, written to the layout of its LightningModel; a package of its name stands in for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.messages.errors import UserError
from pipeline.models.load import LoadedModel, load_model
from tests.pipeline.conftest import chosen

PACKAGE = """
from torch import nn
class ConvModel(nn.Module):
    def __init__(self, n_tasks, channels=4, final_pool_func="avg", dtype=None):
        super().__init__()
        self.embedding, self.head = nn.Conv1d(4, channels, 3), nn.Conv1d(channels, n_tasks, 1)
        self.pooled = final_pool_func == "avg"
    def forward(self, x):
        y = self.head(self.embedding(x).relu())
        return y.mean(2, keepdim=True) if self.pooled else y
"""
PARAMS = {"model_type": "ConvModel", "n_tasks": 3, "channels": 6, "final_pool_func": None, "dtype": None}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "lib/grelu/model").mkdir(parents=True)
    for folder in ("grelu", "grelu/model"):
        (tmp_path / "lib" / folder / "__init__.py").touch()
    (tmp_path / "lib/grelu/model/models.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "grelu"]:
        del sys.modules[name]


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    parts = {"model.embedding": nn.Conv1d(4, 6, 3), "model.head": nn.Conv1d(6, 3, 1)}
    return {f"{key}.{name}": value for key, part in parts.items() for name, value in part.state_dict().items()}


def checkpoint(path: Path, params: object = PARAMS) -> Path:
    train = {"task": "regression", "loss": "mse"}
    content = {
        "state_dict": {**state(), "loss.pos_weight": torch.ones(3)},
        "hyper_parameters": {"model_params": params, "train_params": train},
        "data_params": {"tasks": {"name": ["a", "b", "c"]}, "train": {"seq_len": 20}},
        "pytorch-lightning_version": "2.6.0",
        "epoch": 3,
    }
    torch.save(content, path)
    return path


def load(path: Path, **values: Any) -> LoadedModel:
    return load_model(chosen("model", name="grelu", checkpoint=str(path), **values))


def test_the_checkpoint_says_what_the_model_is(tmp_path: Path) -> None:
    found = load(checkpoint(tmp_path / "m.ckpt"), output="[:, :, mid4].mean(2)")
    X = torch.eye(4).repeat(1, 5).unsqueeze(0)
    weights = state()
    hidden = nn.functional.conv1d(X, weights["model.embedding.weight"], weights["model.embedding.bias"]).relu()
    expected = nn.functional.conv1d(hidden, weights["model.head.weight"], weights["model.head.bias"])
    assert torch.allclose(found.folds[0](X), expected[:, :, 7:11].mean(2))
    assert found.description["init"] == {name: PARAMS[name] for name in PARAMS if name != "model_type"}


def test_the_command_comes_before_the_file(tmp_path: Path) -> None:
    found = load(checkpoint(tmp_path / "m.ckpt"), init={"final_pool_func": "avg"})
    assert found.folds[0](torch.zeros(2, 4, 20)).shape[:2] == (2, 3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, r"no hyper_parameters\.model_params with a model_type"),
        ({"n_tasks": 3}, r"no hyper_parameters\.model_params with a model_type"),
        ({**PARAMS, "model_type": "os.system"}, r"no hyper_parameters\.model_params with a model_type"),
        ({**PARAMS, "model_type": "nn"}, "is not called|is a module"),
        ({**PARAMS, "dtype": {"_target_": "os.mkdir"}}, "holds _target_, which would run code"),
        ({**PARAMS, "channels": torch.ones(2)}, r"model_params\.channels is a Tensor"),
        ({**PARAMS, "channels": 7}, r"weight"),
    ],
)
def test_what_is_no_checkpoint_of_grelu(tmp_path: Path, params: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(checkpoint(tmp_path / "m.ckpt", params))
