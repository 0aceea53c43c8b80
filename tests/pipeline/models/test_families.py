"""Published classes with random weights, in whole runs without a wrapper; each where its package is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import pipeline
from tests.pipeline.conftest import random_sequences, write_fasta

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    """A class, its arguments, what else the command says, the length of the sequences and the share of the explained
    difference that sums may be off by."""

    target: str
    init: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    more: tuple[str, ...] = ()
    length: int = 200
    tolerance: float = 1e-9


IN_SINGLE = ("engine.dtype=float32",)
TOKENS = ("model.tokens=[0,1,2,3,4]", "model.output=logits")
ENFORMER = {"dim": 48, "depth": 1, "heads": 2, "target_length": 4, "attn_dim_key": 8, "num_downsamples": 3}
CASES = [
    Case("bpnetlite.bpnet.BasePairNet", {"n_filters": 8, "n_layers": 4, "n_control_tracks": 0}, ("model.output=1",)),
    Case("chrombpnet.bpnet.BPNet", {"out_dim": 100, "n_filters": 8, "n_layers": 4}, ("model.output=1",), 400),
    Case(
        "cherimoya.cherimoya.Cherimoya",
        {"n_filters": 8, "n_layers": 4, "trimming": 30, "compile": False},
        ("model.output=1", *IN_SINGLE),
        160,
        1e-3,
    ),
    Case("personal_bpnet.procapnet.ProCapNet", {"n_filters": 8}, ("model.output=1",), 1200),
    Case(
        "enformer_pytorch.Enformer",
        ENFORMER | {"output_heads": {"human": 3}, "dim_divisible_by": 2},
        ("model.input_layout=nlc", "model.output=human[:, mid2].mean(1)"),
        64,
    ),
    Case("spliceai_pytorch.spliceai_pytorch.SpliceAI_80nt", {}, ("model.output=[:, mid, 2]",), 201),
    Case(
        "promoterai_torch.architecture.PromoterAI",
        {"num_blocks": 4, "model_dim": 8, "output_dims": [3, 2]},
        ("model.input_layout=nlc", "model.output=[0][:, mid]"),
        129,
    ),
    Case("explainn.models.networks.ExplaiNN", {"num_cnns": 8, "input_length": 200, "num_classes": 3}),
    Case("explainn.models.networks.DeepSTARR", {}, (), 249),
    Case(
        "multimolecule.models.basset.BassetForSequencePrediction",
        {"conv_channels": [8, 8, 8], "fc_sizes": [16, 16]},
        ("model.tokens=[0,1,2,3]", "model.output=logits"),
        600,
    ),
    Case(
        "multimolecule.models.malinois.MalinoisForSequencePrediction",
        {"conv_channels": [8, 8, 8], "linear_channels": 16},
        TOKENS,
        600,
    ),
    Case("multimolecule.models.mpradragonn.MpraDragoNnForSequencePrediction", {}, TOKENS, 145),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.target)
def test_sums_are_those_of_the_predictions(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module, _, name = case.target.rpartition(".")
    kind = getattr(pytest.importorskip(module, exc_type=ImportError), name)
    weights = _weights(kind, case.init)
    torch.save(weights, "w.pt")
    write_fasta(tmp_path / "x.fa", random_sequences(2, case.length))
    init = [f"model.init.{key}={json.dumps(value)}".replace('"', "") for key, value in case.init.items()]  # as typed
    of_run = ["dataset=fasta", "dataset.path=x.fa", "references.n_shuffles=2", "cluster=none", "store.path=a.zarr"]
    model = ["model=module", f"model._target_={case.target}", "model.checkpoint=w.pt", *init]
    dtype = [] if set(IN_SINGLE) & set(case.more) else ["engine.dtype=float64"]
    pipeline.run([*model, *case.more, *of_run, *dtype])
    found = pipeline.open_store("a.zarr")
    explained = np.abs(found["prediction"][:][..., None] - found["reference_prediction"][:]).max()
    assert explained > 0
    assert np.abs(found["convergence_delta"][:]).max() < case.tolerance * explained


def _weights(kind: Any, init: dict[str, Any]) -> dict[str, Any]:
    """Random; statistics and zeros as they are after training rather than before."""
    torch.manual_seed(0)
    config = getattr(kind, "config_class", None)
    made: nn.Module = kind(config(**init)) if config else kind(**init)
    with torch.no_grad():
        for part in made.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
        for values in made.parameters():
            if values.is_floating_point() and not values.any():
                values.normal_(0, 0.05)
    return made.state_dict()
