"""A folder of the user's own modules gives what is asked for by name, and what lies beside that; libraries nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.messages.errors import UserError
from pipeline.models import own_modules
from pipeline.models.code import code_of
from pipeline.models.load import LoadedModel, bare, load_model
from tests.pipeline.conftest import chosen

NET = """
import importlib, torch
import helpful_lib
from own_layers.deep import Scale

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        from own_first import VALUE
        self.scale, self.value = Scale(VALUE), helpful_lib.optional()

    def forward(self, X):
        import own_second
        third = importlib.import_module("own_third")
        return self.scale(X).sum((1, 2)).unsqueeze(1) * own_second.VALUE * third.VALUE

def whole(path):
    return torch.load(path, weights_only=False)
"""
FILES = {
    "own_net.py": NET,
    "own_first.py": "VALUE = 2.0",
    "own_second.py": "VALUE = 3.0",
    "own_third.py": "VALUE = 5.0",
    "own_layers/deep/__init__.py": "from .scale import Scale",  # own_layers has no __init__.py
    "own_layers/deep/scale.py": "import torch\nclass Scale(torch.nn.Module):\n"
    "    def __init__(self, by): super().__init__(); self.by = by\n"
    "    def forward(self, X): return X * self.by",
    "own_pickled.py": "import torch\nclass Pickled(torch.nn.Module):\n    def forward(self, X): return X.sum((1, 2))",
    "optional_lib.py": "raise SystemExit('a file of the folder ran')",
    "helpful_lib.py": "raise SystemExit('a file of the folder ran')",
    "torch.py": "raise SystemExit('a file of the folder ran')",
}
LIBRARY = """
import importlib

def optional():
    for ask in (lambda: __import__("optional_lib"), lambda: importlib.import_module("optional_lib")):
        try:
            ask()
        except ModuleNotFoundError:
            continue
        return True
    return False
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with modules of the user's and others, and a library, `helpful_lib`, with an optional one."""
    own, installed, known = tmp_path / "own", tmp_path / "installed", set(sys.modules)
    for name, text in FILES.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(text)
    installed.mkdir()
    (installed / "helpful_lib.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.chdir(own)
    with own_modules.restored():
        own_modules.search(str(own))
        yield own
    for name in {*sys.modules} - known:
        del sys.modules[name]


def load(**settings: object) -> LoadedModel:
    return load_model(chosen("model", "module", **settings))


def test_a_model_finds_what_lies_beside_it_and_libraries_do_not(folder: Path) -> None:
    loaded = load(_target_="own_net.Net")
    assert float(loaded.module(torch.ones(1, 4, 2))) == 8 * 2 * 3 * 5
    assert bare(loaded.module).value is False, "the library found its optional one in the folder"
    assert str(folder) not in sys.path
    own = {"own_net", "own_first", "own_second", "own_layers.deep", "own_layers.deep.scale"}
    assert own <= set(loaded.code.hashes), "also of what is imported when the model is called"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("own_pickled")  # by this test, which is none of them
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("optional_lib")


def test_folders_without_an_init_within_a_package_that_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ns_top/inner/leaf").mkdir(parents=True)
    (tmp_path / "ns_top/__init__.py").touch()
    (tmp_path / "ns_top/inner/leaf/deep.py").write_text("VALUE = 1")
    net = "class Net(torch.nn.Module):\n    def lazily(self): from ns_top.inner.leaf import deep\n"
    (tmp_path / "ns_net.py").write_text(f"import torch\n{net}")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"ns_net", "ns_top", "ns_top.inner.leaf.deep"} <= {*code_of(importlib.import_module("ns_net").Net()).files}
    assert "ns_top" not in sys.modules


def test_code_is_that_of_the_folder_before_it_is_imported(folder: Path) -> None:
    before = load(_target_="own_net.Net").code.hashes["own_second"]
    (folder / "own_second.py").write_text("VALUE = 7.0")
    assert "own_second" not in sys.modules
    assert load(_target_="own_net.Net").code.hashes["own_second"] != before


def test_a_trusted_pickle_names_its_modules(folder: Path) -> None:
    with own_modules.asked_for("own_pickled"):
        made: nn.Module = importlib.import_module("own_pickled").Pickled()
    torch.save(made, "new.pt")
    torch.save(made, "old.pt", _use_new_zipfile_serialization=False)
    for settings in ({"checkpoint": "new.pt"}, {"checkpoint": "old.pt"}):
        del sys.modules["own_pickled"]
        loaded = load(trust_pickle=True, **settings)
        assert float(loaded.module(torch.ones(1, 4, 2))) == 8
    del sys.modules["own_pickled"]
    assert float(load(_target_="own_net.whole", init={"path": "new.pt"}).module(torch.ones(1, 4, 2))) == 8


def test_a_folder_that_is_not_searched_gives_nothing(folder: Path) -> None:
    with own_modules.restored():
        own_modules._FINDER.folders.clear()
        with pytest.raises(UserError, match=r"own_net\.Net cannot be imported: No module named 'own_net'"):
            load(_target_="own_net.Net")
    load(_target_="own_net.Net")
