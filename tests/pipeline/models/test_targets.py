"""What a configuration may call: models and their parts, by what an object is and where it is defined."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.messages.errors import UserError
from pipeline.models.targets import make

OWN = """
import functools, operator, os, pickle
from dataclasses import dataclass

import hub_of_models, joblib, torch
from torch import load, nn

@dataclass
class Settings:
    width: int
    names: tuple = ()

class Net(nn.Module):
    def __init__(self, settings=None, activation=torch.relu, layers=()):
        super().__init__()
        self.settings, self.activation, self.layers = settings, activation, layers
    @classmethod
    def from_pretrained(cls, width): return cls(Settings(width))
    @staticmethod
    def made(): return Net()
    class Inner(nn.Module): pass

class Zoo:
    def __call__(self, name): return Net(name)
    def get(self, name): return Net(name)

class Either:
    def __new__(cls): return Net()

def plain(width): return Net(Settings(width))
def not_a_module(): return {"a": 1}
cached, partly, zoo = functools.lru_cache(plain), functools.partial(plain, 3), Zoo()
@torch.no_grad()
def decorated(): return Net()
dangerous, system = functools.partial(os.system, "touch RAN"), os.system
class Reads(hub_of_models.Model): read_any = hub_of_models.Model.load_from_checkpoint
caller = operator.methodcaller("system", "touch RAN")
"""
PACKAGE = """
import operator, os
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
import torch
class Config:
    def __init__(self, width=1): self.width = width
class Model(torch.nn.Module):
    config_class = Config
    def __init__(self, config=None): super().__init__(); self.config = config
    @classmethod
    def load_from_checkpoint(cls, path): open("RAN", "w")
    @staticmethod
    def read(path): open("RAN", "w")
    def connect(self): open("RAN", "w")
class Runs(torch.fx.GraphModule): pass
class Scripted(torch.jit.ScriptModule): pass
class AutoModel:
    @classmethod
    def from_pretrained(cls, name): return Model()
@dataclass
class Widths:
    width: int = 1
class Kind(Enum):
    ONE = 1
class Pair(NamedTuple):
    one: int = 1
class Loader:
    def __init__(self, path="RAN"): open(path, "w")
    def __call__(self, path="RAN"): open(path, "w")
def create_model(name): return Model()
def named(name) -> Model: return registry[name]()
def said(name) -> "Model": return registry[name]()
def load(path="RAN"): open(path, "w")
def is_module(each): return isinstance(each, torch.nn.Module) and open("RAN", "w")
@torch.no_grad()
def wrapped(): open("RAN", "w")
registry, loader, call = {"a": Model}, object.__new__(Loader), operator.methodcaller("load")
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the user's, an installed package of models, and an installed one of anything."""
    installed = tmp_path / "site-packages"
    (installed / "hub_of_models").mkdir(parents=True)
    (installed / "hub_of_models" / "__init__.py").write_text(PACKAGE)
    (installed / "anything.py").write_text("def load(path): open('RAN', 'w')")
    (tmp_path / "my_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("my_models", "hub_of_models", "anything"):
        sys.modules.pop(name, None)
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("target", "init"),
    [
        ("torch.nn.Flatten", {}),
        ("torch.nn.Sequential", {"_args_": [{"_target_": "torch.nn.Linear", "_args_": [4, 2]}]}),
        ("my_models.Net", {}),
        ("my_models.Net.Inner", {}),
        ("my_models.Net.from_pretrained", {"width": 3}),
        ("my_models.Net.made", {}),
        ("my_models.plain", {"width": 3}),
        ("my_models.cached", {"width": 3}),
        ("my_models.partly", {}),
        ("my_models.decorated", {}),
        ("my_models.zoo", {"name": "a"}),
        ("my_models.zoo.get", {"name": "a"}),
        ("my_models.Either", {}),
        ("hub_of_models.create_model", {"name": "a"}),
        ("hub_of_models.Model", {"config": {"_target_": "hub_of_models.Config", "width": 2}}),
        ("hub_of_models.Model", {"config": {"_target_": "argparse.Namespace", "width": 2}}),
        ("hub_of_models.named", {"name": "a"}),
        ("hub_of_models.said", {"name": "a"}),
        ("pipeline.models.example.ExampleNet", {}),
    ],
)
def test_models_are_made(target: str, init: dict[str, Any]) -> None:
    assert isinstance(make(target, init), nn.Module)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "posix.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.__import__",
        "runpy.run_path",
        "importlib.import_module",
        "pickle.load",
        "shutil.rmtree",
        "webbrowser.open",
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.serialization.load",
        "torch.from_file",
        "torch.compile",
        "torch.export.load",
        "torch.package.PackageImporter",
        "torch.fx.graph_module.reduce_graph_module",
        "torch.utils.cpp_extension.load",
        "torch.nn.Module.load_state_dict",
        "numpy.load",
        "numpy.fromfile",
        "pandas.read_pickle",
        "joblib.load",
        "hydra.utils.call",
        "hydra.utils.instantiate",
        "hydra.utils.get_method",
        "pydoc.locate",
        "pipeline.models.checkpoint._unpickle",
        "pipeline.models.checkpoint.read_checkpoint",
        "pipeline.models.load.load_model",
        "dlshap_core.heads.head",
        "anything.load",
        "antigravity.fly",
        "hub_of_models.AutoModel.from_pretrained",
        "hub_of_models.Model.load_from_checkpoint",
        "hub_of_models.Model.read",
        "hub_of_models.Model.connect",
        "hub_of_models.Runs",
        "hub_of_models.Scripted",
        "hub_of_models.Loader",
        "hub_of_models.loader",
        "hub_of_models.load",
        "hub_of_models.is_module",
        "hub_of_models.wrapped",
        "hub_of_models.call",
        "hub_of_models.registry.__getitem__",
        "hub_of_models.os.system",
        "torch.fx.GraphModule",
        "torch.fx.graph_module._CodeOnlyModule",
        "torch.jit.ScriptModule",
        "torch.jit.RecursiveScriptModule",
        "torch.distributed.nn.RemoteModule",
        "torch.nn.DataParallel",
        "torch.nn.parallel.DistributedDataParallel",
        "torch.Tensor.__setstate__",
        "torch.Tensor.__reduce_ex__",
        "torch.Tensor.apply_",
        "torch.Tensor.map_",
        "torch.Tensor.register_hook",
        "torch.Tensor.grad.__get__",
        "torch.nn.Module.apply",
        "torch.nn.Module.register_forward_hook",
        "torch.utils.data.DataLoader",
        "torch.distributed.rpc.BackendType",
        "captum.attr.IntegratedGradients",
        "captum.insights.AttributionVisualizer",
        "my_models.Reads.read_any",
        "my_models.caller",
        "my_models.load",
        "my_models.os.system",
        "my_models.system",
        "my_models.dangerous",
        "my_models.joblib.load",
        "my_models.pickle.Unpickler",
        "my_models.torch.load",
        "my_models.Net.__class__",
        "my_models.Net.__subclasses__",
        "my_models.Net.__init_subclass__",
        "my_models.__loader__.get_data",
        "my_models.__spec__.loader.exec_module",
        "my_models.Net.load_state_dict",
        "my_models.nn.Linear.__init__",
        "my_models.zoo.__class__.__mro__",
        "torch.multiprocessing.spawn",
        "fsspec.callbacks.Callback.branched",  # beside objects that answer whatever they are asked
        "ray.util.client_connect.connect",  # and such that fail then
    ],
)
def test_nothing_else_is_called_in_any_place(target: str) -> None:
    for made, init in (
        (target, {}),
        ("my_models.Net", {"settings": {"_target_": target}}),
        ("my_models.Net", {"layers": [{"a": {"_target_": target, "_partial_": True}}]}),
        ("torch.nn.Sequential", {"_args_": [{"_target_": target, "_args_": ["touch RAN"]}]}),
    ):
        with pytest.raises(UserError, match=r"model(\.init\.[\w.]+)?\._target_=.* (is not called|cannot be imported)"):
            make(made, init)


def test_arguments_may_be_parts_of_a_model() -> None:
    def given(**more: Any) -> Any:
        return make("my_models.Net", more)

    assert given(settings={"_target_": "my_models.Settings", "width": 3}).settings.width == 3
    layer = {"_target_": "torch.nn.Conv1d", "in_channels": 4, "out_channels": 2, "kernel_size": 3}
    assert isinstance(given(layers=[layer]).layers[0], nn.Conv1d)
    assert isinstance(given(layers={**layer, "_partial_": True}).layers, functools.partial)
    gelu = given(activation={"_target_": "torch.nn.functional.gelu", "_partial_": True, "approximate": "tanh"})
    assert torch.equal(gelu.activation(torch.ones(1)), nn.functional.gelu(torch.ones(1), approximate="tanh"))
    assert given(settings={"_target_": "hub_of_models.Pair", "one": 2}).settings == (2,)
    assert given(settings={"_target_": "hub_of_models.Widths", "width": 2}).settings.width == 2
    assert given(settings={"_target_": "hub_of_models.Kind", "value": 1}).settings.name == "ONE"
    names = {"_target_": "my_models.Settings", "width": 1, "names": {"_target_": "builtins.tuple", "_args_": [[1, 2]]}}
    assert given(settings=names).settings.names == (1, 2)
    kept = given(settings={"_target_": "my_models.Settings", "width": layer, "_recursive_": False})
    assert kept.settings.width == layer
    assert given(layers={"_Target_": "os.system", "_\uff54arget_": "os.system"}).layers["_Target_"] == "os.system"


@pytest.mark.parametrize(
    ("target", "init", "message"),
    [
        ("my_models.not_a_module", {}, "gives a dict; expected a torch.nn.Module"),
        ("my_models.plain", {"_partial_": True, "width": 1}, "gives a partial; expected a torch.nn.Module"),
        (
            "my_models.Net",
            {"_target_": "os.system"},
            r"model\.init\._target_=os\.system; the target is model\._target_",
        ),
        ("my_models.plain", {"w": 1}, r"my_models\.plain with model\.init=\{'w': 1\}: TypeError: .*argument 'w'"),
        ("torch.load", {"f": "x"}, r"write a function .* def model\(\): \.\.\., .*model\._target_=my_model\.model"),
        ("my_models", {}, "is not a dotted path"),
        ("builtins.tuple", {}, "gives a tuple; expected a torch.nn.Module"),
    ],
)
def test_errors_say_what_to_do(target: str, init: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(target, init)
