"""Weights into modules: prefixes, types, ties; what does not fit is named."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from pipeline.messages.errors import UserError
from pipeline.models.checkpoint import read_checkpoint
from pipeline.models.fitting import Fitted, load_weights
from pipeline.models.load import load_model
from tests.pipeline.conftest import chosen

Names = dict[str, Tensor]


class Tied(nn.Module):
    """Two names for one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(4, 3, 5), nn.BatchNorm1d(3), nn.Linear(6, 1))


def prefixed(prefix: str, seed: int = 0) -> Names:
    return {prefix + name: values for name, values in net(seed).state_dict().items()}


def require_loaded(module: nn.Module, seed: int = 0) -> None:
    for name, values in net(seed).state_dict().items():
        assert torch.equal(module.state_dict()[name], values)


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "net.encoder.", "10."])
@pytest.mark.parametrize("others", [{}, {"loss.weight": torch.ones(2), "metric.total": torch.zeros(())}])
def test_the_only_prefix_that_fits_is_found(prefix: str, others: Names) -> None:
    module = net(1)
    fitted = load_weights(module, {**others, **prefixed(prefix)}, Path("w.ckpt"))
    assert fitted == Fitted(prefix, tuple(others))
    require_loaded(module)


def test_two_prefixes_that_fit_need_a_choice() -> None:
    state = {**prefixed("model."), **prefixed("ema.", seed=2)}
    with pytest.raises(UserError, match=r"under several prefixes, model\., ema\.; choose one with model\.prefix"):
        load_weights(net(1), state, Path("w.ckpt"))
    module = net(1)
    assert load_weights(module, state, Path("w.ckpt"), "ema.").prefix == "ema."
    require_loaded(module, seed=2)


@pytest.mark.parametrize(
    ("state", "prefix", "message"),
    [
        (
            prefixed("model."),
            "modle.",
            r"model\.prefix=modle\.: no name in w\.pt begins so; there are model\.0\.weight",
        ),
        (
            {**prefixed("model."), "model.9.x": torch.zeros(1)},
            "model.",
            r"without the prefix 'model\.' .*expected: 9\.x",
        ),
        ({name: v for name, v in prefixed("m.").items() if "2.bias" not in name}, None, r"'m\.'.*missing: 2\.bias"),
        (prefixed(""), "model.", "no name in"),
    ],
)
def test_prefixes_that_do_not_fit(state: Names, prefix: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_weights(net(1), state, Path("w.pt"), prefix)


def lightning(state: Names, **others: object) -> dict[str, Any]:
    """A fixture to the published layout of Lightning's checkpoints."""
    return {
        "epoch": 3,
        "global_step": 99,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1},
        **others,
    }


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"hyper_parameters": argparse.Namespace(lr=0.1)},
        {"hyper_parameters": {"path": Path("/data"), "make": functools.partial(nn.Linear, 3)}},
        {"callbacks": {"x": {"best": Path("a.ckpt")}}},
    ],
    ids=["plain", "namespace", "objects", "paths"],
)
def test_a_lightning_checkpoint(others: dict[str, object], tmp_path: Path) -> None:
    state = {**prefixed("model."), "loss.weight": torch.ones(1)}
    torch.save(lightning(state, **others), tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt")
    assert isinstance(found, dict)
    module = net(1)
    assert load_weights(module, found, tmp_path / "last.ckpt") == Fitted("model.", ("loss.weight",))
    require_loaded(module)


def loaded(path: Path, target: str | None = "torch.nn.Linear", **values: Any) -> Any:
    values = {"name": "module", "_target_": target, "init": {"in_features": 4, "out_features": 1}, **values}
    return load_model(chosen("model", **{"checkpoint": str(path), **values}))


def test_a_prefix_is_said_to_the_person_and_in_the_description(tmp_path: Path) -> None:
    torch.save(
        lightning({"net.weight": torch.ones(1, 4), "net.bias": torch.ones(1), "loss": torch.ones(1)}),
        tmp_path / "last.ckpt",
    )
    found = loaded(tmp_path / "last.ckpt")
    assert (found.description["prefix"], found.description["left_out"]) == ("net.", ["loss"])
    (note,) = found.notes
    assert "without the prefix 'net.' of their names; 1 names without it were left out" in note
    many = {f"ema.{i:02}": torch.ones(1) for i in range(25)}
    torch.save({"net.weight": torch.ones(1, 4), "net.bias": torch.ones(1), **many}, tmp_path / "ema.pt")
    assert loaded(tmp_path / "ema.pt").description["left_out"][-2:] == ["ema.19", "and 5 more"]
    given = loaded(tmp_path / "last.ckpt", prefix="net.")
    assert given.weights_hash == found.weights_hash


def test_trust_is_said_to_the_person_and_in_the_description(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 1), tmp_path / "whole.pt")
    found = loaded(tmp_path / "whole.pt", None, trust_pickle=True)
    assert found.description["trust_pickle"] is True
    (note,) = found.notes
    assert note.startswith("WARNING")
    assert "runs whatever code is in it" in note


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_made_float32_and_it_is_said(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"weight": torch.randn(1, 4).to(dtype), "bias": torch.randn(1).to(dtype)}
    save_file(state, tmp_path / "w.safetensors")
    found = loaded(tmp_path / "w.safetensors")
    raw = found.module.model
    assert {values.dtype for values in raw.state_dict().values()} == {torch.float32}
    assert torch.equal(raw.weight, state["weight"].float())
    name = str(dtype).removeprefix("torch.")
    assert found.description["stored_as"] == [name]
    assert f"stored as {name} and were converted to float32" in found.notes[0]


def test_a_float64_beyond_float32(tmp_path: Path) -> None:
    torch.save({"weight": torch.full((1, 4), 1e300, dtype=torch.float64), "bias": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"'weight' holds 4 of 4 values that are NaN or infinite"):
        loaded(tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (lambda: torch.zeros(1, 4, device="meta"), r"'weight' has a shape but no values \(a meta tensor\)"),
        (lambda: torch.zeros(1, 4).to_sparse(), r"'weight' is sparse.*to_dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(1, 4), 0.1, 0, torch.qint8), r"'weight' is quantised \(qint8\)"),
        (lambda: torch.zeros(1, 4, dtype=torch.float8_e4m3fn), r"'weight' is of type float8_e4m3fn"),
        (lambda: torch.zeros(1, 4, dtype=torch.int8), r"'weight' is of type int8, which the model has as float32"),
        (lambda: torch.zeros(1, 4, dtype=torch.complex64), r"'weight' is of type complex64"),
        (
            lambda: torch.tensor([[1.0, 2.0, float("-inf"), 0.0]]),
            r"'weight' holds 1 of 4 values that are NaN or infinite",
        ),
    ],
)
def test_numbers_that_cannot_be_used(weight: Callable[[], Tensor], message: str, tmp_path: Path) -> None:
    torch.save({"weight": weight(), "bias": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message) as raised:
        loaded(tmp_path / "w.pt")
    assert "\n" not in str(raised.value)


def test_a_model_made_without_values(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 1).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"parameter 'weight' of Linear was made without values"):
        loaded(tmp_path / "w.pt", init={"in_features": 4, "out_features": 1, "device": "meta"})


def test_tied_weights_of_which_the_file_keeps_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tied = Tied()
    save_model(tied, str(tmp_path / "w.safetensors"))
    state = read_checkpoint(tmp_path / "w.safetensors")
    assert isinstance(state, dict)
    assert len(state) == 1
    module = Tied()
    load_weights(module, state, tmp_path / "w.safetensors")
    assert torch.equal(module.decoder.weight, tied.encoder.weight)


def test_weights_that_are_tied_in_the_model_and_differ_in_the_file() -> None:
    state = {"encoder.weight": torch.zeros(4, 4), "decoder.weight": torch.ones(4, 4)}
    with pytest.raises(UserError, match=r"'encoder\.weight' and 'decoder\.weight' are one parameter.*differ"):
        load_weights(Tied(), state, Path("w.pt"))


def test_batch_norm_of_before_its_counter() -> None:
    state = {name: values for name, values in net().state_dict().items() if "num_batches" not in name}
    module = net(1)
    load_weights(module, state, Path("w.pt"))
    assert torch.equal(module.state_dict()["1.running_var"], state["1.running_var"])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_keys_of_training_loops(key: str, tmp_path: Path) -> None:
    torch.save({key: net().state_dict(), "optimizer": {"lr": 0.1}, "epoch": 3}, tmp_path / "w.pt")
    state = read_checkpoint(tmp_path / "w.pt")
    assert isinstance(state, dict)
    module = net(1)
    load_weights(module, state, tmp_path / "w.pt")
    require_loaded(module)
