"""Models from a configuration: targets, outputs, heads, and what identifies them."""

from __future__ import annotations

import importlib
import linecache
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.messages.errors import UserError
from pipeline.models.code import code_of
from pipeline.models.hashing import weights_hash
from pipeline.models.load import LoadedModel, load_model
from pipeline.models.outputs import chosen as select
from pipeline.models.outputs import listing
from tests.pipeline.conftest import chosen

TOY = """
import torch
from torch import nn

class Toy(nn.Module):
    def __init__(self, width=3, scale=1.0):
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv1d(4, width, 3, padding=1)
        self.linear = nn.Linear(width, 2)
    def forward(self, x):
        return self.linear(self.conv(x).relu().mean(-1)) * self.scale

class Two(Toy):
    def forward(self, x):
        y = super().forward(x)
        return {"first": y, "second": y[:, :1]}

def ready():
    torch.manual_seed(3)
    return Toy()

def diverged():
    toy = ready()
    torch.nn.init.constant_(toy.linear.bias[:1], float("nan"))
    return toy

def fails():
    raise RuntimeError("a problem\\nover two lines")

def text():
    return "not a module"
"""


@pytest.fixture(autouse=True)
def toy_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "toy_models.py").write_text(TOY)
    (tmp_path / "broken_models.py").write_text("import absent_package\n")
    (tmp_path / "wrong_models.py").write_text("class Net(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    import toy_models

    yield toy_models
    sys.modules.pop("toy_models")


def config(**values: Any) -> SimpleNamespace:
    return chosen("model", **{"name": "module", **values})


def saved(module: nn.Module, path: Path) -> str:
    torch.save(module.state_dict(), path)
    return str(path)


def x() -> Tensor:
    return torch.eye(4)[torch.randint(0, 4, (2, 10), generator=torch.Generator().manual_seed(0))].transpose(1, 2)


def test_a_module_by_its_target(toy_models: Any, tmp_path: Path) -> None:
    toy = toy_models.Toy(width=5).double()
    path = saved(toy, tmp_path / "w.pt")
    loaded = load_model(config(_target_="toy_models.Toy", init={"width": 5}, checkpoint=path))
    assert isinstance(loaded, LoadedModel)
    assert not loaded.module.training
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert torch.equal(loaded.module(x()), toy.float()(x()))
    assert loaded.description == {
        "name": "module",
        "head": "none",
        "output": None,
        "checkpoint": "w.pt",
        "target": "toy_models.Toy",
        "trust_pickle": False,
        "init": {"width": 5},
        "prefix": "",
        "left_out": [],
        "stored_as": ["float64"],
        "input_layout": "ncl",
        "input": {},
        "bases": "ACGT",
        "with_bias": False,
        "bias": None,
    }
    assert loaded.notes == (f"weights of {path} are stored as float64 and were converted to float32",)


def test_a_function_may_load_its_own_weights_and_a_class_may_not_go_without(toy_models: Any) -> None:
    loaded = load_model(config(_target_="toy_models.ready"))
    assert torch.equal(loaded.module(x()), toy_models.ready()(x()))
    with pytest.raises(
        UserError, match=r"model\.checkpoint is not set: the weights of toy_models\.Toy would be random"
    ):
        load_model(config(_target_="toy_models.Toy"))
    with pytest.raises(UserError, match=r"_target_=toy_models\.diverged: parameter 'linear\.bias' holds 1 of 2"):
        load_model(config(_target_="toy_models.diverged"))
    assert load_model(config(_target_="torch.nn.Flatten")).module(x()).shape == (2, 40)  # nothing to be random


def test_a_trusted_pickled_module_needs_no_target(toy_models: Any, tmp_path: Path) -> None:
    toy = toy_models.ready()
    torch.save(toy, tmp_path / "whole.pt")
    with pytest.raises(UserError, match="trust_pickle=true"):
        load_model(config(checkpoint=tmp_path / "whole.pt"))
    for target in (None, "toy_models.Toy"):
        loaded = load_model(config(checkpoint=tmp_path / "whole.pt", trust_pickle=True, _target_=target))
        assert torch.equal(loaded.module(x()), toy(x()))
        assert loaded.description["trust_pickle"] is (target is None), "weights alone need no trust"
    with torch.no_grad():
        toy.conv.bias[0] = float("nan")
    torch.save(toy, tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"'conv\.bias' holds 1 of 3 values that are NaN"):
        load_model(config(checkpoint=tmp_path / "whole.pt", trust_pickle=True))


@pytest.mark.parametrize(
    ("target", "init", "message"),
    [
        ("nowhere.Model", {}, r"_target_=nowhere\.Model cannot be imported.*nowhere"),
        ("toy_models.Toyy", {}, r"cannot be imported.*Toyy"),
        ("Toy", {}, "cannot be imported"),
        ("", {}, "cannot be imported|is not set"),
        ("toy_models.Toy.Inner", {}, r"cannot be imported.*Inner"),
        ("broken_models.Net", {}, r"_target_=broken_models\.Net cannot be imported: No module named 'absent_package'"),
        ("wrong_models.Net", {}, r"cannot be imported: .*(invalid syntax|never closed)"),
        ("toy_models.Toy", {"widht": 3}, "TypeError.*widht"),
        ("toy_models.fails", {}, "RuntimeError: a problem over two lines"),
        ("toy_models.text", {}, r"gives a str; expected a torch\.nn\.Module"),
    ],
)
def test_targets_that_cannot_be_made_are_one_line(
    target: str, init: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_model(config(_target_=target, init=init))
    assert "\n" not in str(raised.value)
    assert caplog.text == ""


def test_neither_target_nor_trusted_pickle(toy_models: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\._target_ is not set"):
        load_model(config(checkpoint=saved(toy_models.ready(), tmp_path / "w.pt")))


@pytest.mark.parametrize(
    ("name", "message"),
    [("nope", r"model\.name=nope; expected borzoi, bpnet, cherimoya, "), ("bpnet", r"model\.checkpoint is not")],
)
def test_families(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(config(name=name))


def test_an_unknown_head(toy_models: Any) -> None:
    with pytest.raises(UserError, match=r"model\.head=count: .*counts"):
        load_model(config(_target_="toy_models.ready", head="count"))


def test_a_model_with_several_outputs_needs_a_choice(toy_models: Any, tmp_path: Path) -> None:
    path = saved(toy_models.Two(), tmp_path / "w.pt")
    undecided = load_model(config(_target_="toy_models.Two", checkpoint=path))
    with pytest.raises(
        UserError, match=r"first: \(N, 2\), second: \(N, 1\); say which .*'model\.output=first' \(2 targets, axis 1\)"
    ):
        undecided.module(x())


Pair = namedtuple("Pair", ["profile", "counts"])  # what users' models return
FIRST, SECOND = torch.zeros(2, 1), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        ((FIRST, SECOND), 1),
        ((FIRST, SECOND), -1),
        ((FIRST, SECOND), "1"),
        ([FIRST, SECOND], 1),
        ({"a": FIRST, "b": SECOND}, "b"),
        ({0: FIRST, 1: SECOND}, 1),
        (OrderedDict(a=FIRST, b=SECOND), "b"),
        (Pair(FIRST, SECOND), "counts"),
        (Pair(FIRST, SECOND), 1),
        (SimpleNamespace(a=FIRST, b=SECOND), "b"),
    ],
)
def test_selection(outputs: Any, wanted: int | str) -> None:
    assert select(outputs, str(wanted), 2) is SECOND


@pytest.mark.parametrize(
    ("outputs", "wanted", "there"),
    [
        ((FIRST, SECOND), 2, r"a tuple with 0: \(N, 1\), 1: \(N, 3\)"),
        ((FIRST, SECOND), "counts", "a tuple with 0"),
        ({"a": FIRST}, "b", r"a mapping with a: \(N, 1\)"),
        (Pair(FIRST, SECOND), "count", r"a Pair with profile: \(N, 1\), counts: \(N, 3\)"),
        (FIRST, 0, r"a single tensor of shape \(N, 1\)"),
        (FIRST, "shape", "a single tensor"),
        (SimpleNamespace(a=1), "b", "an object of type SimpleNamespace"),
    ],
)
def test_selection_of_what_is_not_there(outputs: Any, wanted: int | str, there: str) -> None:
    with pytest.raises(
        UserError, match=rf"model\.output={wanted}: (no such|there is one) output.*; the model returns {there}"
    ):
        select(outputs, str(wanted), 2)


def test_listing_names_types_that_are_not_tensors() -> None:
    assert listing((FIRST, None)) == "a tuple with 0: (2, 1), 1: NoneType"


def test_hashes_depend_on_weights_settings_and_code(toy_models: Any) -> None:
    one, same = toy_models.ready(), toy_models.ready()
    assert weights_hash(one) == weights_hash(same)
    assert code_of(one).digest == code_of(same).digest
    with torch.no_grad():
        same.linear.bias[0] += 1
    assert weights_hash(one) != weights_hash(same)
    assert code_of(one).digest == code_of(same).digest
    same.scale = 2.0  # a setting that is no weight
    assert code_of(one).digest != code_of(same).digest

    same.scale, same.activation = 1.0, torch.relu
    with_relu = code_of(same).digest
    same.activation = torch.tanh
    assert code_of(same).digest != with_relu

    state = toy_models.Two()
    state.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(state)
    assert code_of(one).digest != code_of(state).digest  # the same weights, another forward
    narrow = nn.Sequential(nn.Conv1d(4, 4, 3, dilation=1))
    wide = nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2))
    assert code_of(narrow).digest != code_of(wide).digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_weights_of_any_type_are_hashed_with_type_and_shape(dtype: torch.dtype) -> None:
    def holder(values: Tensor) -> nn.Module:
        module = nn.Module()
        module.register_buffer("values", values)
        return module

    flat, square, scalar = torch.zeros(4, dtype=dtype), torch.zeros(2, 2, dtype=dtype), torch.zeros((), dtype=dtype)
    hashes = {weights_hash(holder(values)) for values in (flat, square, scalar, flat.to(torch.float16))}
    assert len(hashes) == 4


def test_a_change_of_the_code_changes_the_hash_and_another_process_does_not(toy_models: Any, tmp_path: Path) -> None:
    script = "import toy_models; from pipeline.models.code import code_of; print(code_of(toy_models.ready()).digest)"
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}", "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    before = code_of(toy_models.ready()).digest
    assert done.stdout.strip() == before
    (tmp_path / "toy_models.py").write_text(TOY.replace(".mean(-1)", ".amax(-1)"))
    linecache.checkcache()
    assert code_of(importlib.reload(toy_models).ready()).digest != before


@pytest.mark.parametrize("head", ["counts", "profile_midpoint", "profile_stopgrad", "profile_detached"])
def test_bpnet_heads(head: str, tmp_path: Path) -> None:
    from pipeline.models.bpnet import BPNet

    torch.manual_seed(0)
    raw = BPNet(n_filters=4, n_layers=2, trimming=3)
    path = saved(raw, tmp_path / "w.pt")
    loaded = load_model(config(name="bpnet", checkpoint=path, head=head, init={"trimming": 3}, trust_pickle=True))
    assert loaded.description["head"] == head
    assert loaded.description["trust_pickle"] is False  # allowed, and not needed
    assert loaded.module(x()).shape == (2, 1)
    if head == "counts":
        assert torch.equal(loaded.module(x()), raw(x())[1])
