"""One store, one model: whatever changes between two commands, or between two machines, is refused by name."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import pipeline
from pipeline.cli.main import dispatch
from pipeline.config.compose import compose_config
from pipeline.config.schema import Config
from pipeline.config.settings import value_settings
from pipeline.execution.node_check import node_problems
from pipeline.execution.probe import difference
from pipeline.execution.run import work_spec
from pipeline.execution.worker import Worker
from pipeline.messages.errors import UserError
from pipeline.models.hashing import settings_hashes
from pipeline.store.checksums import NO_CHECKSUM, state_checksum
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import LENGTH, random_sequences, write_fasta

NET = """
import importlib
import os

import numpy as np
import torch
from torch import nn

import one_helpers
from one_package import part

STEP = 1.0
by_name = importlib.import_module("one_by_name")


class Net(nn.Module):
    def __init__(self, scale=1.0, table=None, function=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, 3, 5)
        self.settings = {"scale": scale}
        self.table = None if table is None else torch.from_numpy(np.load(table))

    def forward(self, x):
        y = self.activation(self.conv(x)).sum(-1) * self.settings["scale"] * STEP
        if self.table is not None:
            y = y * self.table
        return by_name.rare(x) * one_helpers.finish(y) * float(os.environ.get("ONE_SCALE", "1")) * part.FACTOR


"""
MAKE = """
from one_net import Net
from one_activation import activation


def make(scale=1.0, table=None):
    net = Net(scale, table)
    net.activation = activation
    return net
"""
HELPERS = """
def finish(y):
    from one_late import late  # imported when it is needed

    return late(y).sum(-1, keepdim=True)
"""
FILES = {
    "one_net.py": NET,
    "one_make.py": MAKE,
    "one_activation.py": "SLOPE = 0.0\n\n\ndef activation(y):\n    return y.relu() - SLOPE * (-y).relu()\n",
    "one_helpers.py": HELPERS,
    "one_by_name.py": "def rare(x):\n    return 1 + 2 * (x[:, 0].sum(1, keepdim=True) > 39)\n",
    "one_late.py": "def late(y):\n    return y\n",
    "one_package/__init__.py": "",
    "one_package/part.py": "from . import constants\n\nFACTOR = constants.FACTOR\n",
    "one_package/constants.py": "FACTOR = 1.0\n",
}


def forget() -> None:
    """As in a new process."""
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("one_")]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    np.save(tmp_path / "table.npy", np.ones(1, dtype=np.float32))
    write_fasta(tmp_path / "s.fa", random_sequences())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file that changes within a second keeps its byte code
    yield tmp_path
    forget()


def command(folder: Path, *more: str) -> list[str]:
    return [
        "model=module",
        "model._target_=one_make.make",
        "dataset=fasta",
        f"dataset.path={folder / 's.fa'}",
        "references.n_shuffles=3",
        "store.rows_per_shard=6",
        "cluster=none",
        f"store.path={folder / 'one.zarr'}",
        *more,
    ]


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
        forget()

    return change


def set_environment(folder: Path) -> None:
    os.environ["ONE_SCALE"] = "3"


def patch_a_function(folder: Path) -> None:
    import one_helpers

    finish = one_helpers.finish
    one_helpers.finish = lambda y: 2 * finish(y)


def save_another_table(folder: Path) -> None:
    np.save(folder / "table.npy", np.full(1, 2, dtype=np.float32))


CHANGES: dict[str, tuple[list[str], Callable[[Path], None], list[str], str]] = {
    "an argument of the class": (
        [],
        lambda folder: None,
        ["model.init.scale=100"],
        r"model\.init\.scale is None there and 100 here",
    ),
    "a constant": ([], edit("one_net.py", "STEP = 1.0", "STEP = 2.0"), [], r"model\.code\.one_net is .*one_net\.py\)"),
    "a helper": ([], edit("one_helpers.py", "sum(", "mean("), [], r"model\.code\.one_helpers is .*one_helpers\.py\)"),
    "what a helper imports late": ([], edit("one_late.py", "return y", "return -y"), [], r"one_late\.py\)"),
    "a relative import": ([], edit("one_package/constants.py", "1.0", "2.0"), [], r"one_package/constants\.py\)"),
    "the function that makes it": ([], edit("one_make.py", "scale, table", "2 * scale, table"), [], r"one_make\.py\)"),
    "what a function it holds reads": ([], edit("one_activation.py", "0.0", "0.1"), [], r"one_activation\.py\)"),
    "what is imported by name, for other rows than the probe's": (
        [],
        edit("one_by_name.py", "2 *", "3 *"),
        [],
        r"model\.code\.one_by_name is .*one_by_name\.py\)",
    ),
    "a variable of the environment": ([], set_environment, [], "other values here.*environment variable"),
    "a patched function": (
        [],
        patch_a_function,
        [],
        r"model\.code\.tests\.pipeline\.execution\.test_one_model is None there",
    ),
    "a file named in model.init": (["model.init.table=TABLE"], save_another_table, [], r"model\.init\.table is"),
}


BEGUN, FINISHED = "run.shards=0-0", "run.shards=null"
CASES = [(name, BEGUN) for name in CHANGES] + [(name, FINISHED) for name in ("a helper", "a patched function")]


@pytest.mark.parametrize(("name", "first"), CASES)
def test_a_store_that_was_begun_or_finished_with_another_model_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: str
) -> None:
    settings, change, more, message = CHANGES[name]
    settings = [text.replace("TABLE", str(folder / "table.npy")) for text in settings]
    monkeypatch.setenv("ONE_SCALE", "1")  # taken back at the end
    pipeline.run(command(folder, *settings, first))
    before = {path: path.read_bytes() for path in (folder / "one.zarr").rglob("*") if path.is_file()}
    change(folder)
    with pytest.raises(UserError, match=message):
        pipeline.run(command(folder, *settings, *more))
    assert {path: path.read_bytes() for path in (folder / "one.zarr").rglob("*") if path.is_file()} == before


def test_settings_that_change_are_named_and_files_count_by_their_content(tmp_path: Path) -> None:
    class Held(nn.Module):
        def __init__(self, path: str, time: float) -> None:
            super().__init__()
            self.path, self.time, self.by_object = path, time, {object(): 1}

    for name, text in {"a.txt": "one", "b.txt": "one", "c.txt": "two"}.items():
        (tmp_path / name).write_text(text)
    first = settings_hashes(Held(str(tmp_path / "a.txt"), 1.0))
    assert settings_hashes(Held(str(tmp_path / "b.txt"), 1.0)) == first
    for other, attribute in {("c.txt", 1.0): "path", ("a.txt", 2.0): "time"}.items():
        now = settings_hashes(Held(str(tmp_path / other[0]), other[1]))
        assert [name.rpartition(".")[2] for name in first if now[name] != first[name]] == [attribute]


def test_the_same_model_goes_on(folder: Path) -> None:
    pipeline.run(command(folder, "run.shards=0-0"))
    forget()
    (folder / "one_unrelated.py").write_text("X = 1\n")
    assert pipeline.run(command(folder)).complete
    assert pipeline.run(command(folder)).rows_computed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (CHANGES[name][1], CHANGES[name][3])
        for name in ["a helper", "a variable of the environment", "a patched function"]
    ],
)
def test_a_worker_that_would_compute_something_else_computes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], message: str
) -> None:
    monkeypatch.setenv("ONE_SCALE", "1")
    summary = pipeline.run(command(folder, "run.shards=0-0"))
    directory = RunDirectory(summary.store)
    plan = directory.read_plan()
    assert plan is not None
    work = work_spec(compose_config(command(folder)), plan, directory)
    assert node_problems(work) == []
    change(folder)
    outcome = Worker(work).process(plan.shard(1))
    assert outcome.fatal
    assert re.search(message, outcome.error), outcome.error
    assert directory.done_indices() == [0]


def test_a_node_with_other_source_files_of_dlshap_is_named(folder: Path) -> None:
    pipeline.run(command(folder, "run.shards=0-0"))
    directory = RunDirectory(folder / "one.zarr")
    plan = directory.read_plan()
    assert plan is not None
    other = replace(plan, fingerprint={**plan.fingerprint, "machine.code": "0" * 64})
    work = replace(work_spec(compose_config(command(folder)), plan, directory), plan=other)
    assert node_problems(work) == [
        "its dlshap has other source files than the one that planned the run, of the same version"
    ]


TARGET = "model._target_=one_make.make"


def verified(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    code = dispatch(["verify", str(folder / "one.zarr"), "--json", "--recompute", "5", *more])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "more",
    [[], ["engine.reverse_complement=average"], ["store.precision_bits=8"], ["engine.dtype=float64"]],
)
def test_rows_are_computed_again_and_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    monkeypatch.setenv("ONE_SCALE", "1")
    pipeline.run(command(folder, *more))
    code, found = verified(folder, capsys, TARGET)
    assert (code, found["sound"], found["n_recomputed"], found["notes"]) == (0, True, 5, [])
    assert 0 <= found["largest_error"] < (2**-8 if "store.precision_bits=8" in more else 1e-5)
    monkeypatch.setenv("ONE_SCALE", "3")
    code, found = verified(folder, capsys, TARGET)
    assert (code, found["sound"], len(found["problems"])) == (1, False, 10)
    assert re.search(r"differs by 2\.0e\+00 of its largest value .* row \d+, 's\d+'", found["problems"][0]["what"])
    monkeypatch.setenv("ONE_SCALE", "1")
    edit("one_net.py", "STEP = 1.0", "STEP = 1.00")(folder)
    code, found = verified(folder, capsys, TARGET)
    assert (code, found["sound"]) == (0, True)
    assert "the model here is not the one of the run: model.code.one_net is" in found["notes"][0]


def test_rows_without_numbers_are_computed_again_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit("one_net.py", "* STEP", "/ (x[:, 0].sum(1) > 0)[:, None]")(folder)
    write_fasta(folder / "s.fa", [*random_sequences(), "C" * LENGTH])
    pipeline.run(command(folder))
    assert not np.isfinite(pipeline.open_store(folder / "one.zarr")["prediction"][22]).any()
    code, found = verified(folder, capsys, "--recompute", "23", TARGET)
    assert (code, found["problems"]) == (0, [])


def test_a_store_does_not_decide_what_code_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.run(command(folder))
    code, found = verified(folder, capsys)
    assert code == 2
    assert f"one.zarr names what runs code or is connected to: {TARGET}" in found["error"]
    assert f"`dlshap verify {folder}/one.zarr --recompute 5 {TARGET}`" in found["error"]
    path = folder / "one.zarr" / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"]["config"]["model"]["init"] = {"table": [{"_target_": "os.system", "command": "false"}]}
    root["attributes"]["checksum"] = NO_CHECKSUM
    path.write_bytes(state_checksum(json.dumps(root)))
    code, found = verified(folder, capsys, TARGET)
    assert code == 2
    assert (
        "names what runs code or is connected to: model.init.table=[{_target_:os.system,command:'false'}]"
        in found["error"]
    )
    code, found = verified(folder, capsys, "--trust-config")
    assert code == 2
    assert "model.init.table.0._target_=os.system is of Python's own library and is not called" in found["error"]
    assert dispatch(["verify", str(folder / "one.zarr"), "model.init.scale=1"]) == 2
    assert "settings of a model are for --recompute N" in capsys.readouterr().err


def test_devices_may_be_mixed_within_a_tolerance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = command(folder, "cluster.mixed_devices=allow")
    monkeypatch.setenv("ONE_SCALE", "1")
    pipeline.run([*mixed, "run.shards=0-0"])
    monkeypatch.setenv("ONE_SCALE", "1.0001")
    pipeline.run([*mixed, "run.shards=1-1"])
    monkeypatch.setenv("ONE_SCALE", "1.01")
    with pytest.raises(UserError, match=r"differs by 1\.0e-02 of the largest value"):
        pipeline.run(mixed)


def test_workers_on_a_kind_of_device_that_the_driver_lacks_agree_with_the_first_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONE_SCALE", "1")
    pipeline.run(command(folder, "run.shards=0-0"))
    directory = RunDirectory(folder / "one.zarr")
    plan = directory.read_plan()
    assert plan is not None
    elsewhere = replace(plan, probe={**plan.probe, "device": "a driver without a GPU"})
    work = replace(work_spec(compose_config(command(folder)), plan, directory), plan=elsewhere)
    assert not Worker(work).process(plan.shard(1)).error
    assert not Worker(work).process(plan.shard(2)).error
    monkeypatch.setenv("ONE_SCALE", "1.00001")  # within the tolerance between kinds, and not the first one's bits
    outcome = Worker(work).process(plan.shard(3))
    assert outcome.fatal
    assert "other last bits here" in outcome.error


def test_a_store_of_0_1_is_refused_with_the_reason(folder: Path) -> None:
    pipeline.run(command(folder))
    path = folder / "one.zarr" / "zarr.json"
    root = json.loads(path.read_text())
    del root["attributes"]["fingerprint"]["machine.code"]
    path.write_text(json.dumps(root))
    with pytest.raises(UserError, match=r"was made by dlshap 0\.1, whose values this version does not continue"):
        pipeline.run(command(folder))


def test_every_setting_without_a_mark_is_in_the_fingerprint(folder: Path) -> None:
    pipeline.run(command(folder))
    stored = pipeline.open_store(folder / "one.zarr").attrs["fingerprint"]
    assert {f"settings.{key}" for key in value_settings(Config())} <= set(stored)


@pytest.mark.parametrize(
    ("dtype", "deterministic", "error", "is_refused"),
    [
        ("float32", True, 1e-7, True),
        ("float32", False, 1e-7, False),
        ("float32", False, 1e-2, True),
        ("float64", False, 1e-4, True),
        ("bfloat16", False, 0.05, False),
        ("float32", False, np.nan, True),
    ],
)
def test_how_far_probes_may_differ(
    folder: Path, dtype: str, deterministic: bool, error: float, is_refused: bool
) -> None:
    pipeline.run(command(folder, "run.shards=0-0"))
    plan = RunDirectory(folder / "one.zarr").read_plan()
    assert plan is not None
    plan = replace(plan, dtype=dtype, deterministic=deterministic)
    values = {name: list(np.array(array) * (1 + error)) for name, array in plan.probe["values"].items()}
    assert len(values["hypothetical"]) == 2 * 4 * LENGTH
    here = {**plan.probe, "sha256": "another", "values": values}
    assert (difference(plan.probe, here, plan) is not None) == is_refused
