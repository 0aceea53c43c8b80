"""Settings as people type them: a path is what stands after the first `=`, and what cannot be read is corrected."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipeline.config.compose import compose_config
from pipeline.config.overrides import as_overrides, command_line
from pipeline.config.schema import Config
from pipeline.config.validate import from_mapping
from pipeline.messages.errors import UserError

FASTA = ["dataset=fasta"]
MODULE = ["model=module", "model._target_=a.B", *FASTA, "dataset.path=x.fa"]
UGLY = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12) | st.text(
    st.sampled_from("~=#,()[]{}'\"\\$ :@+%é\u202e\x1b\n\udcff1.fa"), min_size=1, max_size=12
)
NAMES = [
    "x=1.fa",
    "=",
    "==a",
    "x#1.fa",
    "seq(1).fa",
    "a,b.fa",
    "{x}.fa",
    "it's.fa",
    "a[1].fa",
    "[a].fa",
    "[a]",
    "'a'b'",
    'a"b.fa',
    "a$b",
    "a: b",
    "1",
    "1_0",
    "1e3",
    "true",
    "nan",
    "null.fa",
    "x\ny.fa",
    "\udcff.fa",
    "\x1b[31m.fa",
    "ü \u3000.fa",
    "a\\b.fa",
    "x\\",
    "choice(a,b)",
    "x" * 5000,
]


def path_of(*overrides: str) -> Any:
    return compose_config(overrides).dataset.path  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_stands(name: str) -> None:
    assert path_of(*FASTA, f"dataset.path={name}") == name
    assert path_of(*FASTA, f"++dataset.path={name}") == name
    assert compose_config([*MODULE, f"model.checkpoint=./{name}"]).model.checkpoint == f"./{name}"
    assert compose_config([f"cluster.code={name}"]).cluster.code == name
    assert path_of(*FASTA, *as_overrides({"dataset.path": name})) == name


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ('"a b.fa"', "a b.fa"),
        ("'it\\'s.fa'", "it's.fa"),
        ("epoch\\=1\\,2.fa", "epoch=1,2.fa"),
        ("'null'", "null"),
        (" x.fa", " x.fa"),
        ("${seed}x.fa", "0x.fa"),
    ],
)
def test_what_is_written_for_hydra_keeps_its_meaning(typed: str, expected: str) -> None:
    assert path_of(*FASTA, f"dataset.path={typed}") == expected


def test_several_paths_are_a_list() -> None:
    for typed, expected in [
        ("[a.pt,b.pt]", ["a.pt", "b.pt"]),
        ("['a=1.pt','b(1).pt']", ["a=1.pt", "b(1).pt"]),
        ("a.pt,b.pt", "a.pt,b.pt"),
        ("[a].pt", "[a].pt"),
        ("f?[0-9].pt", "f?[0-9].pt"),
        ("null", None),
    ]:
        assert compose_config([*MODULE, f"model.checkpoint={typed}"]).model.checkpoint == expected
    with pytest.raises(UserError, match=r"needs dataset\.path"):
        path_of(*FASTA, "dataset.path=x", "~dataset.path")


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of(*FASTA, "dataset.path=~/x (1).fa") == f"{tmp_path}/x (1).fa"
    assert path_of(*FASTA, "dataset.path=~no-such-user/x.fa") == "~no-such-user/x.fa"
    assert path_of(*FASTA, "dataset.path=./~x.fa") == "./~x.fa"
    assert compose_config([*MODULE, 'model.checkpoint=["~/a.pt"]']).model.checkpoint == [f"{tmp_path}/a.pt"]
    for values in ({"name": "fasta", "path": "~/x.fa"}, {"name": "fasta", "path": Path("~/x.fa")}):
        config = from_mapping({"dataset": values, "model": {"name": "example"}})
        assert config.dataset.path == f"{tmp_path}/x.fa"  # type: ignore[attr-defined]


@settings(max_examples=60, deadline=None)
@given(UGLY)
@example("'")
@example("\\'")
@example("it's \\")
def test_a_path_survives_the_store_and_the_shell(name: str) -> None:
    """Command, configuration, store, printed argument in the shell's quotes, configuration."""
    path = f"/w/{name}"
    if "${" in name:
        return  # an interpolation is no name
    stored = compose_config([*FASTA, f"dataset.path={path}"]).absolute()
    expected = stored["dataset"]["path"]
    assert expected == str(Path(path))
    again = from_mapping(OmegaConf.create(stored))
    assert again.dataset.path == expected  # type: ignore[attr-defined]
    words = shlex.split(command_line(["run", "dataset=fasta"], {"dataset.path": expected}))[2:]
    assert path_of(*words) == expected


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["engine.targets=[DNASE (K562),x]"], ['engine.targets=["DNASE (K562)",x]']),
        (["engine.targets=[a=1,'b c']"], ["engine.targets=[\"a=1\",'b c']"]),
        (["engine.targets=[a"], ["engine.targets=[a]"]),
        ([*MODULE, "model.checkpoint=[a=1.pt,b(1).pt]"], ['model.checkpoint=["a=1.pt","b(1).pt"]']),
        ([*MODULE, "model.init={a:x=1,b:[c=d,2]}"], ['model.init={a:"x=1",b:["c=d",2]}']),
        ([*MODULE, "model.init.f=~/x (1)"], ['model.init.f="~/x (1)"']),
        ([" seed=1"], ["seed=1"]),
        ([*FASTA, "dataset.path", "=", "my file.fa"], ["dataset.path=my file.fa"]),
        ([*FASTA, "dataset.path", "x.fa"], ["dataset.path=x.fa"]),
        ([*FASTA, "dataset.path=my", "file", "(1).fa"], ["dataset.path=my file (1).fa"]),
        ([*FASTA, "dataset.path=", "x.fa"], ["dataset.path=x.fa"]),
        (["engine.targets=0,1"], ["engine.targets=[0,1]"]),
    ],
)
def test_what_cannot_be_read_is_answered_with_what_can(typed: list[str], words: list[str]) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        compose_config(typed)
    pasted = shlex.join(words)
    assert str(caught.value).endswith(pasted)
    names = ["model.target_names=names.txt"] if "targets" in words[0] else []
    good = [each for each in typed if each.partition("=")[0] in ("model", "model._target_", "dataset")]
    assert compose_config([*good, *names, *shlex.split(pasted)])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["dataset.path="], "dataset.path is empty; give a path"),
        (["dataset.path= "], "dataset.path is empty; give a path"),
        (["dataset.path=null"], "needs dataset.path"),
        (["dataset.path=${oc.env:HOME}/x"], "would be looked up elsewhere"),
        (["dataset.path=a", "dataset.pth=~/x"], "dataset.pth is not a setting; did you mean dataset.path?"),
        (["dataset.path=a", "seed=(1"], "seed=(1; expected a whole number"),
        (["dataset.path=a", "seed=1,2"], "seed=1,2 gives several values; expected one"),
        (["dataset.path=a", "x.fa"], "such as dataset.path=x.fa"),
    ],
)
def test_what_is_no_path(typed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        compose_config([*FASTA, *typed])
    if typed[-1] == "x.fa":
        assert "if it belongs to the value before it" in str(caught.value)
    else:
        assert said in str(caught.value)


def test_names_in_yaml_and_python_are_text() -> None:
    for value in (8, 1000.0, True):
        with pytest.raises(UserError, match=r"is read as \w+, not as a path; put it in quotes"):
            from_mapping({"dataset": {"name": "fasta", "path": value}, "model": {"name": "example"}})
    with pytest.raises(UserError, match="holds a null byte"):
        from_mapping({"dataset": {"name": "fasta", "path": "x\0y"}, "model": {"name": "example"}})
    for name in NAMES:
        config = from_mapping({"dataset": {"name": "fasta", "path": name}, "model": {"name": "example"}})
        assert isinstance(config, Config)
        assert config.dataset.path == name  # type: ignore[attr-defined]
