"""One file adds one thing: choices of an installed package, without a change to any other file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.config.compose import compose_config
from pipeline.config.registry import CONF, GROUPS, choices, names, schema
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import worked_example

FORM = worked_example("plugged_lines.py")
FAMILY = worked_example("counts_of_bases.py")
KIND = worked_example("one_base.py")
MODULES = {"dataset": ("plugged_lines", FORM), "model": ("counts_of_bases", FAMILY), "references": ("one_base", KIND)}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that is installed, with one choice for each of three groups, each in a file of its own."""
    site = tmp_path / "site"
    (site / "plugged").mkdir(parents=True)
    (site / "plugged" / "__init__.py").touch()
    points = []
    for group, (name, text) in MODULES.items():
        (site / "plugged" / f"{name}.py").write_text(text)
        points.append(f"[dlshap.{group}]\n{name} = plugged.{name}\n")
    info = site / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(points))
    monkeypatch.syspath_prepend(str(site))
    schema.cache_clear()
    yield site
    schema.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugged"]:
        del sys.modules[name]


def settings(tmp_path: Path) -> list[str]:
    (tmp_path / "x.txt").write_text("ACGTACGTAC\nTTTTTGGGGG\n")
    return [
        "model=counts_of_bases",
        "model.weights=[1,2,3,4]",
        "references=one_base",
        "references.base=A",
        "dataset=plugged_lines",
        f"dataset.text={tmp_path / 'x.txt'}",
        "cluster=none",
        f"store.path={tmp_path / 'a.zarr'}",
    ]


def test_a_file_adds_an_input_form_a_model_family_and_a_kind_of_references(package: Path, tmp_path: Path) -> None:
    assert pipeline.run(settings(tmp_path)).complete
    store = pipeline.open_store(tmp_path / "a.zarr")
    assert store.rows["name"].tolist() == ["line0", "line1"]
    # Compared with A everywhere, a base is worth its weight less that of A.
    codes = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 0, 1], [3, 3, 3, 3, 3, 2, 2, 2, 2, 2]])
    np.testing.assert_array_equal(store.attribution[:, 0], codes.astype(np.float32))
    assert pipeline.run(settings(tmp_path)).rows_computed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("references.base=N", r"references\.base=N; expected A, C, G or T"),
        ("~references.base", r"references=one_base needs references\.base \(the base\)"),
        ("dataset.txt=y", r"dataset\.txt is not a setting; did you mean dataset\.text"),
        ("references.window=9", r"references=one_base and references\.window contradict"),
    ],
)
def test_its_settings_are_checked_as_all_are(package: Path, tmp_path: Path, change: str, message: str) -> None:
    given = settings(tmp_path)
    if change.startswith("~"):
        given = [item for item in given if not item.startswith(change[1:])]
    with pytest.raises(UserError, match=message):
        compose_config(given if change.startswith("~") else [*given, change])


def test_a_setting_that_reaches_the_values_is_in_the_fingerprint(package: Path, tmp_path: Path) -> None:
    pipeline.run(settings(tmp_path))
    for change, field in [("references.base=C", "references"), ("model.weights=[1,2,3,5]", "model")]:
        with pytest.raises(UserError, match=rf"belongs to another run: .*{field}"):
            pipeline.run([*settings(tmp_path), change])


def test_the_code_of_a_package_that_draws_is_in_the_fingerprint(package: Path, tmp_path: Path) -> None:
    pipeline.run(settings(tmp_path))
    with (package / "plugged" / "one_base.py").open("a") as file:
        file.write("# another version\n")
    with pytest.raises(UserError, match=r"belongs to another run: .*settings\.references\.code is "):
        pipeline.run(settings(tmp_path))


def test_a_package_cannot_take_the_place_of_what_is_there(package: Path) -> None:
    points = package / "plugged-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("one_base = ", "zeros = "))
    with pytest.raises(UserError, match=r"plugged\.one_base of dlshap\.references: there is references=zeros already"):
        compose_config(["references=zeros"])


def test_help_and_errors_know_it(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choices("dataset")["plugged_lines"] == "A sequence on each line of a text."
    with pytest.raises(UserError, match=r"dataset=plugged_lins; expected .*plugged_lines.*did you mean plugged_lines"):
        compose_config(["dataset=plugged_lins"])
    with pytest.raises(SystemExit):
        dispatch(["run", "--help"])
    assert "one_base" in capsys.readouterr().out


def test_every_file_of_conf_is_a_choice_and_every_choice_has_a_file() -> None:
    for group in GROUPS:
        assert names(group) == sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        for name in names(group):
            assert schema(group, name)().name == name
