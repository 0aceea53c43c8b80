"""The package as others get it: built, installed into an empty environment, used outside of the checkout."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
USER = """
import torch

import pipeline
from dlshap_core import deep_lift_shap

attributions = deep_lift_shap(torch.nn.Flatten(), torch.zeros(2, 4, 9), target=0, random_state=0)
store = pipeline.open_store("example.zarr")
length: int = len(store)
named: str = store.rows_named("x")  # an error: it is an array
pipeline.run({"cluster": "none"}, 3)  # an error: it takes one argument
"""


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """What a command prints; it must end with this code."""
    around = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, env=around)
    assert done.returncode == code, f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the checkout and the wheel that is built from it, as an index would get them."""
    folder = tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    make = "from setuptools import build_meta; build_meta.build_sdist({!r})"
    run(sys.executable, "-c", make.format(str(folder)), cwd=folder / "source")
    (sdist,) = folder.glob("*.tar.gz")
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
    )
    run(*pip, "-w", folder, sdist, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that has the wheel, and borrows what it needs from this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=built)
    packages = next(folder.glob("lib/python3.*/site-packages"))
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python")
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=built)
    borrowed = {sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)))  # behind the wheel's own
    return folder / "bin"


@pytest.mark.slow
def test_what_is_in_it(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"pipeline/py.typed", "dlshap_core/py.typed", "conf/dataset/loci.yaml", "pipeline/report/page.html"} <= names
    assert not [name for name in names if name.startswith(("tests", "scripts", "docs"))]
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("pipeline/example/model.safetensors") for name in archive.getnames())


@pytest.mark.slow
def test_it_works_outside_of_the_checkout(environment: Path, tmp_path: Path) -> None:
    dlshap = environment / "dlshap"
    assert str(ROOT) not in run(environment / "python", "-c", "import pipeline; print(pipeline.__file__)", cwd=tmp_path)
    run(dlshap, "run", "cluster=none", "references.n_shuffles=2", "store.path=example.zarr", cwd=tmp_path)
    assert "all as committed" in run(dlshap, "verify", "example.zarr", cwd=tmp_path)
    run(dlshap, "export", "modisco", "example.zarr", "motifs", "--window", "300", cwd=tmp_path)
    run(dlshap, "report", "example.zarr", "-o", "report.html", cwd=tmp_path)
    assert str(environment.parent) in run(dlshap, "doctor", cwd=tmp_path)
    assert {"motifs", "report.html"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_its_types_are_seen(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    mypy = (Path(sys.executable).parent / "mypy", "--python-executable", environment / "python", "--no-incremental")
    told = run(*mypy, "--follow-imports=silent", "user.py", cwd=tmp_path, code=1)
    assert [line.rpartition("[")[2] for line in told.splitlines()[:-1]] == ["assignment]", "call-arg]"], told
