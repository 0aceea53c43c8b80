"""Classes that take one object of settings: arguments and `config.json` are given to its class.

Stand-ins to the layout of transformers' `PretrainedConfig` and `PreTrainedModel`, as Enformer's and Borzoi's ports and
DNABERT's kind have it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.messages.errors import UserError
from pipeline.models.load import LoadedModel, load_model
from tests.pipeline.conftest import chosen

OF_FILE = {"dim": 3, "heads": {"human": 5, "mouse": 2}, "model_type": "tiny", "transformers_version": "5.0"}


class Settings:
    def __init__(self, dim: int = 8, heads: dict[str, int] | None = None, **others: Any) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}")
        self.dim, self.heads, self.others = dim, heads or {"human": 4}, others


class Tiny(nn.Module):
    config_class = Settings

    def __init__(self, config: Settings, pooled: bool = True) -> None:
        super().__init__()
        self.config, self.pooled = config, pooled
        self.stem = nn.Conv1d(4, config.dim, 3)
        self.heads = nn.ModuleDict({name: nn.Linear(config.dim, n) for name, n in config.heads.items()})

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.stem(X).relu()
        y = y.mean(2) if self.pooled else y.amax(2)
        return {name: head(y) for name, head in self.heads.items()}


def hub(path: Path, settings: object = None, **values: Any) -> Path:
    path.mkdir()
    torch.manual_seed(0)
    torch.save(Tiny(Settings(**values)).state_dict(), path / "pytorch_model.bin")
    if settings is not None:
        (path / "config.json").write_text(json.dumps(settings))
    return path


def load(path: Path, **init: Any) -> LoadedModel:
    target = f"{__name__}.Tiny"
    return load_model(
        chosen("model", name="module", _target_=target, checkpoint=str(path), init=init, output="human", bases="ACGT")
    )


def of(found: LoadedModel) -> Tiny:
    return next(each for each in found.folds[0].modules() if isinstance(each, Tiny))


def test_the_folder_says_all(tmp_path: Path) -> None:
    found = load(hub(tmp_path / "hub", OF_FILE, dim=3, heads=OF_FILE["heads"]))
    net = of(found)
    assert (net.config.dim, net.config.heads, net.config.others["model_type"]) == (3, OF_FILE["heads"], "tiny")
    assert found.description["init"] == OF_FILE
    X = torch.eye(4).repeat(1, 5).unsqueeze(0)
    assert torch.equal(found.folds[0](X), net(X)["human"])


def test_the_command_comes_before_the_folder(tmp_path: Path) -> None:
    path = hub(tmp_path / "hub", OF_FILE, dim=6, heads=OF_FILE["heads"])
    net = of(load(path, dim=6, pooled=False))
    assert (net.config.dim, net.pooled) == (6, False)
    with pytest.raises(UserError, match=r"stem\.weight.*\(6, 4, 3\).*\(3, 4, 3\)"):
        load(path)


def test_without_a_folder(tmp_path: Path) -> None:
    path = hub(tmp_path / "hub", dim=2, heads={"human": 7})
    net = of(load(path / "pytorch_model.bin", dim=2, heads={"human": 7}))
    assert net.config.heads == {"human": 7}


def test_an_object_of_settings_is_the_whole_of_them(tmp_path: Path) -> None:
    path = hub(tmp_path / "hub", OF_FILE, dim=2)
    net = of(load(path, config={"_target_": f"{__name__}.Settings", "dim": 2}))
    assert (net.config.dim, net.config.others) == (2, {})


def test_settings_that_the_class_refuses(tmp_path: Path) -> None:
    path = hub(tmp_path / "hub", {"dim": 0})
    with pytest.raises(UserError, match=r"Settings does not take model\.init=.*dim.*ValueError: dim is 0"):
        load(path)
