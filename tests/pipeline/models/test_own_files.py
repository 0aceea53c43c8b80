"""A model by its file, path/to/file.py:Class: as Python would run that file, wherever it lies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.execution.executors.ray_cluster import SENT
from pipeline.messages.errors import UserError
from pipeline.models import own_files, own_modules
from pipeline.models.load import LoadedModel, load_model
from tests.pipeline.conftest import chosen

NET = """
import torch
from beside import Scale

class Net(torch.nn.Module):
    def __init__(self, by=1.0):
        super().__init__()
        self.scale = Scale(by)

    def forward(self, X):
        from later import SHIFT
        return self.scale(X).sum((1, 2)).unsqueeze(1) + SHIFT

def made(by=2.0):
    return Net(by)

ready = Net()
"""
BESIDE = """
import torch
class Scale(torch.nn.Module):
    def __init__(self, by): super().__init__(); self.by = by
    def forward(self, X): return X * self.by * {}
"""


def write(folder: Path, name: str = "train", factor: float = 1.0, shift: float = 0.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(NET)
    (folder / "beside.py").write_text(BESIDE.format(factor))
    (folder / "later.py").write_text(f"SHIFT = {shift}")
    return folder / f"{name}.py"


@pytest.fixture(autouse=True)
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before, found = set(sys.modules), dict(own_modules._FINDER.found)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with own_modules.restored():
        own_modules.search()
        yield
    own_modules._FINDER.found = found
    for name in {*sys.modules} - before:
        del sys.modules[name]


def load(target: object, **init: object) -> LoadedModel:
    return load_model(chosen("model", "module", _target_=str(target), init=init))


def value(loaded: LoadedModel) -> float:
    return float(loaded.module(torch.ones(1, 4, 2)))


@pytest.mark.parametrize("name", ["train", "code", "pipeline", "torch", "my-net", "test_1 (copy)"])
def test_a_file_is_imported_with_what_lies_beside_it(name: str, tmp_path: Path) -> None:
    code, file = sys.modules.get("code"), write(tmp_path / "a b", name, factor=3.0, shift=1.0)
    assert value(load(f"{file}:Net", by=2.0)) == 8 * 3 * 2 + 1
    loaded = load(f"{file}:made")
    assert value(loaded) == 8 * 3 * 2 + 1
    own = name if name == "train" else "own_" + {"my-net": "my_net", "test_1 (copy)": "test_1__copy_"}.get(name, name)
    assert {own, "beside", "later"} <= set(loaded.code.hashes)
    assert loaded.code.files[own] == str(file)
    assert sys.modules.get("code") is code
    assert sys.modules["torch"] is torch


def test_the_code_of_a_file_identifies_the_model_and_its_folder_does_not(tmp_path: Path) -> None:
    first = load(f"{write(tmp_path / 'a')}:Net").identity
    assert load(f"{write(tmp_path / 'b')}:Net").identity == first
    assert load(f"{write(tmp_path / 'c', factor=2.0)}:Net").identity != first
    assert load(f"{write(tmp_path / 'd', shift=2.0)}:Net").identity != first
    assert own_files.named(f"{tmp_path}/a/train.py:Net") == "train.py:Net"
    assert own_files.named("package.train.Net") == "package.train.Net"


def test_files_of_one_name_in_several_folders_are_kept_apart(tmp_path: Path) -> None:
    files = [write(tmp_path / str(factor), factor=factor, shift=factor) for factor in (2.0, 3.0, 2.0)]
    write(Path.cwd(), factor=100.0)  # the working folder's own come after
    own_modules.search(str(Path.cwd()))
    assert [value(load(f"{file}:Net")) for file in files] == [18, 27, 18]


def test_paths_are_as_of_the_working_folder_and_of_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "net", factor=2.0)
    for target in ("../net/train.py:Net", "~/net/train.py:Net"):
        assert value(load(target)) == 16


def test_a_file_of_a_package_is_imported_as_a_part_of_it(tmp_path: Path) -> None:
    file = write(tmp_path / "zoo_of_mine" / "deep")
    file.write_text(NET.replace("from beside", "from .beside").replace("from later", "from ..later"))
    (file.parent / "later.py").rename(file.parent.parent / "later.py")
    for folder in (file.parent, file.parent.parent):
        (folder / "__init__.py").write_text("")
    loaded = load(f"{file}:Net")
    assert value(loaded) == 8
    assert {"zoo_of_mine.deep.train", "zoo_of_mine.deep.beside", "zoo_of_mine.later"} <= set(loaded.code.hashes)


@pytest.mark.parametrize("given", ["/home/someone/project/nets/train.py", "nets/train.py", "project/nets/train.py"])
def test_a_node_finds_a_file_in_the_folder_that_was_sent(given: str, tmp_path: Path) -> None:
    write(tmp_path / SENT / "nets", factor=5.0)
    with pytest.raises(UserError, match=r"there is no file .*nets/train\.py"):
        load(f"{given}:Net")
    own_modules.search_sent(str(tmp_path / SENT))
    assert value(load(f"{given}:Net")) == 40


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        (NET, "absent.py:Net", r"there is no file .*absent\.py"),
        (NET, "train.py:Nett", r"train\.py has no Nett; it defines Net"),
        (NET, "train.py", r"cannot be imported.* or path/to/file\.py:Class"),
        (NET, "train.py:torch.load", "is not called"),
        (NET, "train.py:ready", r"is a Net that is made already; give its class, or a function that returns it"),
        ("import absent_package", "train.py:Net", "No module named 'absent_package'"),
        ("import argparse; argparse.ArgumentParser().error('x')", "train.py:Net", r"ends the process; put .*__main__"),
        ("class Net(", "train.py:Net", r"cannot be imported: '\(' was never closed"),
    ],
)
def test_what_is_wrong_is_said(text: str, target: str, message: str) -> None:
    write(Path.cwd())
    Path("train.py").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        load(target)
    assert "\n" not in str(raised.value)
    assert "train" not in sys.modules or text == NET


def test_a_class_that_ends_the_process(tmp_path: Path) -> None:
    lines = "import torch\nclass Ends(torch.nn.Module):\n    def forward(self, x):\n        exit()\n"
    (tmp_path / "later.py").write_text(
        f"{lines}class Net(torch.nn.Sequential):\n    def __init__(self): super().__init__(Ends())"
    )
    with pytest.raises(UserError, match=r"^Ends ends the process when it is called \(.*later\.py, line 4: exit"):
        load(f"{tmp_path}/later.py:Net").module(torch.zeros(1, 4, 5))
    (tmp_path / "ends.py").write_text("class Net:\n    def __init__(self): exit(3)")
    with pytest.raises(UserError, match=r"ends\.py:Net with model\.init=.*SystemExit: 3"):
        load(f"{tmp_path}/ends.py:Net")


def test_a_class_that_keeps_its_weights_as_state_dict(tmp_path: Path) -> None:
    """As Puffin's does."""
    state = {"weight": torch.tensor([[3.0]]), "bias": torch.zeros(1)}
    torch.save(state, tmp_path / "w.pt")
    (tmp_path / "puffin.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(1, 1)\n"
        f"        self.state_dict = torch.load({str(tmp_path / 'w.pt')!r})\n"
    )
    model = chosen("model", "module", _target_=f"{tmp_path}/puffin.py:Net", checkpoint=str(tmp_path / "w.pt"))
    assert load_model(model).module(torch.ones(1, 1)).item() == 3


def test_a_model_of_keras_is_referred_to_its_own_family(tmp_path: Path) -> None:
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "made.py").write_text(
        "import torch\nclass Sequential(torch.nn.Module): pass\nSequential.__module__ = 'keras.src.models.sequential'\n"
        "def model(): return Sequential()\n"
    )
    with pytest.raises(
        UserError, match=r"gives a model of Keras.*give its file as model=keras model\.checkpoint=\.\.\."
    ):
        load(f"{tmp_path}/keras/made.py:model")


def test_parts_of_a_model_may_come_from_files(tmp_path: Path) -> None:
    file = write(tmp_path / "a", factor=2.0)
    part = {"_target_": f"{file}:Net", "by": 3.0}
    assert value(load("torch.nn.Sequential", _args_=[part])) == 48
