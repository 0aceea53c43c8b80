"""Checkpoints of every kind, good and bad; above all, that reading one runs nothing."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.messages.errors import UserError
from pipeline.models.bpnet import load_bpnet
from pipeline.models.checkpoint import checkpoint_path, read_checkpoint
from pipeline.models.fitting import load_weights


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 3, 5), nn.BatchNorm1d(3), nn.Linear(6, 1))


def save(path: Path, form: str) -> Path:
    state = net().state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "whole module":
        torch.save(net(), path)
    else:
        wrapped = {"plain": state, "state_dict": {"state_dict": state, "epoch": 3, "loss": [0.5]}}
        wrapped["model_state_dict"] = {"model_state_dict": state}
        wrapped["prefixed"] = {f"module.{name}": values for name, values in state.items()}
        wrapped["lightning"] = {"state_dict": {f"model.{name}": values for name, values in state.items()}}
        torch.save(wrapped[form], path)
    return path


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights"])
@pytest.mark.parametrize(
    "form", ["safetensors", "plain", "legacy", "state_dict", "model_state_dict", "prefixed", "lightning"]
)
def test_state_dicts_load_whatever_the_files_name(tmp_path: Path, form: str, name: str) -> None:
    path = save(tmp_path / name, form)
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv1d(4, 3, 5), nn.BatchNorm1d(3), nn.Linear(6, 1))
    state = read_checkpoint(path)
    assert isinstance(state, dict)
    load_weights(module, state, path)
    for name_, values in net().state_dict().items():
        assert torch.equal(module.state_dict()[name_], values)


def test_a_pickled_module_is_refused_with_what_to_do_and_read_when_trusted(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", "whole module")
    message = r"a whole model pickled by .*Sequential; making it would run code.*_target_=torch\.nn.*trust_pickle=true"
    with pytest.raises(UserError, match=message) as raised:
        read_checkpoint(path, whole=True)
    assert "\n" not in str(raised.value)
    assert isinstance(read_checkpoint(path, trust_pickle=True, whole=True), nn.Sequential)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("with_weights", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool, with_weights: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "model.pt"
    content = {"state_dict": net().state_dict(), "extra": Touch(mark)} if with_weights else Touch(mark)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="trust_pickle"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="trust_pickle"):
        load_bpnet(path, {})
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so the file is what it claims to be


def test_a_trusted_module_of_a_class_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(import_module("elsewhere").Net(1, 1), tmp_path / "model.pt")
    monkeypatch.delitem(sys.modules, "elsewhere")
    (tmp_path / "elsewhere.py").write_text("")
    with pytest.raises(UserError, match=r"class is not found here.*install its package"):
        read_checkpoint(tmp_path / "model.pt", trust_pickle=True, whole=True)
    state = read_checkpoint(tmp_path / "model.pt", trust_pickle=True)
    assert isinstance(state, dict)
    assert sorted(state) == ["bias", "weight"]


def edited(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = {**net().state_dict(), **{name.replace("_", ".", 1): values for name, values in changes.items()}}
    return {name: values for name, values in state.items() if values is not None}


@pytest.mark.parametrize(
    ("state", "parts"),
    [
        (edited(**{"0_bias": None}), ["missing: 0.bias"]),
        (edited(**{"9_bias": torch.zeros(1)}), ["not expected: 9.bias"]),
        (edited(**{"0_weight": torch.zeros(3, 4, 6)}), ["0.weight (3, 4, 6) (model: (3, 4, 5))"]),
        (edited(**{"2_weight": torch.full((1, 6), float("nan"))}), ["'2.weight'", "6 of 6", "NaN"]),
        (edited(**{"2_bias": torch.tensor([float("inf")])}), ["'2.bias'", "infinite"]),
        (edited(**{"1_running_var": torch.tensor([1.0, float("nan"), 1.0])}), ["'1.running_var'", "1 of 3"]),
        ({f"x{i}": torch.zeros(1) for i in range(9)}, ["missing: 0.weight", "and 4 more", "not expected: x0"]),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, state: dict[str, torch.Tensor], parts: list[str]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    module = net()
    before = {name: values.clone() for name, values in module.state_dict().items()}
    with pytest.raises(UserError, match=r"weights\.pt") as raised:
        load_weights(module, state, path)
    for part in parts:
        assert part in str(raised.value)
    assert all(torch.equal(values, before[name]) for name, values in module.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am text", "is text, which begins .hello, I am text.; expected safetensors"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"version https and a pointer", "git lfs pull"),
        (b"PK\x03\x04" + b"x" * 100, "is a damaged zip archive: .*copy or download it again"),
        ((2).to_bytes(8, "little") + b"{,", "damaged safetensors"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_checkpoint(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("form", ["safetensors", "plain"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_truncated_checkpoints(tmp_path: Path, form: str, share: float) -> None:
    path = save(tmp_path / "weights", form)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"damaged|cannot be read|neither"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(1), "holds a Tensor"),
        ({}, "no tensors"),
        ({"a": 1}, "not tensors: a"),
        ({"weights": {"a": [torch.zeros(1)]}}, "not tensors: weights"),
        ({"a": {"w": torch.zeros(1)}, "b": {"w": torch.zeros(1)}}, r"several sets .* 'a', 'b'; .*model\.prefix=a\."),
    ],
)
def test_contents_that_are_no_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("path", "message"), [(None, "is not set"), ("", "is not set"), ("no.pt", "no such file"), (".", "is a directory")]
)
def test_missing_checkpoints(path: str | None, message: str) -> None:
    with pytest.raises(UserError, match=f"model.checkpoint.*{message}"):
        checkpoint_path(path)


# --- a file with several sets of weights ----------------------------------------------------------------------------


def several(path: Path, form: str) -> Path:
    """Weights of an average beside those of the last step, as training scripts write them."""
    state, average = ({name: values * factor for name, values in net().state_dict().items()} for factor in (1, 2))
    optimizer = {"state": {"0": {"exp_avg": state["0.weight"]}}, "param_groups": [{"lr": 0.1}]}
    forms = {
        "model": {"model": state, "model_ema": average, "optimizer": optimizer, "opt": optimizer, "epoch": 3},
        "state_dict": {"state_dict": state, "ema": {"module": average, "decay": 0.99}, "rng": torch.zeros(9)},
        "two of the usual": {"model": average, "state_dict": state, "epoch": 1},
        "alone": {"state_dict": state, "optimizer_states": [optimizer], "metrics": {"loss": torch.tensor(0.5)}},
        "neither": {"weights": state, "weights_ema": average},
    }
    torch.save(forms[form], path)
    return path


@pytest.mark.parametrize(
    ("form", "taken", "other", "prefix"),
    [
        ("model", "model", "model_ema", "model_ema."),
        ("state_dict", "state_dict", "ema.module", "ema.module."),
        ("two of the usual", "state_dict", "model", "model."),
    ],
)
def test_which_of_several_weights_are_taken_is_said(
    tmp_path: Path, form: str, taken: str, other: str, prefix: str
) -> None:
    path, module = several(tmp_path / "w.pt", form), net()
    fitted = load_weights(module, read_checkpoint(path), path)
    assert fitted.all_notes(path) == (
        f"{path} holds several sets of weights: those under {taken!r} are taken, not those under {other!r} "
        f"(model.prefix={other}. takes these)",
    )
    assert torch.equal(module[0].weight, net()[0].weight)
    fitted = load_weights(module, read_checkpoint(path, prefix=prefix), path, prefix)
    assert torch.equal(module[0].weight, 2 * net()[0].weight)
    assert fitted.all_notes(path) == (f"the weights of {path} fit without the prefix {prefix!r} of their names",)


def test_what_is_no_other_weights_is_not_said(tmp_path: Path) -> None:
    path = several(tmp_path / "w.pt", "alone")
    assert load_weights(net(), read_checkpoint(path), path).all_notes(path) == ()


def test_weights_under_an_unusual_key_can_be_named(tmp_path: Path) -> None:
    path = several(tmp_path / "w.pt", "neither")
    with pytest.raises(UserError, match=r"several sets of weights, under 'weights', 'weights_ema'; .*prefix=weights\."):
        read_checkpoint(path)
    assert load_weights(net(), read_checkpoint(path, prefix="weights."), path, "weights.").prefix == "weights."
