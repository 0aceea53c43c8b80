"""Rows that influence each other are found in the run, whatever batch and shard they come in, and named."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pipeline
from dlshap_core.engine import predict
from dlshap_core.one_hot import one_hot
from dlshap_core.references import shuffle_codes
from pipeline.execution.ensemble import attribute_rows
from pipeline.execution.spot_check import SpotCheck, SpotChecks
from pipeline.messages.errors import RunError, ShardError
from pipeline.models.example import ExampleNet
from pipeline.planning.plan import Plan
from pipeline.planning.shards import Shard
from pipeline.references.base import ShardReferences
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import LENGTH, Inputs, random_sequences, write_fasta

RARE = 13  # a row in the third of four shards, whose sequence and references are rich in A
n_begun = 0  # shards


def is_rich(x: Tensor) -> Tensor:
    return x[:, 0].sum(1) > 25


class AnyDecides(ExampleNet):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if is_rich(x).any() else y


class RowsDecide(ExampleNet):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.stack([2 * y[i] if x[i, 0].sum() > 25 else y[i] for i in range(len(x))])


class Changes(ExampleNet):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if n_begun < 3 else 2 * y


def overrides(inputs: Inputs, tmp_path: Path, kind: type[nn.Module], *more: str) -> list[str]:
    rows = random_sequences()
    rows[RARE] = "A" * 30 + rows[RARE][30:]
    torch.manual_seed(0)
    save_file(kind(n_filters=4, n_hidden=4).state_dict(), tmp_path / "weights.safetensors")
    return inputs.overrides(
        tmp_path / "a.zarr",
        f"model._target_={kind.__module__}.{kind.__name__}",
        f"model.checkpoint={tmp_path / 'weights.safetensors'}",
        f"dataset.path={write_fasta(tmp_path / 'rich.fa', rows)}",
        "engine.batch_size=6",
        *more,
    )


@pytest.mark.parametrize(("kind", "rows_per_shard"), [(AnyDecides, 6), (RowsDecide, 1)])
def test_a_shard_that_decides_otherwise_than_the_trial_fails_by_row_and_line(
    inputs: Inputs, tmp_path: Path, kind: type[nn.Module], rows_per_shard: int
) -> None:
    asked = overrides(inputs, tmp_path, kind, f"store.rows_per_shard={rows_per_shard}")
    where = rf"shard {RARE // rows_per_shard} .*row {RARE}, 's{RARE}': .*test_spot_check\.py, line \d+ \(\S+\) decides"
    with pytest.raises(RunError, match=where) as caught:
        pipeline.run(asked)
    assert str(caught.value).startswith("1 of ")
    plan = RunDirectory(tmp_path / "a.zarr").read_plan()
    assert plan is not None
    assert plan.decisions is not None
    ((line, values),) = plan.decisions[0].items()
    assert line.startswith("test_spot_check.py, line ")
    assert set(values) == {False}


def test_a_model_that_changes_between_shards_fails_its_shard(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_shard = SpotCheck.of_shard

    def counted(*args: Any) -> SpotCheck:
        global n_begun
        n_begun += 1
        return of_shard(*args)

    monkeypatch.setattr(SpotCheck, "of_shard", counted)
    monkeypatch.setattr(sys.modules[__name__], "n_begun", 0)
    with pytest.raises(RunError, match=r"alone.*the model keeps something from one call for the next"):
        pipeline.run(overrides(inputs, tmp_path, Changes))


def test_the_store_says_whether_shards_were_checked(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    assert pipeline.open_store(finished).attrs["spot_check"] is True
    assert pipeline.run(inputs.overrides(tmp_path / "a.zarr", "engine.spot_check=false")).complete
    unchecked = pipeline.open_store(tmp_path / "a.zarr")
    assert unchecked.attrs["spot_check"] is False
    assert unchecked.digest() == pipeline.open_store(finished).digest()


class Shifted(nn.Module):
    """A model with an offset, times its extra inputs."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.net = seeded_net()
        self.offset = offset

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        y = self.net(x) + self.offset
        for arg in args:
            y = y * arg
        return y


def seeded_net() -> nn.Module:
    torch.manual_seed(1)
    return ExampleNet(n_filters=4, n_hidden=4).eval()


N, R = 8, 3
CODES = np.random.RandomState(0).randint(0, 4, (N, LENGTH)).astype(np.uint8)
REFERENCES = ShardReferences(np.ascontiguousarray(shuffle_codes(CODES, range(R))))


def plan(**changes: Any) -> Plan:
    made = Plan(
        n_rows=N, length=LENGTH, targets=[0], references={"name": "uniform"}, n_references=R, seed=0,
        batch_size=12, rows_per_shard=N,
        dtype="float32", threads=1, deterministic=True, device="cpu", device_kind="", completeness=True,
        warning_threshold=1e-3, fingerprint={},
    )  # fmt: skip
    return replace(made, **changes)


def check(index: int = 0, dtype: str = "float32", kept: SpotChecks | None = None) -> SpotCheck:
    return SpotCheck.of_shard(Shard(index, 0, N), R, "row {}".format, dtype, kept or SpotChecks())


def mixed_in(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """What the engine returns is changed: as if a model had mixed rows past all that the engine looks at."""
    from pipeline.execution import ensemble

    real = ensemble.attribute
    monkeypatch.setattr(ensemble, "attribute", lambda *args, **options: change(real(*args, **options)))


ARGS = [np.linspace(1, 2, N, dtype=np.float32)[:, None]]
HONEST: dict[str, tuple[nn.Module, dict[str, Any], list[np.ndarray]]] = {
    "plain": (seeded_net(), {}, []),
    "both strands": (seeded_net(), {"reverse_complement": True}, []),
    "a large offset": (Shifted(1e5), {}, []),
    "extra inputs": (Shifted(0), {}, ARGS),
    "pairs of one sequence": (seeded_net(), {"batch_size": 2}, []),
    "bfloat16": (seeded_net(), {"dtype": "bfloat16"}, []),
    "float16": (seeded_net(), {"dtype": "float16"}, []),
    "float64": (seeded_net(), {"dtype": "float64"}, []),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_models_pass(name: str) -> None:
    model, changes, args = HONEST[name]
    asked, kept = plan(**changes), SpotChecks()
    plain = attribute_rows([model, model], asked, CODES, REFERENCES, args)
    for index in range(6):
        found = attribute_rows([model, model], asked, CODES, REFERENCES, args, check(index, asked.dtype, kept))
        assert torch.equal(found.mean.hypothetical, plain.mean.hypothetical)
    assert len(kept.first) == (4 if asked.reverse_complement else 2)


@pytest.mark.parametrize("field", ["prediction", "reference_prediction"])
@pytest.mark.parametrize("name", HONEST)
def test_a_difference_of_a_percent_of_what_is_explained_is_found(
    name: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, changes, args = HONEST[name]
    asked = plan(**changes)
    tried = attribute_rows([model], asked, CODES, REFERENCES, args).mean
    explained = (tried.prediction[..., None] - tried.reference_prediction).abs().max()
    # Where numbers have few digits, or these are spent on an offset, rounding may be as large as that.
    size = 1.0 if name == "a large offset" else explained * (10 if asked.dtype.endswith("16") else 0.01)
    mixed_in(monkeypatch, lambda found: replace(found, **{field: getattr(found, field) + size}))
    what = r"row \d: its" if field == "prediction" else r"reference \d of row \d: its"
    with pytest.raises(ShardError, match=rf"^{what} prediction is .* alone and .* in its batch: the model mixes"):
        attribute_rows([model], asked, CODES, REFERENCES, args, check(0, asked.dtype))


def test_every_fold_and_strand_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in range(4):
        turn = itertools.count()
        with monkeypatch.context() as patch:
            mixed_in(
                patch,
                lambda found, turn=turn, place=place: (  # type: ignore[misc]
                    replace(found, prediction=2 * found.prediction) if next(turn) == place else found
                ),
            )
            with pytest.raises(ShardError, match="alone and"):
                attribute_rows([seeded_net()] * 2, plan(reverse_complement=True), CODES, REFERENCES, (), check())


def test_rows_and_references_vary_with_the_shard() -> None:
    places = {(check(index).row, check(index).k) for index in range(200)}
    assert places == {(row, k) for row in range(N) for k in range(R)}


def test_the_plan_keeps_what_it_says(tmp_path: Path) -> None:
    asked = plan(decisions=[{"net.py, line 3 (forward)": [True]}], spot_check=False)
    written = json.loads(json.dumps(asked.to_values()))
    assert Plan.from_values(written) == asked
    assert written["spot_check"] is False


def test_predictions_alone_are_those_of_the_model() -> None:
    x, scale = one_hot(CODES).float(), torch.from_numpy(ARGS[0])
    model = Shifted(0)
    with torch.no_grad():
        expected = torch.cat([model(x[i : i + 1], scale[i : i + 1]) for i in range(N)])
    assert torch.equal(predict(model, x, args=[scale], device="cpu"), expected)
