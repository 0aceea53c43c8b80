"""A library call is a guest: whatever its process has set decides nothing, and all of it is set as before."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir, version
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

import pipeline
from pipeline.messages.errors import UserError
from tests.core.passes.test_host import HOSTS, set_and_back
from tests.core.passes.test_host import state as state_of_core
from tests.pipeline.conftest import Inputs, values

OWN = """
import os, sys, torch
from pipeline.models.example import ExampleNet

sys.path.insert(0, "/nowhere")
os.chdir(os.path.dirname(os.path.abspath(__file__)) + "/elsewhere")

class Net(ExampleNet):
    pass
"""


def state() -> dict[str, Any]:
    """All that a call might change."""
    return {
        **state_of_core(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "finders": list(sys.meta_path),
        "folder": os.getcwd(),
        "outputs": [(os.fstat(fd)[1:3], stream) for fd, stream in ((1, sys.stdout), (2, sys.stderr))],
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "hooks": (sys.excepthook, threading.excepthook, warnings.showwarning),
        "loggers": [logging.getLogger(name).level for name in (None, "ray", "ray.data", "zarr", "hydra")],
        "kernels": (torch.backends.cudnn.benchmark, torch.backends.mkldnn.enabled),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "resolvers": dict(BaseContainer._resolvers),
        "hydra": (GlobalHydra.instance().hydra, version.getbase()),
        "schemas": list(ConfigStore.instance().repo),
    }


def other_kernels() -> Any:
    return set_and_back(lambda value: setattr(torch.backends.mkldnn, "enabled", value), False, True)


@pytest.fixture
def own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


@pytest.mark.usefixtures("own_variables")
@pytest.mark.parametrize(
    "name", ["default dtype", "default device", "inference", "autocast", "numpy raises", "kernels"]
)
def test_the_caller_decides_no_value_and_is_left_as_it_was(
    name: str, inputs: Inputs, finished: Path, tmp_path: Path
) -> None:
    with {**HOSTS, "kernels": other_kernels}[name]():
        before = state()
        summary = pipeline.run(inputs.overrides(tmp_path / "a.zarr"))
        after = state()
    assert after == before
    assert summary.complete
    assert values(tmp_path / "a.zarr") == values(finished)


def interrupt(*args: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("own_variables")
def test_the_caller_is_left_as_it_was_by_an_interrupt(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.execution.ensemble.attribute", interrupt)
    before = state()
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(inputs.overrides(tmp_path / "a.zarr"))
    assert state() == before


def test_what_the_users_own_module_changes_is_put_back(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "guest_net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = state()
    pipeline.run(inputs.overrides(tmp_path / "a.zarr", "model._target_=guest_net.Net"))
    assert state() == before
    assert (tmp_path / "a.zarr").is_dir()


def test_memory_is_kept_by_workers_alone(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep() -> None:
        pytest.fail("the allocator of the caller was set otherwise")

    monkeypatch.setattr("pipeline.execution.host.keep_freed_memory", keep)
    for module in ("pipeline.execution.executors.none", "pipeline.execution.worker", "pipeline.execution.run"):
        monkeypatch.setattr(f"{module}.keep_freed_memory", keep, raising=False)
    assert pipeline.run(inputs.overrides(tmp_path / "a.zarr")).complete


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """A Hydra application of the caller's, which is under way."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "main.yaml").write_text("defaults: [schema, _self_]\nname: ${now:x}\n")
    store, resolvers = ConfigStore.instance(), dict(BaseContainer._resolvers)
    store.store(name="schema", node={"name": "", "theirs": 1})
    with initialize_config_dir(str(folder), version_base=None):
        OmegaConf.register_new_resolver("now", lambda text: f"now it is {text}", replace=True)
        yield lambda: OmegaConf.to_container(compose("main"), resolve=True)
    store.repo.pop("schema.yaml")
    BaseContainer._resolvers.clear()
    BaseContainer._resolvers.update(resolvers)


def test_the_callers_hydra_goes_on(application: Callable[[], Any], inputs: Inputs, tmp_path: Path) -> None:
    expected, before = application(), state()
    with pytest.raises(UserError, match="no_such_key"):
        pipeline.run(["no_such_key=1"])
    assert pipeline.run(inputs.overrides(tmp_path / "a.zarr")).complete
    assert application() == expected == {"name": "now it is x", "theirs": 1}
    assert state() == before


def test_runs_of_two_threads_leave_the_caller_as_it_was(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    before = state()
    stores = [tmp_path / f"{i}.zarr" for i in range(2)]
    threads = [threading.Thread(target=pipeline.run, args=(inputs.overrides(store),)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = state()
    assert [values(store) for store in stores] == [values(finished)] * 2
    assert after == before


SHADOWS = ("conf/__init__.py", "pipeline/__init__.py", "pipeline.py", "dlshap_core.py", "zarr.py", "ray.py", "torch.py")
COMMAND = "import sys; del sys.path[0]; from pipeline.__main__ import main; main()"  # as the console script


def test_a_command_is_not_disturbed_by_files_named_as_its_modules(inputs: Inputs, tmp_path: Path) -> None:
    for name in SHADOWS:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('{name} of the working folder was imported')\n")
    command = [sys.executable, "-c", COMMAND, "run", *inputs.overrides("a.zarr")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "22 rows, complete" in done.stdout
