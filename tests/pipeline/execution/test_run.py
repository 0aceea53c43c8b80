"""Whole runs: the same bits however the work is done, stopped and taken up again, and nothing left of bad ones."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import pipeline
from pipeline.cli.main import dispatch
from pipeline.execution.device import Machine
from pipeline.execution.executors.none import InProcessExecutor
from pipeline.execution.preflight import Preflight, WorkWithModel
from pipeline.inputs.ingest import ingest
from pipeline.messages.errors import RunError, UserError
from pipeline.store.attributes import mark_incomplete
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import COMPUTED, shard_key
from tests.pipeline.conftest import LENGTH, N_ROWS, Inputs, random_sequences, values, write_fasta

N_SHARDS = 4


def copy_of(store: Path, place: Path) -> Path:
    shutil.copytree(f"{store}.run", f"{place}.run")
    return Path(shutil.copytree(store, place))


def unfinish(store: Path) -> RunDirectory:
    """As it is before it is completed."""
    mark_incomplete(RunDirectory(store).store)
    return RunDirectory(store)


def files_of_shard(store: Path, index: int) -> list[Path]:
    return [store / shard_key(name, index) for name in COMPUTED]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
@pytest.mark.parametrize("actors", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_actors_give_the_same_bits_as_this_process(inputs: Inputs, finished: Path, tmp_path: Path, actors: int) -> None:
    summary = pipeline.run(inputs.overrides(tmp_path / "a.zarr", "cluster=local", f"cluster.actors={actors}"))
    assert (summary.complete, summary.rows_computed) == (True, N_ROWS)
    assert values(tmp_path / "a.zarr") == values(finished)
    workers = {record.worker for record in map(RunDirectory(tmp_path / "a.zarr").read_record, range(N_SHARDS))}
    assert 1 <= len(workers) <= actors


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_a_cluster_elsewhere_says_what_it_computes_on(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    overrides = inputs.overrides(tmp_path / "a.zarr", "cluster=address", "cluster.actors=1")
    assert pipeline.run(overrides).complete
    assert values(tmp_path / "a.zarr") == values(finished)
    if not torch.cuda.is_available():
        with pytest.raises(
            UserError, match=r"engine\.device=cuda, but no node of the cluster has a GPU; it has 1 node"
        ):
            pipeline.run([*overrides, "engine.device=cuda"])


def test_times_are_those_of_this_command(inputs: Inputs, tmp_path: Path) -> None:
    started = time.monotonic()
    part = pipeline.run(inputs.overrides(tmp_path / "a.zarr", "run.shards=0-1"))
    rest = pipeline.run(inputs.overrides(tmp_path / "a.zarr"))
    assert 0 < part.seconds < part.seconds + rest.seconds < time.monotonic() - started
    assert part.rows_per_second > part.rows_computed / part.seconds, "while attributing: without the start"


def test_a_plan_or_a_store_that_is_gone_is_said(inputs: Inputs, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    assert not pipeline.run(inputs.overrides(store, "run.shards=0")).complete
    plan = Path(f"{store}.run/plan.json").rename(tmp_path / "plan.json")
    with pytest.raises(UserError, match="is not complete and its plan is gone; remove it"):
        pipeline.run(inputs.overrides(store))
    plan.rename(f"{store}.run/plan.json")
    shutil.rmtree(store)
    with pytest.raises(UserError, match="exists without its store; remove it to begin again"):
        pipeline.run(inputs.overrides(store))


def test_what_another_command_has_done_meanwhile_is_not_counted_as_its_own(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dlshap")
    store = tmp_path / "a.zarr"
    assert pipeline.run(inputs.overrides(store, "run.shards=0-1")).rows_computed > 0
    monkeypatch.setattr("pipeline.execution.run.recorded_shards", lambda *_: np.zeros(N_SHARDS, dtype=bool))
    with RunDirectory(store).at_work():  # the other one, which began before
        summary = pipeline.run(inputs.overrides(store, "run.shards=0-1"))
    assert (summary.rows_computed, summary.shards_done) == (0, 2)
    assert "1 other command at work on this store; this one begins with other shards" in caplog.text
    assert "2 shards already done when their turn came, by another command perhaps" in caplog.text
    log = max(Path(f"{store}.run/logs").iterdir(), key=lambda path: path.stat().st_mtime_ns).read_text()
    assert [json.loads(line)["shard"] for line in log.splitlines() if '"found"' in line] == [1, 0], "it comes down"


def test_a_finished_store_is_left_alone(inputs: Inputs, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    summary = pipeline.run(inputs.overrides(finished))
    assert (summary.complete, summary.rows_computed, summary.rows) == (True, 0, N_ROWS)
    assert "nothing to do" in summary.text()
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_finished_store_that_lost_data_is_not_called_finished(
    inputs: Inputs, finished: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = Path(shutil.copytree(finished, tmp_path / "a.zarr"))
    damage(next(path for path in (store / "attribution").rglob("*") if path.is_file() and path.name != "zarr.json"))
    with pytest.raises(
        RunError, match=r"was complete, but 1 of its files are gone or not what they were, attribution/c\."
    ):
        pipeline.run(inputs.overrides(store))


def test_a_finished_store_needs_nothing_beside_it(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(finished, tmp_path / "a.zarr"))
    assert pipeline.run(inputs.overrides(store)).rows_computed == 0
    assert not Path(f"{store}.run").exists()
    with pytest.raises(UserError, match=r"belongs to another run: settings\.seed is 0 there and 9 here"):
        pipeline.run(inputs.overrides(store, "seed=9"))


DAMAGE = ["kept", "record gone", "files gone", "record and files gone", "file cut short"]


@settings(max_examples=6)
@given(damage=st.lists(st.sampled_from(DAMAGE), min_size=N_SHARDS, max_size=N_SHARDS))
def test_what_is_missing_is_computed_again_and_nothing_else(inputs: Inputs, finished: Path, damage: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = copy_of(finished, Path(folder) / "a.zarr")
        directory = unfinish(store)
        for index, what in enumerate(damage):
            if "record" in what:
                directory.revoke(index)
            if "files gone" in what:
                for path in files_of_shard(store, index):
                    path.unlink()
            if what == "file cut short":
                path = files_of_shard(store, index)[0]
                path.write_bytes(path.read_bytes()[:-1])
        kept = {index: directory.read_record(index) for index, what in enumerate(damage) if what == "kept"}
        summary = pipeline.run(inputs.overrides(store))
        rows_of = [len(range(N_ROWS)[index * 6 : index * 6 + 6]) for index in range(N_SHARDS)]
        assert summary.rows_computed == sum(n for index, n in enumerate(rows_of) if index not in kept)
        assert all(directory.read_record(index) == record for index, record in kept.items())
        assert values(store) == values(finished)


STEPS: list[tuple[str, str]] = [
    ("pipeline.store.template.StagedStore.append", "while rows are read"),
    ("pipeline.store.template.StagedStore.finish", "before the store is laid out"),
    ("pipeline.store.run_directory.RunDirectory.publish", "before the plan"),
    ("pipeline.store.run_directory.RunDirectory.mark_prepared", "after the store has moved to its place"),
    ("pipeline.execution.shard.write_shard", "before the first shard is written"),
    ("pipeline.execution.shard.RunDirectory.commit", "before the first shard is committed"),
    ("pipeline.execution.run.finalize", "before the store is completed"),
    ("pipeline.store.attributes.state_checksum", "in the middle of completing"),
    ("pipeline.store.run_directory.RunDirectory.write_result", "after the store is complete"),
]


class PulledPlug(BaseException):
    """What no handler of errors sees."""


@pytest.mark.parametrize("step", [step for step, _ in STEPS], ids=[text for _, text in STEPS])
def test_a_crash_between_any_two_steps_is_resumed_by_the_same_command(
    inputs: Inputs, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def pull(*_: object, **__: object) -> None:
        raise PulledPlug

    store = tmp_path / "a.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(step, pull)
        with pytest.raises(PulledPlug):
            pipeline.run(inputs.overrides(store))
    if store.exists() and "write_result" not in step:
        with pytest.raises(UserError, match=r"is not complete: \d of 4 shards are done"):
            pipeline.open_store(store)
        assert not pipeline.open_store(store, allow_incomplete=True).complete
    assert pipeline.run(inputs.overrides(store)).complete
    assert values(store) == values(finished)


def test_another_run_is_refused_and_every_difference_named(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    store = copy_of(finished, tmp_path / "a.zarr")
    unfinish(store)
    other = write_fasta(tmp_path / "other.fa", random_sequences(seed=1))
    changes = {
        "seed=5": "settings.seed is 0 there and 5 here",
        "references.n_shuffles=4": "settings.references.n_shuffles is 3 there and 4 here",
        "engine.dtype=float64": "settings.engine.dtype is float32 there and float64 here",
        "engine.batch_size=6": "settings.engine.batch_size is 192 there and 6 here",
        "store.rows_per_shard=5": "settings.store.rows_per_shard is 6 there and 5 here",
        f"dataset.path={other}": "input.sha256 is ",
    }
    for change, phrase in changes.items():
        with pytest.raises(UserError, match="belongs to another run: .*" + phrase):
            pipeline.run(inputs.overrides(store, change))
    with pytest.raises(UserError, match=".*; ".join(list(changes.values())[1::-1])):
        pipeline.run(inputs.overrides(store, *list(changes)[:2]))
    assert pipeline.run(inputs.overrides(store, "engine.warning_threshold=0.1")).complete


def test_an_input_whose_files_are_the_same_is_not_read_again(
    inputs: Inputs, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = Path(shutil.copy(inputs.sequences, tmp_path / "again.fa"))
    overrides = inputs.overrides(tmp_path / "a.zarr", f"dataset.path={sequences}")
    pipeline.run([*overrides, "run.shards=0-1"])
    n_passes = []
    monkeypatch.setattr("pipeline.execution.agree.ingest", lambda *args: n_passes.append(1) or ingest(*args))
    pipeline.run([*overrides, "run.shards=2"])
    assert n_passes == []
    os.utime(sequences, ns=(0, 0))
    assert pipeline.run(overrides).complete
    assert n_passes == [1]
    assert values(tmp_path / "a.zarr") == values(finished)
    write_fasta(sequences, random_sequences(seed=1))
    with pytest.raises(UserError, match=r"belongs to another run: input\.sha256 is "):
        pipeline.run(overrides)


def test_parts_of_a_job_array_fill_one_store(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    first = pipeline.run(inputs.overrides(store, "run.shards=2-3"))
    assert (first.complete, first.shards_done, first.rows_computed) == (False, 2, 10)
    assert "2 of 4 shards are done" in first.text()
    assert json.loads(RunDirectory(store).run.read("result.json"))["complete"] is False
    partial = pipeline.open_store(store, allow_incomplete=True)
    assert "not complete, 2 shards done" in repr(partial)
    assert list(np.isnan(partial.prediction[:, 0])) == [row < 12 for row in range(N_ROWS)]
    assert pipeline.run(inputs.overrides(store, "run.shards=0-1")).complete
    assert values(store) == values(finished)


BAD_ROWS: list[tuple[str, Callable[[list[str]], object], list[str]]] = [
    ("unequal lengths", lambda rows: rows.__setitem__(3, rows[3][:-2]), ["row 3 's3' has 38 bases where the first"]),
    ("N alone", lambda rows: rows.__setitem__(3, "N" * LENGTH), ["row 3 's3': 0% of its bases are known"]),
    ("mostly N", lambda rows: rows.__setitem__(3, "N" * 21 + "A" * 19), ["row 3 's3': 48% of its bases are known"]),
    ("protein", lambda rows: rows.__setitem__(3, "MKVLEEL"), ["record 3 's3'", "line 8", "protein"]),
]


@pytest.mark.parametrize(("change", "parts"), [case[1:] for case in BAD_ROWS], ids=[case[0] for case in BAD_ROWS])
def test_bad_rows_stop_the_run_or_are_left_out(
    inputs: Inputs, finished: Path, tmp_path: Path, change: Callable[[list[str]], object], parts: list[str]
) -> None:
    rows = random_sequences()
    change(rows)
    dataset = f"dataset.path={write_fasta(tmp_path / 'bad.fa', rows)}"
    with pytest.raises(
        UserError, match=r"1 of 22 rows cannot be used: .*dataset\.on_bad=skip leaves them out"
    ) as caught:
        pipeline.run(inputs.overrides(tmp_path / "a.zarr", dataset))
    assert all(part in str(caught.value) for part in parts)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.fa"]

    assert pipeline.run(inputs.overrides(tmp_path / "a.zarr", dataset, "dataset.on_bad=skip")).rows == N_ROWS - 1
    store = pipeline.open_store(tmp_path / "a.zarr")
    kept = [row for row in range(N_ROWS) if row != 3]
    assert list(store.rows["source_row"]) == kept
    assert store.attrs["dataset"]["n_left_out"] == 1
    whole = pipeline.open_store(finished)
    np.testing.assert_allclose(store.hypothetical[:], np.asarray(whole.hypothetical[:])[kept], atol=1e-7)


def test_the_first_of_many_bad_rows_is_named(inputs: Inputs, tmp_path: Path) -> None:
    dataset = f"dataset.path={write_fasta(tmp_path / 'bad.fa', ['N' * 9] * 50)}"
    for skip in ([], ["dataset.on_bad=skip"]):
        with pytest.raises(UserError, match=r"50 of 50 rows cannot be used: row 0 's0'[^;]*; and 49 more"):
            pipeline.run(inputs.overrides(tmp_path / "a.zarr", dataset, *skip))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.fa"]


@pytest.mark.parametrize("neighbour", [False, True])
def test_folders_made_for_a_store_that_is_not_go_again(inputs: Inputs, tmp_path: Path, neighbour: bool) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "kept").mkdir()
    if neighbour:
        (tmp_path / "there" / "new").mkdir()
        (tmp_path / "there" / "new" / "file").write_text("")
    store = tmp_path / "there" / "new" / "deeper" / "a.zarr"
    with pytest.raises(UserError):
        pipeline.run(inputs.overrides(store, "dataset.length=41"))
    assert not store.parent.exists()
    assert {path.name for path in (tmp_path / "there").iterdir()} == ({"kept", "new"} if neighbour else {"kept"})


WRONG: list[tuple[list[str], str]] = [
    (["engine.targets=[0,4]"], r"engine.targets=\[0, 4\]: .*"),
    (["engine.device=cuda"], "engine.device=cuda, but torch finds no GPU here"),
    (["dataset.length=41"], "row 0 's0' has 40 bases where dataset.length=41"),
    (["dataset.path=nothing.fa"], "dataset.path.*nothing.fa"),
    (["model.checkpoint=nothing.pt"], "model.checkpoint.*nothing.pt"),
    (["model._target_=torch.nn.Nothing"], "model._target_.*torch.nn.Nothing"),
    (["store.path=/proc/a.zarr"], "cannot write to /proc/a.zarr.run"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[overrides[0] for overrides, _ in WRONG])
def test_what_a_new_user_may_get_wrong_is_one_line_and_leaves_nothing(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        pipeline.run(inputs.overrides(tmp_path / "a.zarr", *overrides))
    assert list(tmp_path.iterdir()) == []


def test_what_lies_at_the_path_of_the_store_is_not_touched(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="mine exists and is not a dlshap store; give another path"):
        pipeline.run(inputs.overrides(tmp_path / "mine"))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_all_targets_are_counted_by_trying(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    assert pipeline.run(inputs.overrides(tmp_path / "a.zarr", "engine.targets=all")).complete
    store = pipeline.open_store(tmp_path / "a.zarr")
    assert store.attrs["plan"]["targets"] == [0]
    np.testing.assert_array_equal(store.hypothetical[:], pipeline.open_store(finished).hypothetical[:])


CLASSES = """
import torch
from torch import nn

class Sums(nn.Module):
    def __init__(self, refuse_rows=0, shape="targets"):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.refuse_rows, self.shape = refuse_rows, shape

    def forward(self, x):
        if x.shape[0] == self.refuse_rows:
            raise RuntimeError("no room\\nfor these")
        if self.shape == "positions":
            return self.layer(x.transpose(1, 2))
        return torch.relu(self.layer(x.mean(dim=-1)))
"""


@pytest.fixture
def own_model(in_folder: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for a class in the working directory."""
    (in_folder / "lab_models.py").write_text(CLASSES)
    save_file({"layer.weight": torch.ones(2, 4), "layer.bias": torch.zeros(2)}, in_folder / "sums.safetensors")
    monkeypatch.delitem(sys.modules, "lab_models", raising=False)
    kept = [override for override in inputs.overrides("a.zarr") if not override.startswith("model")]
    return [*kept, "model=module", "model._target_=lab_models.Sums", "model.checkpoint=sums.safetensors"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
@pytest.mark.parametrize("cluster", ["none", pytest.param("local", marks=pytest.mark.slow)])
def test_a_failing_shard_is_named_and_the_others_stay(
    own_model: list[str], in_folder: Path, cluster: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster_overrides = ["cluster=none"] if cluster == "none" else ["cluster=local", "cluster.actors=1"]
    kept = [override for override in own_model if override != "cluster=none"]
    command = ["run", *kept, *cluster_overrides, "model.init.refuse_rows=12"]  # the pairs of the last shard
    assert dispatch(command) == 1
    err = capfd.readouterr().err.splitlines()[-1]
    assert err.startswith(
        "dlshap: error: 1 of 4 shards failed, 3 are done, and the same command tries the others again: "
    )
    assert "shard 3 (rows 18 to 21), sequences 's18', 's19', 's20' and 1 more, failed: RuntimeError: no room for" in err
    assert "(each of its sequences alone passes); in full in " in err
    directory = RunDirectory(in_folder / "a.zarr")
    assert directory.done_indices() == [0, 1, 2]
    assert "Traceback" in Path(err.rpartition(" ")[2]).read_text()
    assert not pipeline.open_store(in_folder / "a.zarr", allow_incomplete=True).complete


def test_outputs_of_the_wrong_shape_are_found_before_anything_is_written(
    own_model: list[str], in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["run", *own_model, "model.init.shape=positions"]) == 2
    err = capfd.readouterr().err
    assert err.startswith(
        "dlshap: error: the model returns a single tensor of shape (N, 40, 2); say which of it is explained"
    )
    assert err.count("\n") == 1
    assert {path.name for path in in_folder.iterdir()} <= {"lab_models.py", "sums.safetensors", "__pycache__"}


def test_a_driver_killed_while_preparing_does_not_block_the_next(
    inputs: Inputs, finished: Path, tmp_path: Path
) -> None:
    staged = tmp_path / "a.zarr.run" / "staged.zarr"
    staged.mkdir(parents=True)
    (staged / "half").write_text("")
    (staged.parent / "claim").write_text("process 1 on gone\n")
    assert pipeline.run(inputs.overrides(tmp_path / "a.zarr")).complete
    assert values(tmp_path / "a.zarr") == values(finished)
    assert not staged.exists()


@pytest.mark.parametrize("shards", ["4", "0-4", "7-9"])
def test_shards_that_there_are_not_leave_nothing_behind(
    inputs: Inputs, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str
) -> None:
    """Found when the input has been read, before references are taken from it or a store is laid out."""
    store = tmp_path / "new" / "a.zarr"
    said = rf"run\.shards={shards}, but there are 4 shards, 0-3"
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipeline.execution.prepare.resolve_references", lambda *_: pytest.fail("references were resolved")
        )
        with pytest.raises(UserError, match=said):
            pipeline.run(inputs.overrides(store, f"run.shards={shards}"))
    assert list(tmp_path.iterdir()) == []
    assert not pipeline.run(inputs.overrides(store, "run.shards=3")).complete
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=said):
        pipeline.run(inputs.overrides(store, f"run.shards={shards}"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, "an unfinished one"
    with pytest.raises(UserError, match=said):
        pipeline.run(inputs.overrides(finished, f"run.shards={shards}"))


def test_the_model_is_tried_where_the_device_is(
    inputs: Inputs, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster whose GPUs this process does not have: what it says there decides here."""
    tried: list[WorkWithModel[Preflight]] = []

    def elsewhere(work: WorkWithModel[Preflight]) -> Preflight:
        tried.append(work)
        return replace(pickle.loads(pickle.dumps(work))(), pairs_that_fit=6)

    machine = replace(Machine.here("cpu"), elsewhere=elsewhere)
    monkeypatch.setattr(InProcessExecutor, "machine", lambda self: machine)
    overrides = inputs.overrides(tmp_path / "a.zarr", "engine.batch_size=auto")
    assert pipeline.run(overrides).complete
    (work,) = tried
    assert isinstance(work.function, partial)
    sent = work.function.keywords
    assert (sent["name"], len(sent["codes"]), sent["device"], work.device) == ("s0", LENGTH, "cpu", "cpu")
    plan = RunDirectory(tmp_path / "a.zarr").read_plan()
    assert plan is not None
    assert plan.batch_size == 6, "of the memory there"

    def refuse(work: WorkWithModel[Preflight]) -> Preflight:
        raise UserError("the model cannot be attributed there")

    machine = replace(machine, elsewhere=refuse)
    with pytest.raises(UserError, match="cannot be attributed there"):
        pipeline.run(inputs.overrides(tmp_path / "b.zarr"))
    assert not (tmp_path / "b.zarr").exists()
