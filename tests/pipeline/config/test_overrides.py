"""Settings as people type them: a path is what stands after the first `=`, and what cannot be read is corrected."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipeline.config import hydra_private
from pipeline.config.compose import compose_config
from pipeline.config.overrides import as_hydra, as_overrides, command_line
from pipeline.config.settings import plain_paths
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


def given_to_hydra(override: str, *before: str) -> Any:
    """The value that Hydra reads of an override as it is typed, without composing a configuration."""
    return hydra_private.value_of(as_hydra([*before, override])[-1].partition("=")[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_stands(name: str) -> None:
    assert given_to_hydra(f"dataset.path={name}", *FASTA) == name
    assert given_to_hydra(f"++dataset.path={name}", *FASTA) == name
    assert given_to_hydra(f"model.checkpoint=./{name}", *MODULE) == f"./{name}"
    assert given_to_hydra(f"cluster.code={name}") == name
    assert given_to_hydra(*as_overrides({"dataset.path": name}), *FASTA) == name


def test_paths_reach_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ugly = "it's [a]=b, #1 ünï~{x}.fa"
    typed = [f"++dataset.path={ugly}", f"model.checkpoint=[{ugly}].pt", f"store.path=~/{ugly}", f"cluster.code={ugly}"]
    config = compose_config([*MODULE[:-1], *typed])
    assert (config.dataset.path, config.model.checkpoint) == (ugly, f"[{ugly}].pt")  # type: ignore[attr-defined]
    assert (config.store.path, config.cluster.code) == (f"{tmp_path}/{ugly}", ugly)  # type: ignore[attr-defined]
    stored = config.absolute()
    again = from_mapping(OmegaConf.create(stored))
    assert again.dataset.path == stored["dataset"]["path"] == str(Path(ugly).absolute())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ('"a b.fa"', "a b.fa"),
        ("'it\\'s.fa'", "it's.fa"),
        ("epoch\\=1\\,2.fa", "epoch=1,2.fa"),
        ("'null'", "null"),
        (" x.fa", " x.fa"),
        ("null", None),
        ("${seed}x.fa", "${seed}x.fa"),
    ],
)
def test_what_is_written_for_hydra_keeps_its_meaning(typed: str, expected: str | None) -> None:
    assert given_to_hydra(f"dataset.path={typed}", *FASTA) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("[a.pt,b.pt]", ["a.pt", "b.pt"]),
        ("['a=1.pt','b(1).pt']", ["a=1.pt", "b(1).pt"]),
        ("a.pt,b.pt", "a.pt,b.pt"),
        ("[a].pt", "[a].pt"),
        ("f?[0-9].pt", "f?[0-9].pt"),
    ],
)
def test_several_paths_are_a_list(typed: str, expected: Any) -> None:
    assert given_to_hydra(f"model.checkpoint={typed}", *MODULE) == expected


def test_a_setting_can_be_deleted() -> None:
    with pytest.raises(UserError, match=r"needs dataset\.path"):
        path_of(*FASTA, "dataset.path=x", "~dataset.path")


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed, expected in [
        ("~/x (1).fa", f"{tmp_path}/x (1).fa"),
        (Path("~/x.fa"), f"{tmp_path}/x.fa"),
        ("~no-such-user/x.fa", "~no-such-user/x.fa"),
        ("./~x.fa", "./~x.fa"),
        (["~/a.pt", "b.pt"], [f"{tmp_path}/a.pt", "b.pt"]),
    ]:
        assert plain_paths(typed, "dataset.path") == expected


@settings(max_examples=60, deadline=None)
@given(UGLY)
@example("'")
@example("\\'")
@example("it's \\")
@example("x\\\\")
def test_a_path_survives_the_command_line_and_the_shell(name: str) -> None:
    """Typed, printed in the shell's quotes as part of a command, and typed again."""
    path = f"/w/{name}"
    if "${" in name:
        return  # an interpolation is no name
    if "\\" not in name:  # which may be one of Hydra's escapes
        assert given_to_hydra(f"dataset.path={path}", *FASTA) == path
    word = shlex.split(command_line(["run", *FASTA], {"dataset.path": path}))[-1]
    assert given_to_hydra(word, *FASTA) == path


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
    assert all(map(hydra_private.can_read, as_hydra(shlex.split(pasted))))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["dataset.path="], "dataset.path is empty; give a path"),
        (["dataset.path=null"], "needs dataset.path"),
        (["dataset.path=${oc.env:HOME}/x"], 'let the shell look it up: dataset.path="$HOME/x"'),
        (["dataset.path=${oc.env:HOME,/tmp}/${oc.env:X}"], 'look it up: dataset.path="$HOME/$X"'),
        (["dataset.path=${oc.create:HOME}/x"], "would be looked up elsewhere (in the environment, say), and settings"),
        (["dataset.path=${x}.fa"], "dataset.path: Interpolation key 'x' not found (${...} is the value of another"),
        (["dataset.path=\\${x}.fa"], "a file whose name holds ${ is given by another: ln -s 'NAME' OTHER"),
        (["dataset.path=a", "dataset.pth=~/x"], "dataset.pth is not a setting; did you mean dataset.path?"),
        (["dataset.path=a", "seed=(1"], "seed=(1; expected a whole number"),
        (["dataset.path=a", "seed=1,2"], "seed=1,2 gives several values; expected one"),
        (["dataset.path=a", "x.fa"], "if it belongs to the value before it: 'dataset.path=a x.fa'"),
    ],
)
def test_what_is_no_path(typed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        compose_config([*FASTA, *typed])
    assert said in str(caught.value)


def test_a_name_that_a_store_cannot_keep() -> None:
    with pytest.raises(UserError, match=r"^dataset\.path=.*/\udcff\.fa is not UTF-8, .*; rename the file"):
        path_of(*FASTA, "dataset.path=\udcff.fa")


def test_names_in_yaml_and_python_are_text() -> None:
    for value in (8, 1000.0, True):
        with pytest.raises(UserError, match=r"is read as \w+, not as a path; put it in quotes"):
            from_mapping({"dataset": {"name": "fasta", "path": value}, "model": {"name": "example"}})
    with pytest.raises(UserError, match="holds a null byte"):
        from_mapping({"dataset": {"name": "fasta", "path": "x\0y"}, "model": {"name": "example"}})
