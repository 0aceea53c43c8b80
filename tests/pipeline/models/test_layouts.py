"""Models of the DeepSEA and Basset kind: images of one row, other orders of axes and bases, flatten and dense layers.

No published checkpoint is at hand: the networks are small ones with the layers, parameter names and input shapes of
Beluga's published source (Conv2d (1, k) on (N, 4, 1, L), bases A, G, C, T) and of Kipoi's Basset (Conv2d (k, 1) on
(N, 4, L, 1), batch norm), and their state dicts are written as those sources load them.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tangermeme.deep_lift_shap import deep_lift_shap as peer
from torch import Tensor, nn

from dlshap_core.audit import audit
from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from pipeline.config.model_input import LAYOUTS
from pipeline.models.layouts import InputLayout
from pipeline.models.load import LoadedModel, load_model
from tests.pipeline.conftest import chosen

LENGTH = 60
SOURCE = """
from torch import nn


class Call(nn.Sequential):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Beluga(nn.Module):
    def __init__(self, n_features=96, n_targets=3):
        super().__init__()
        self.model = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(4, 6, (1, 8)), nn.ReLU(), nn.Conv2d(6, 6, (1, 8)), nn.ReLU(), nn.Dropout(0.2),
                nn.MaxPool2d((1, 4), (1, 4)), nn.Conv2d(6, 8, (1, 4)), nn.ReLU(), nn.Dropout(0.2),
            ),
            nn.Sequential(
                nn.Dropout(0.5), Call(lambda x: x.view(x.size(0), -1)),
                nn.Sequential(Call(lambda x: x.view(1, -1) if x.dim() == 1 else x), nn.Linear(64, 5)), nn.ReLU(),
                nn.Sequential(Call(lambda x: x.view(1, -1) if x.dim() == 1 else x), nn.Linear(5, n_targets)),
            ),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return self.model(x)


def basset():
    return nn.Sequential(
        nn.Conv2d(4, 6, (7, 1)), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d((3, 1), (3, 1)),
        nn.Conv2d(6, 5, (5, 1)), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d((4, 1), (4, 1)),
        Call(lambda x: x.view(x.size(0), -1)),
        nn.Sequential(Call(lambda x: x), nn.Linear(15, 7)), nn.BatchNorm1d(7, 1e-05, 0.1, True), nn.ReLU(),
        nn.Dropout(0.3), nn.Sequential(Call(lambda x: x), nn.Linear(7, 2)), nn.Sigmoid(),
    )
"""
KINDS = {"Beluga": ("nc1l", "AGCT"), "basset": ("ncl1", "ACGT")}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "published_models.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("published_models")
    sys.modules.pop("published_models")


def made(source: Any, kind: str) -> nn.Module:
    """With weights and running statistics that are not those it starts with."""
    torch.manual_seed(1)
    module = getattr(source, kind)()
    for name, values in module.state_dict().items():
        if name.endswith("running_var"):
            values.uniform_(0.5, 2.0)
        elif values.is_floating_point():
            values.normal_(0, 0.4)
    return module.eval()


def load(source: Any, kind: str, folder: Path) -> tuple[LoadedModel, nn.Module]:
    reference = made(source, kind)
    state = {name: values for name, values in reference.state_dict().items() if "num_batches" not in name}
    torch.save(state, folder / "weights.pth", _use_new_zipfile_serialization=False)  # of torch before 0.4.1
    layout, bases = KINDS[kind]
    values = {"name": "module", "_target_": f"published_models.{kind}", "checkpoint": folder / "weights.pth"}
    values |= {"input_layout": layout, "bases": bases}
    return load_model(chosen("model", **values)), reference


def codes(n: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 4, size=(n, LENGTH)).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_published_layouts_give_the_models_own_numbers(kind: str, source: Any, tmp_path: Path) -> None:
    loaded, reference = load(source, kind, tmp_path)
    text = ["".join("ACGT"[code] for code in row) for row in codes(3, 0)]
    order = KINDS[kind][1]
    image = torch.tensor([[[1.0 if base == channel else 0.0 for base in row] for channel in order] for row in text])
    image = image.unsqueeze(2) if kind == "Beluga" else image.unsqueeze(3)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(one_hot(codes(3, 0), torch.float32)), reference(image))
    assert (loaded.description["input_layout"], loaded.description["bases"]) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_are_exact_and_those_of_the_bare_layers(kind: str, source: Any, tmp_path: Path) -> None:
    """Sums to 1e-10 in float64; values: tangermeme's of the same network written without the adapter."""
    loaded, reference = load(source, kind, tmp_path)
    x, references = one_hot(codes(2, 0)), torch.stack([one_hot(codes(2, seed)) for seed in (1, 2, 3)], dim=1)
    module = loaded.module.double()
    found = attribute(module, x, references, targets=(0, 1), batch_size=3, dtype=torch.float64)
    assert float(found.convergence_delta.abs().max()) < 1e-10
    assert float((found.prediction.unsqueeze(-1) - found.reference_prediction).abs().min()) > 1e-4
    assert audit(module, x, targets=(0, 1), dtype=torch.float64).refused == ()
    layout, bases = KINDS[kind]
    permuted = torch.tensor(["ACGT".index(base) for base in bases])

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = reference.double()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x[:, permuted].unsqueeze(2 if layout == "nc1l" else 3))

    expected = peer(
        Bare().eval(),
        x.double(),
        references=references.double(),
        target=1,
        hypothetical=True,
        device="cpu",
    )
    torch.testing.assert_close(found.hypothetical[:, 1].double(), expected, rtol=1e-4, atol=1e-6)


class Shape(nn.Module):
    """Weighs every place of its input by itself."""

    weight: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.arange(4.0 * 5).reshape(shape))

    def forward(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        assert x.shape[1:] == self.weight.shape
        return (x * self.weight).flatten(1).sum(1, keepdim=True) * scale


SHAPES = {"ncl": (4, 5), "nc1l": (4, 1, 5), "ncl1": (4, 5, 1), "n1cl": (1, 4, 5), "nlc": (5, 4)}


@pytest.mark.parametrize("bases", ["ACGT", "AGCT", "TGCA"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_moves_axes_and_bases(layout: str, bases: str) -> None:
    model = Shape(*SHAPES[layout])
    x = one_hot(np.array([[0, 1, 2, 3, 0]], dtype=np.uint8))
    adapted = InputLayout(model, layout, bases)
    expected = 0.0
    for position, base in enumerate("ACGTA"):
        channel = bases.index(base)
        expected += (position * 4 + channel) if layout == "nlc" else (channel * 5 + position)
    assert float(adapted(x)) == expected
    assert float(adapted(x, torch.tensor(2.0))) == 2 * expected
