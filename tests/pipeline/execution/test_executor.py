"""An executor is one file: `cluster=` finds it by its name, in the package or among the entry points."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.compose import compose_config
from pipeline.config.schema import Config
from pipeline.execution.executor import executor_of
from pipeline.execution.run import run_config
from tests.pipeline.conftest import Inputs, chosen, values

BACKWARDS = """
from dataclasses import dataclass

from pipeline.execution.executor import ExecutorConfig
from pipeline.execution.executors import none


@dataclass
class Backwards(ExecutorConfig):
    name: str = "backwards"

    def executor(self, engine):
        return Executor(engine)


class Executor(none.InProcessExecutor):
    def work(self, spec, shards):
        print("backwards")
        return super().work(spec, shards[::-1])
"""


@pytest.mark.parametrize("name", ["none", "local", "address"])
def test_executors_are_found_by_name(name: str) -> None:
    assert type(executor_of(Config(cluster=chosen("cluster", name)))).__module__.endswith(f"executors.{name}")


def test_another_package_brings_one(
    inputs: Inputs,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lab_executor.py").write_text(BACKWARDS)
    info = tmp_path / "lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dlshap.cluster]\nbackwards = lab_executor\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_config(compose_config([*inputs.overrides(tmp_path / "a.zarr"), "cluster=backwards"])).complete
    assert capsys.readouterr().out == "backwards\n"
    assert values(tmp_path / "a.zarr") == values(finished)
