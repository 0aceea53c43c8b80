"""Models are tried and audited before a run spends anything; audits are kept, and trusted only where they fit."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pipeline
from dlshap_core.audit import Audit, AuditedOperation
from pipeline.cli.main import dispatch
from pipeline.config.compose import compose_config
from pipeline.config.schema import Config
from pipeline.execution.audit import audit_config
from pipeline.execution.device import device_kind
from pipeline.execution.preflight import cached_audit, not_exact, run_preflight
from pipeline.messages.errors import UserError
from pipeline.models.code import Code
from pipeline.models.load import LoadedModel
from tests.pipeline.conftest import N_ROWS, Inputs, random_sequences, write_fasta

CODES = np.random.RandomState(0).randint(0, 4, 40).astype(np.uint8)

CLASSES = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self, kind="exact"):
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 3), kind

    def forward(self, x):
        x = self.layer(x.mean(dim=-1))
        if self.kind == "integrated":
            x = torch.special.i0e(x)
        if self.kind == "detached":
            x = x * torch.sigmoid(x).detach()
        if self.kind == "refused":
            x = x + torch.mode(x, dim=-1, keepdim=True).values
        return torch.relu(x)
"""


CALLS = itertools.count()  # not kept in the model, which is left as it was


class Three(nn.Module):
    """Three outputs; its calls are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        next(CALLS)
        return torch.relu(self.layer(x.mean(-1)))


def loaded_model(weights_hash: str = "w") -> LoadedModel:
    return LoadedModel((Three(),), ("0",), weights_hash, Code(), {"head": "none", "output": None}, True)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLSHAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def odd(in_folder: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for a class in the working directory, whose kind the test adds."""
    (in_folder / "odd_models.py").write_text(CLASSES)
    sys.path.append(str(in_folder))
    monkeypatch.delitem(sys.modules, "odd_models", raising=False)
    kept = [override for override in inputs.overrides("a.zarr") if not override.startswith("model")]
    weights = {
        "layer.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "layer.bias": torch.ones(3),
    }
    save_file(weights, in_folder / "odd.safetensors")
    return [*kept, "model=module", "model._target_=odd_models.Odd", "model.checkpoint=odd.safetensors"]


@pytest.mark.parametrize(("targets", "expected"), [([0], [0]), ([2, 0], [2, 0]), ("all", [0, 1, 2])])
def test_targets_are_those_asked_for_or_all_there_are(targets: list[int] | str, expected: list[int]) -> None:
    config = Config()
    config.engine.targets = targets
    assert run_preflight(loaded_model(), CODES, "s0", config, "cpu").targets == expected


def test_an_audit_is_made_once_for_each_thing_that_it_depends_on(own_cache: Path) -> None:
    config, before = Config(), next(CALLS)
    first = cached_audit(loaded_model(), CODES, "s0", config, "cpu")
    after = next(CALLS)
    assert after > before + 1
    assert cached_audit(loaded_model(), CODES, "s0", config, "cpu") == first
    assert next(CALLS) == after + 1
    cached_audit(loaded_model("other"), CODES, "s0", config, "cpu")
    cached_audit(loaded_model(), CODES[:30], "s0", config, "cpu")
    config.engine.targets = [1]
    cached_audit(loaded_model(), CODES, "s0", config, "cpu")
    config.engine.dtype = "float64"
    cached_audit(loaded_model(), CODES, "s0", config, "cpu")
    assert len(list(own_cache.rglob("*.json"))) == 5
    assert all(path.suffix == ".json" for path in own_cache.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"operations": [1], "refused": []}', '{"operations": [{"a": 1}]}']
)
def test_a_damaged_cache_is_made_again(own_cache: Path, text: str) -> None:
    first = cached_audit(loaded_model(), CODES, "s0", Config(), "cpu")
    (kept,) = own_cache.rglob("*.json")
    whole = kept.read_text()
    kept.write_text(text)
    assert cached_audit(loaded_model(), CODES, "s0", Config(), "cpu").operations == first.operations
    assert json.loads(kept.read_text()).keys() == json.loads(whole).keys()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DLSHAP_CACHE", str(tmp_path / "file"))
    assert cached_audit(loaded_model(), CODES, "s0", Config(), "cpu").refused == ()
    assert (tmp_path / "file").read_text() == ""


def test_what_is_not_exact_is_picked_out() -> None:
    rows = [
        ("a (A)", "conv1d", "linear"),
        ("b (B)", "zeta", "integrated, 8 nodes (error 1e-09)"),
        ("b (B)", "zeta", "integrated"),
        ("", "detach", "detach followed"),
    ]
    found = Audit(tuple(AuditedOperation(*row, 1) for row in rows), (), 0.0, 4)
    assert not_exact(found) == [
        "zeta in b (B): integrated, 8 nodes (error 1e-09)",
        "detach in the model: detach followed",
    ]


@pytest.mark.parametrize(
    ("kind", "phrase"),
    [("exact", None), ("integrated", "i0e in .*: integrated, "), ("detached", "detach followed")],
)
def test_a_run_keeps_the_audit_and_says_what_is_not_exact(odd: list[str], kind: str, phrase: str | None) -> None:
    summary = pipeline.run([*odd, f"model.init.kind={kind}"])
    attrs = pipeline.open_store("a.zarr").attrs
    assert attrs["audit"]["refused"] == []
    assert "linear" in {operation["operation"] for operation in attrs["audit"]["operations"]}
    assert attrs["audit"]["convergence_error"] < 1e-4
    lines = [line for line in summary.text().splitlines() if line.startswith("not by an exact rule: ")]
    if phrase is None:
        assert attrs["not_exact"] == lines == []
    else:
        assert len(lines) == 1
        assert len(attrs["not_exact"]) == 1
        assert re.search(phrase, lines[0])
    assert pipeline.run([*odd, f"model.init.kind={kind}"]).not_exact == attrs["not_exact"]


def test_a_refused_operation_stops_a_run_before_anything_is_written(
    odd: list[str], in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(in_folder.iterdir())
    assert dispatch(["run", *odd, "model.init.kind=refused"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("dlshap: error: the model cannot be attributed: ")
    assert "mode" in err
    assert "Odd" in err
    assert set(in_folder.iterdir()) - before <= {in_folder / "__pycache__"}


def test_the_command_lists_operations_and_ends_with_1_where_one_is_refused(
    odd: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["audit", *odd]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0].split() == ["module", "operation", "treatment", "count"]
    assert any("relu" in line and "secant" in line for line in out.splitlines())
    assert out.splitlines()[-2].startswith("convergence error over 4 pairs")
    assert out.splitlines()[-1] == f"tried on {device_kind('cpu')} of this machine"
    assert err == ""
    assert dispatch(["audit", *odd, "model.init.kind=refused"]) == 1
    refused = [line for line in capfd.readouterr().out.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 1
    assert "mode" in refused[0]


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("engine.targets=[7]", r"engine\.targets=\[7\]: "),
        ("model.checkpoint=nothing.pt", r"nothing\.pt"),
        ("engine.batchsize=3", "is not a setting"),
    ],
)
def test_bad_input_to_the_command_is_one_line(
    odd: list[str], capfd: pytest.CaptureFixture[str], override: str, phrase: str
) -> None:
    assert dispatch(["audit", *odd, override]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.search(phrase, err)


def test_the_first_sequence_that_can_be_used_is_taken(tmp_path: Path, inputs: Inputs) -> None:
    path = write_fasta(tmp_path / "some.fa", ["N" * 40, *random_sequences(1)])
    assert audit_config(compose_config(inputs.overrides("a.zarr", f"dataset.path={path}")))[0].refused == ()
    path = write_fasta(tmp_path / "none.fa", ["N" * 40, "N" * 40])
    with pytest.raises(UserError, match="2 of 2 rows cannot be used"):
        audit_config(compose_config(inputs.overrides("a.zarr", f"dataset.path={path}")))


def test_targets_of_a_run_are_an_axis_and_as_when_run_alone(odd: list[str], in_folder: Path) -> None:
    stores = {}
    for number, chosen in enumerate(["all", "[2,0]", "[0]", "[1]", "[2]"]):
        assert pipeline.run([*odd, f"engine.targets={chosen}", f"store.path={number}.zarr"]).complete
        stores[chosen] = pipeline.open_store(f"{number}.zarr")
    assert stores["all"].hypothetical.shape[:2] == (N_ROWS, 3)
    assert [list(stores[chosen]["target"][:]) for chosen in ("all", "[2,0]")] == [["0", "1", "2"], ["2", "0"]]
    assert stores["all"].attrs["plan"]["targets"] == [0, 1, 2]
    for chosen, targets in {"all": [0, 1, 2], "[2,0]": [2, 0]}.items():
        for name in ("attribution", "hypothetical", "prediction", "reference_prediction", "convergence_delta"):
            together = np.asarray(stores[chosen][name][:])
            assert together.shape[1] == len(targets)
            for axis, target in enumerate(targets):
                alone = np.asarray(stores[f"[{target}]"][name][:])
                np.testing.assert_allclose(together[:, axis], alone[:, 0], atol=1e-6, err_msg=f"{name} {chosen}")
    spread = np.asarray(stores["all"].prediction[:]).std(axis=1)
    assert (spread > 1e-3).all(), "targets differ, or this shows nothing"


class Unset(Three):
    """Adds to its outputs what happens to be in new memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.empty(3)


def test_a_model_that_reads_memory_before_it_is_written_is_refused() -> None:
    loaded = LoadedModel(
        (Unset(),), ("0",), "w", Code(settings={"all": "unset"}), {"head": "none", "output": None}, True
    )
    with pytest.raises(UserError, match="its prediction is not finite"):
        run_preflight(loaded, CODES, "s0", Config(), "cpu")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("not deterministic: set CUBLAS_WORKSPACE_CONFIG=:4096:8"), "begin again with CUBLAS_WORKSPACE"),
        (torch.OutOfMemoryError("CUDA out of memory"), "do not fit into the memory of the device"),
    ],
)
def test_what_cuda_fails_with_is_named(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.execution import preflight

    def fail(*_: Any, **__: Any) -> None:
        raise error

    cached_audit(loaded := loaded_model(), CODES, "s0", Config(), "cpu")
    monkeypatch.setattr(preflight, "attribute", fail)
    with pytest.raises(UserError, match=says):
        run_preflight(loaded, CODES, "s0", Config(), "cpu")
