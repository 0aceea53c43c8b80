"""What can be added without touching another file: an export of an installed package, and a module of ours."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

import pipeline.exports
from pipeline.cli.main import dispatch
from pipeline.exports.registry import export_steps, exports
from pipeline.store.reader import Store
from tests.pipeline.conftest import worked_example

BED = worked_example("bed_windows.py")


def add(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch, text: str = BED, name: str = "bed_windows") -> None:
    """Add an export as a module of pipeline.exports, or as a package that is installed in a folder."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    if how == "module":
        monkeypatch.setattr(pipeline.exports, "__path__", [*pipeline.exports.__path__, str(folder)])
        return
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[dlshap.exports]\nbed = {name}:EXPORT\n")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("how", ["module", "package"])
def test_an_export_is_one_file(
    how: str,
    located: Store,
    plain: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its name, options, help, window and alleles are those of the command, and it is a step of reports."""
    add(tmp_path / "added", how, monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        dispatch(["export", "--help"])
    assert "the windows as BED" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        dispatch(["export", "bed", "--help"])
    told = " ".join(capfd.readouterr().out.split())
    assert all(text in told for text in ("--score S of every line", "(default: 10)", "(default: both)"))
    (step,) = [step for step in export_steps(located, "0") if step.purpose == "windows for bedtools"]
    assert [step for step in export_steps(plain, "0") if step.purpose == "windows for bedtools"] == [], "no loci"
    assert dispatch(["export", "bed", plain.url, "a.bed"]) == 2
    assert "the input had no loci" in capfd.readouterr().err
    assert dispatch([*shlex.split(step.command)[1:], "--score", "3", "--json"]) == 0
    told_json = json.loads(capfd.readouterr().out)
    assert told_json == {"files": list(step.files), "rows": 20, "notes": ["scores are given"]}
    first = located.rows["start"][0] + 20 - 5
    lines = Path(*step.files).read_text().splitlines()
    assert lines[0].split("\t") == ["chr10", str(first), str(first + 10), "peak 0", "3"]
    assert len(lines) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EXPORT = 3", "bed_wrong:EXPORT of dlshap.exports is a int; expected a pipeline.exports.base.Export"),
        ("", "the entry point bed of dlshap.exports cannot be loaded: "),
        ("import nowhere_to_be_found", "cannot be loaded: No module named 'nowhere_to_be_found'"),
        (BED.replace('"bed"', '"tsv"'), "bed_wrong:EXPORT: there is an export 'tsv' already"),
    ],
)
def test_a_package_that_is_wrong_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(exports())
    with monkeypatch.context() as patch:
        add(tmp_path / "added", "package", patch, text, "bed_wrong")
        patch.delitem(sys.modules, "bed_wrong", raising=False)
        assert dispatch(["export", "tsv", "a.zarr", "out"]) == 2
        assert message in capfd.readouterr().err
    assert set(exports()) == before
