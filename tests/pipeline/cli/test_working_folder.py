"""Nothing in the folder that one stands in runs, whatever it is called, but the model that a command names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.__main__ as command
from pipeline.cli.main import dispatch
from tests.pipeline.conftest import Inputs

# Whatever is looked for and is not installed lies in the folder from that moment on.
SCRIPT = """
import importlib, json, os, sys
from importlib.machinery import PathFinder
from pipeline.__main__ import main

del sys.path[0]
installed, finders = list(sys.path), [finder for finder in sys.meta_path if finder is not PathFinder]

class Traps:
    def find_spec(self, name, path=None, target=None):
        if path is not None or name == "own_net" or PathFinder.find_spec(name, installed) is not None:
            return
        if not any(finder.find_spec(name, None) for finder in finders if finder in sys.meta_path):
            with open(f"{name}.py", "w") as file:
                file.write(f"print('RAN {name}')")
            importlib.invalidate_caches()

sys.meta_path.insert(0, Traps())
sys.path.append(os.getcwd())  # what an empty entry of PYTHONPATH does
os.environ["PYTHONPATH"] = os.pathsep.join(["", "/nowhere"])

for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        print("ENDED", arguments[0], end.code, os.environ["PYTHONPATH"], sys.path == installed)
"""
POINTS = "[dlshap.model]\nx = evil_point\n[dlshap.exports]\nx = evil_point\n[torch.backends]\nx = evil_point:f\n"


def test_nothing_in_the_folder_runs(inputs: Inputs, finished: Path, in_folder: Path) -> None:
    for name in ("sitecustomize.py", "usercustomize.py", "evil_point.py", "hydra_plugins/evil.py", "conf/__init__.py"):
        (in_folder / name).parent.mkdir(exist_ok=True)
        (in_folder / name).write_text(f"print('RAN {name}')")
    (in_folder / "evil.pth").write_text("import sys; print('RAN pth')\n")
    (in_folder / "evil-1.dist-info").mkdir()
    (in_folder / "evil-1.dist-info" / "entry_points.txt").write_text(POINTS)
    (in_folder / "evil-1.dist-info" / "METADATA").write_text("Name: evil\nVersion: 1\n")
    (in_folder / "own_net.py").write_text("from pipeline.models.example import ExampleNet\nclass Net(ExampleNet): pass")
    (in_folder / "s.zarr").symlink_to(finished)
    given = ["model._target_=own_net.Net", "cluster=none"]
    commands = [
        ["--version"],
        ["status", "s.zarr"],
        ["verify", "s.zarr"],
        ["export", "tsv", "s.zarr", "s.tsv"],
        ["logo", "s.zarr", "s0", "-o", "s.svg"],
        ["report", "s.zarr", "-o", "s.html"],
        ["run", "--cfg", "job"],
        ["audit", *inputs.overrides("new.zarr", *given)],
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert "RAN" not in done.stdout + done.stderr, done.stdout
    ended = [line.split() for line in done.stdout.splitlines() if line.startswith("ENDED")]
    assert ended == [["ENDED", each[0], "0", "/nowhere", "True"] for each in commands], done.stderr
    assert len(list(in_folder.glob("*.py"))) > 10, "nothing was looked for"


@pytest.mark.parametrize(
    ("given", "path", "kept", "found"),
    [
        (None, ["/lib"], None, ["/lib"]),
        ("", ["/lib"], "", ["/lib"]),
        (":/a", ["HERE", "/a", "/lib"], "/a", ["/a", "/lib"]),
        ("/a:./:HERE/..", ["/a", "HERE", "UP", "/lib"], "/a:HERE/..", ["/a", "UP", "/lib"]),
        ("HERE:.", ["HERE", "/lib"], "HERE", ["HERE", "/lib"]),
        ("src", ["HERE/src", "/lib"], "src", ["HERE/src", "/lib"]),
        ("../link", ["UP/link", "/lib"], "", ["/lib"]),
    ],
)
def test_python_path_is_without_the_folder_as_such(
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    path: list[str],
    kept: str | None,
    found: list[str],
) -> None:
    def full(text: str) -> str:
        return text.replace("HERE", str(in_folder)).replace("UP", str(in_folder.parent))

    link = in_folder.parent / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(in_folder)
    monkeypatch.setattr(sys, "path", [full(each) for each in path])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONPATH", full(given))
    command.forget_working_folder()
    assert sys.path == [full(each) for each in found]
    assert os.environ.get("PYTHONPATH") == (None if kept is None else full(kept))


def test_our_own_folder_stays_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(command.__file__).parents[1])
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", [root, "/lib"])
    monkeypatch.setattr(command, "__name__", "__main__")  # python -m pipeline
    monkeypatch.setenv("PYTHONPATH", ".")
    command.forget_working_folder()
    assert (sys.path, os.environ["PYTHONPATH"]) == (["/lib", root], root)


def test_settings_of_numba_in_the_folder_are_not_read(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_folder / ".numba_config.yaml").write_text("cache_dir: .\n")
    assert dispatch(["status", str(finished)]) == 2
    assert "remove it, or run the command in another folder" in capsys.readouterr().err


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
def test_settings_of_matplotlib_in_the_folder_are_not_read(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], make: Callable[[str], None]
) -> None:
    make("matplotlibrc")
    for arguments in (["logo", str(finished), "s0", "-o", "a.svg"], ["report", str(finished), "-o", "a.html"]):
        assert dispatch(arguments) == 2
        assert "matplotlibrc lies in the working folder; remove it" in capsys.readouterr().err
    assert dispatch(["status", str(finished)]) == 0


def test_a_folder_that_is_gone_is_said_so(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    command.forget_working_folder()
    assert dispatch(["status", str(finished)]) == 2
    assert "the working folder has been removed" in capsys.readouterr().err


@pytest.mark.parametrize("given", [None, "0"])
def test_large_tensors_have_large_pages_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, in_folder: Path, given: str | None
) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given or "")
    if given is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    seen: list[str | None] = []
    monkeypatch.setattr("pipeline.cli.main.main", lambda: seen.append(os.environ.get("THP_MEM_ALLOC_ENABLE")))
    command.main()
    assert seen == [given or "1"]
