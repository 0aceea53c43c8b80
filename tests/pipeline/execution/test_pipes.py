"""A pipe among the files of a run is refused before anything is read, in every command that would read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.compose import compose_config
from pipeline.config.schema import Config
from pipeline.execution.audit import audit_config
from pipeline.execution.cost_estimate import estimate_config
from pipeline.execution.pipes import refuse_pipes
from pipeline.execution.recompute import recompute
from pipeline.execution.run import run_config
from pipeline.messages.errors import UserError

MODULE = ["model=module", "model._target_=a.B"]
COMMANDS: dict[str, Callable[[Config], Any]] = {
    "run": run_config,
    "plan": estimate_config,
    "audit": audit_config,
}


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "a pipe")
    return tmp_path / "a pipe"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_pipe(tmp_path: Path, pipe: Path, command: str) -> None:
    store = tmp_path / "out.zarr"
    config = compose_config(["dataset=fasta", f"dataset.path={pipe}", f"store.path={store}", "cluster=none"])
    with pytest.raises(UserError, match=r"^dataset\.path=.*a pipe is a pipe, .* write a file first, `COMMAND > FILE`"):
        COMMANDS[command](config)
    assert not store.exists()


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("dataset.genome", ["dataset=tiles", "dataset.length=8", "dataset.genome={}"]),
        ("dataset.loci", ["dataset=loci", "dataset.length=8", "dataset.genome=g.fa", "dataset.loci={}"]),
        ("model.checkpoint", [*MODULE, "model.checkpoint={}"]),
        ("model.checkpoint", [*MODULE, "model.checkpoint=[a.pt,'{}']"]),
        ("model.target_names", ["model.target_names={}"]),
        ("references.path", ["references=array", "references.path={}"]),
    ],
)
def test_every_file_of_a_run_is_looked_at(pipe: Path, key: str, given: list[str]) -> None:
    with pytest.raises(UserError, match=rf"^{key}=.*a pipe is a pipe, "):
        refuse_pipes(compose_config([each.format(pipe) for each in given]))


def test_a_model_to_recompute_by_is_no_pipe(pipe: Path) -> None:
    model = compose_config([*MODULE, f"model.checkpoint={pipe}"]).model
    nothing: Any = None
    with pytest.raises(UserError, match=r"^model\.checkpoint=.*a pipe is a pipe, "):
        recompute(nothing, model, 1, nothing)


def test_what_a_shell_makes_of_a_command(pipe: Path) -> None:
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # as <(zcat x) is
    try:
        for name in (f"/dev/fd/{descriptor}", f"/proc/self/fd/{descriptor}"):
            with pytest.raises(UserError, match=rf"^dataset\.path={name} is a pipe, "):
                refuse_pipes(compose_config(["dataset=fasta", f"dataset.path={name}"]))
    finally:
        os.close(descriptor)


def test_a_file_that_one_process_alone_has_by_that_name(tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_text(">a\nACGT\n")
    with (tmp_path / "x.fa").open() as file, pytest.raises(UserError, match=f"'?dataset.path={tmp_path}/x.fa'?$"):
        refuse_pipes(compose_config(["dataset=fasta", f"dataset.path=/dev/fd/{file.fileno()}"]))


def test_what_is_no_pipe_is_left_to_whoever_reads_it(tmp_path: Path, pipe: Path) -> None:
    given = ["dataset=fasta", f"dataset.path={tmp_path}/not-there.fa", f"store.path={pipe}"]
    refuse_pipes(compose_config(given))
