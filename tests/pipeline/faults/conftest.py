"""Runs of a model whose company is bad, in processes of their own, and what they must leave in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pipeline
from pipeline.execution.verify import verify
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import Inputs
from tests.pipeline.faults.commands import Commands, commands_in, preload

TARGET = "model._target_=tests.pipeline.faults.chaos.ChaosNet"
ROOT = Path(__file__).parents[3]
LEFT = {"claim", "plan.json", "files.json", "prepared", "done", "logs", "result.json", "metrics.json"}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """Started from the folder that the tests can be imported from; nothing of them is left afterwards."""
    monkeypatch.chdir(ROOT)
    preload()
    with commands_in(tmp_path / "commands") as commands:
        yield commands


@pytest.fixture(scope="session")
def digest_of(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Digest of an undisturbed run in this process, by its overrides."""
    known: dict[tuple[str, ...], str] = {}

    def digest(*more: str) -> str:
        if more not in known:
            store = tmp_path_factory.mktemp("undisturbed") / "a.zarr"
            assert pipeline.run(inputs.overrides(store, *more)).complete
            known[more] = pipeline.open_store(store).digest()
        return known[more]

    return digest


def check_whole(store: Path | str, digest: str, options: dict[str, str] | None = None) -> None:
    """The store holds the values of an undisturbed run, every byte is as committed, and nothing else lies about."""
    assert pipeline.open_store(store, options=options).digest() == digest
    directory = RunDirectory(store, options)
    findings = verify(directory)
    assert findings.sound, findings.text()
    assert findings.complete
    assert findings.strays == []
    assert {entry.key.partition("/")[0] for entry in directory.run.files()} <= LEFT
