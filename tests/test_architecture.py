"""The shape of the project: who may import what, what is installed, and what its files may say."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]

# Imports the mathematics with everything that belongs to the pipeline made impossible to import.
IMPORT_ALONE = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked by the test)", name=name)

sys.meta_path.insert(0, Absent())
import dlshap_core
names = [module.name for module in pkgutil.walk_packages(dlshap_core.__path__, "dlshap_core.")]
for name in names:
    importlib.import_module(name)
loaded = sorted(set(sys.modules) & set({blocked!r}))
assert not loaded, loaded
print(len(names))
"""
BLOCKED = [
    "ray",
    "zarr",
    "hydra",
    "omegaconf",
    "pipeline",
    "conf",
    "rich",
    "pyarrow",
    "pyfaidx",
    "safetensors",
    "captum",
]


def text_files() -> list[Path]:
    """Every text file of the project, wherever it lies, but for environments, caches and results."""
    folders = ["dlshap_core", "pipeline", "conf", "tests", "scripts", ".ci", "docs"]
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in folders:
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        found += [path for path in files if not {"__pycache__", "_build"} & {*path.parts}]
    binary = {".gz", ".safetensors", ".npz", ".png", ".nbi", ".nbc", ".pt", ".torch"}
    return sorted(path for path in found if path.suffix not in binary)


def pins(lock: str = "requirements.lock") -> dict[str, str]:
    lines = (ROOT / lock).read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    found = [re.fullmatch(r"([a-z0-9-]+)==([\w.]+)((?: --hash=sha256:[0-9a-f]{64})*)", line) for line in wanted]
    assert all(found), "each line of the lock is name==version and its hashes; scripts/lock writes them"
    unhashed = [pin[1] for pin in found if pin and not pin[3]]
    expected = ["torch"] if lock == "requirements.lock" else []  # scripts/setup says why
    assert unhashed == expected, f"scripts/lock writes the hashes of {unhashed}"
    return {pin[1]: pin[2] for pin in found if pin}


def test_import_contracts_hold() -> None:
    # In a process of its own, as it sets logging up for itself and silences the loggers that are there.
    script = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_core_imports_where_the_pipelines_libraries_are_not_installed() -> None:
    script = IMPORT_ALONE.format(blocked=BLOCKED)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4


def test_core_imports_torch_numpy_and_numba_alone() -> None:
    # captum is the debugging twin's, imported when that is called.
    allowed = {"dlshap_core", "torch", "numpy", "numba", "captum"} | set(sys.stdlib_module_names)
    for path in (ROOT / "dlshap_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = {str(node.module).partition(".")[0]}
            else:
                continue
            assert names <= allowed, f"{path.relative_to(ROOT)}:{node.lineno} imports {sorted(names - allowed)}"


def test_installed_version_is_this_checkouts_and_in_the_changelog() -> None:
    assert importlib.metadata.version("dlshap") == PROJECT["version"], "run scripts/setup again"
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def asked() -> list[Requirement]:
    """What pyproject.toml asks for, with all extras but `docs`, which has a lock of its own."""
    extras = [lines for name, lines in PROJECT["optional-dependencies"].items() if name != "docs"]
    build = PYPROJECT["build-system"]["requires"]
    return [Requirement(line) for group in [PROJECT["dependencies"], *extras, build] for line in group]


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    pinned = pins()
    for requirement in asked():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is in pyproject.toml, not in requirements.lock"
        assert requirement.specifier.contains(pinned[name]), (
            f"{name}: {pinned[name]} is outside {requirement.specifier}"
        )
        assert requirement.specifier, f"{name} has no bound"


def test_the_documentations_tools_are_pinned_within_their_bounds() -> None:
    pinned = pins("requirements-docs.lock")
    for requirement in map(Requirement, PROJECT["optional-dependencies"]["docs"]):
        assert requirement.specifier.contains(pinned[requirement.name]), f"{requirement}: {pinned[requirement.name]}"
    assert not set(pinned) & set(pins()), "what requirements.lock has is installed already"


def test_whatever_is_pinned_is_needed() -> None:
    needed: set[Requirement] = set()
    todo = asked()
    while todo:
        if (each := todo.pop()) not in needed:
            needed.add(each)
            of_it = map(Requirement, importlib.metadata.requires(each.name) or [])
            extras = ("", *each.extras)
            todo += [one for one in of_it if not one.marker or any(one.marker.evaluate({"extra": x}) for x in extras)]
    assert set(pins()) <= {canonicalize_name(each.name) for each in needed}


def test_installation_names_packages_and_nowhere_to_fetch_them_from() -> None:
    elsewhere = re.compile(r"(?<!pkg)://|\s@\s|--(extra-)?index-url|--find-links|--trusted-host")
    locks = ["requirements.lock", "requirements-docs.lock"]
    for name in [*locks, "pyproject.toml", "scripts/setup", "scripts/docs", ".ci/run", ".pre-commit-config.yaml"]:
        for number, line in enumerate((ROOT / name).read_text().splitlines(), start=1):
            assert not elsewhere.search(line), f"{name}:{number}: {line}"


def test_links_lead_to_papers_and_standards_alone() -> None:
    hosts = {"doi.org", "arxiv.org", "keepachangelog.com", "semver.org", "127.0.0.1", "localhost"}  # and this machine
    hosts.add("www.googleapis.com")  # names of rights in Google's cloud
    hosts.add("www.w3.org")  # the name of SVG
    for path in text_files():
        for link in re.finditer(r"https?://([\w.-]+)", path.read_text()):
            assert link[1] in hosts, f"{path.relative_to(ROOT)} links to {link[1]}"


@pytest.mark.parametrize(
    "name",
    [*(f"scripts/{name}" for name in ("setup", "lock", "demo", "test", "docs", "test_torch_range")), ".ci/run"],
)
def test_scripts_are_executable_and_stop_at_the_first_error(name: str) -> None:
    script = ROOT / name
    assert script.stat().st_mode & 0o111 == 0o111
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_files_that_are_named_are_there() -> None:
    modules = [path.relative_to(ROOT).as_posix() for path in text_files() if path.suffix == ".py"]
    of_others = {"zarr.py", "_tensor.py", "overrides.py", "my_model.py"}
    of_others |= {"plugged_lines.py", "counts_of_bases.py", "one_base.py", "bed_windows.py"}  # of CONTRIBUTING.md
    for path in text_files():
        if path.suffix not in (".py", ".yaml", ".md", ".toml") or "tests" in path.parts or path.name == "CHANGELOG.md":
            continue
        for named in re.findall(r"(?<![\w./-])(?:[a-z_]+/)*[a-z_]+\.py\b", path.read_text()):
            is_there = named.startswith("path/to/") or any(f"/{module}".endswith(f"/{named}") for module in modules)
            assert is_there or named in of_others, f"{path.relative_to(ROOT)} names {named}, which is not there"
