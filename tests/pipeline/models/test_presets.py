"""Choices of `model` for one package each; packages of their names stand in for them, with the same arguments, names,
layouts and outputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.compose import compose_config
from pipeline.messages.errors import UserError
from pipeline.models.load import load_model
from tests.pipeline.conftest import chosen

LENGTH = 42
X = nn.functional.one_hot(torch.from_numpy(np.random.default_rng(0).integers(4, size=(2, LENGTH))), 4).mT.float()
PACKAGE = """
import torch
from torch import Tensor, nn


class Config:
    def __init__(self, dim=4, output_heads=None, **more):
        self.dim, self.output_heads = dim, output_heads or {"human": 3}


class Enformer(nn.Module):
    config_class = Config

    def __init__(self, config):
        super().__init__()
        self.config, self.conv = config, nn.Conv1d(4, config.dim, 5, stride=4)
        self.heads = nn.ModuleDict({name: nn.Linear(config.dim, n) for name, n in config.output_heads.items()})

    def forward(self, x, target=None, head=None):
        h = self.conv(x.transpose(1, 2)).relu().transpose(1, 2)
        return {name: nn.functional.softplus(head(h)) for name, head in self.heads.items()}


class Borzoi(nn.Module):
    config_class = Config

    def __init__(self, config):
        super().__init__()
        self.config, self.conv, self.human_head = config, nn.Conv1d(4, config.dim, 5), nn.Conv1d(config.dim, 3, 1)

    def forward(self, x, is_human=True, return_embeddings=False):
        return nn.functional.softplus(self.human_head(self.conv(x).relu().float()))


class Cherimoya(nn.Module):
    def __init__(self, n_filters=128, n_layers=9, trimming=None, verbose=True, compile=True):
        super().__init__()
        assert not compile and not verbose
        self.trimming, self.iconv = trimming, nn.Conv1d(4, n_filters, 5, padding=2)
        self.fconv, self.linear = nn.Conv1d(n_filters, 1, 5, padding=2), nn.Linear(n_filters, 1)

    def forward(self, X, X_ctl=None):
        h = nn.functional.gelu(self.iconv(X), approximate="tanh")
        return self.fconv(h)[:, :, self.trimming:-self.trimming], self.linear(h.mean(2))


class Unit(nn.Module):
    def __init__(self, n, width, dilation):
        super().__init__()
        self.conv1 = nn.Conv1d(n, n, width, dilation=dilation, padding="same")


class SpliceAI(nn.Module):
    def __init__(self, L, W, AR, apply_softmax=True):
        super().__init__()
        self.initial_conv, self.final_conv = nn.Conv1d(4, L, 1), nn.Conv1d(L, 3, 1)
        self.residual_units = nn.ModuleList()
        for i, (width, dilation) in enumerate(zip(W, AR, strict=True), 1):
            self.residual_units.append(Unit(L, width, dilation))
            if i % 4 == 0:
                self.residual_units.append(nn.Identity())
        self.crop = int((AR * (W - 1)).sum())

    def forward(self, x):
        h = self.initial_conv(x)
        for unit in self.residual_units:
            h = h if isinstance(unit, nn.Identity) else h + unit.conv1(h.relu())
        return self.final_conv(h[:, :, self.crop:-self.crop]).softmax(1)
"""
NAMES = ("enformer_pytorch", "borzoi_pytorch", "cherimoya", "openspliceai")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for file in (*NAMES, "cherimoya/cherimoya", "openspliceai/train_base/openspliceai"):
        place = tmp_path / "lib/site-packages" / (f"{file}.py" if "/" in file else f"{file}/__init__.py")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "lib/site-packages")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]


def made(package: str, name: str, *args: Any, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    module = getattr(__import__(package, fromlist=[name]), name)
    return module(module.config_class(**more)) if hasattr(module, "config_class") else module(*args, **more)


def hub(model: nn.Module, path: str, **config: Any) -> str:
    Path(path).mkdir()
    torch.save(model.state_dict(), f"{path}/pytorch_model.bin")
    Path(f"{path}/config.json").write_text(json.dumps(config))
    return path


def predicted(family: str, checkpoint: str, x: Tensor = X) -> np.ndarray:
    """(N, T) of what a command explains."""
    config = compose_config([f"model={family}", f"model.checkpoint={checkpoint}", "dataset=fasta", "dataset.path=x.fa"])
    return load_model(config.model).module(x).detach().numpy()


def test_enformer_takes_its_layout_and_the_middle_of_its_human_tracks() -> None:
    model = made("enformer_pytorch", "Enformer", dim=6, output_heads={"human": 3, "mouse": 2})
    path = hub(model, "hub", dim=6, output_heads={"human": 3, "mouse": 2})
    found = predicted("enformer", path)
    human = model(X.mT)["human"]
    np.testing.assert_allclose(found, human[:, 3:7].mean(1).detach(), rtol=1e-5)


def test_borzoi_takes_the_middle_of_its_tracks() -> None:
    model = made("borzoi_pytorch", "Borzoi", dim=6)
    found = predicted("borzoi", hub(model, "hub", dim=6))
    np.testing.assert_allclose(found, model(X)[:, :, 17:21].mean(2).detach(), rtol=1e-5)


def test_a_file_of_cherimoya_says_what_its_model_is() -> None:
    config = {"n_filters": 6, "n_layers": 1, "trimming": 4, "verbose": False}
    model = made("cherimoya.cherimoya", "Cherimoya", compile=False, **config)
    torch.save({"config": config, "state_dict": model.state_dict()}, "model.torch")
    found = predicted("cherimoya", "model.torch")
    np.testing.assert_allclose(found, model(X)[1].detach(), rtol=1e-5)
    torch.save(model.state_dict(), "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt has no config .* model\.output=1"):
        load_model(chosen("model", "cherimoya", checkpoint="weights.pt"))


def test_the_sizes_of_openspliceai_are_those_of_its_weights() -> None:
    widths, dilations = np.array([5] * 4 + [3] * 4), np.array([1] * 4 + [4] * 4)
    model = made("openspliceai.train_base.openspliceai", "SpliceAI", 6, widths, np.ones(8, int))
    torch.save(model.state_dict(), "model_400nt.pt")
    loaded = load_model(chosen("model", "openspliceai", checkpoint="model_400nt.pt"))
    assert loaded.description["init"]["W"]["object"] == widths.tolist()
    assert loaded.description["init"]["AR"]["object"] == dilations.tolist()
    short = made("openspliceai.train_base.openspliceai", "SpliceAI", 6, widths[:4], dilations[:4])
    torch.save({f"module.{name}": value for name, value in short.state_dict().items()}, "model_80nt.pt")
    odd = X[:, :, 1:]
    np.testing.assert_allclose(predicted("openspliceai", "model_80nt.pt", odd), short(odd)[:, 2, 4].detach(), rtol=1e-5)
    digits = {f"{name}.weight": torch.ones(1) for name in ("initial_conv", f"residual_units.{'9' * 5000}.conv1")}
    for state in (nn.Linear(2, 2).state_dict(), digits):
        torch.save(state, "other.pt")
        with pytest.raises(UserError, match=r"other\.pt is no checkpoint of OpenSpliceAI"):
            load_model(chosen("model", "openspliceai", checkpoint="other.pt"))
