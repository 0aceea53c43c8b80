"""What is damaged is made anew, nothing else is, and the store is the same as before."""

from __future__ import annotations

import contextlib
import json
import random
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.execution.verify import verify
from pipeline.messages.errors import UserError
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import ARRAYS, MANIFEST_ARRAYS, ROOT, shard_key
from pipeline.store.verify.repair import repair
from tests.pipeline.conftest import N_ROWS, ROWS_PER_SHARD, Inputs, random_sequences, values, write_fasta
from tests.pipeline.damage import KINDS, copy_of, damage, flip, keys_of
from tests.pipeline.plug import PulledPlug, plugged

WITH_AND_WITHOUT_RUN = pytest.mark.parametrize("with_run", [True, False], ids=["run", "no run"])
N_SHARDS = 4


def check_same(store: Path, finished: Path) -> None:
    """The store is whole, and holds what it held."""
    findings = verify(RunDirectory(store))
    assert (findings.sound, findings.complete, findings.strays, findings.notes) == (True, True, [], []), findings.text()
    assert values(store) == values(finished)
    assert pipeline.open_store(store).digest() == pipeline.open_store(finished).digest()
    assert keys_of(store) == keys_of(finished)
    before, after = pipeline.open_store(finished).attrs, pipeline.open_store(store).attrs
    assert {**after["run"]["deltas"]} == {**before["run"]["deltas"]}
    assert not Path(f"{store}.run/restore.json").exists()


def run(inputs: Inputs, store: Path) -> int:
    """The command of the store; returns the rows that it computed."""
    summary = pipeline.run(inputs.overrides(store))
    assert summary.complete
    return summary.rows_computed


def rows_of(shards: set[int]) -> int:
    return sum(min(ROWS_PER_SHARD, N_ROWS - index * ROWS_PER_SHARD) for index in shards)


def shards_of(keys: Sequence[str]) -> set[int]:
    return {
        int(key.partition("/c.")[2].partition(".")[0])
        for key in keys
        if key.partition("/")[0] in ARRAYS and "/c." in key
    }


@WITH_AND_WITHOUT_RUN
@pytest.mark.parametrize("again", ["command", "config-from"])
def test_just_the_damaged_shards_are_computed_again(
    inputs: Inputs,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    with_run: bool,
    again: str,
) -> None:
    store, generator = copy_of(finished, tmp_path / "a.zarr", with_run), random.Random(0)
    flip(store / shard_key("hypothetical", 3), generator)
    (store / shard_key("prediction", 1)).unlink()
    assert dispatch(["verify", str(store), "--repair"]) == 1
    told, again_ = capsys.readouterr().out.splitlines()[-1].split(", or ")
    assert told == "2 shards to be computed again: run the command that made it"
    model = "model.init.n_filters=4 model.init.n_hidden=4 model._target_=pipeline.models.example.ExampleNet"
    assert again_ == f"`dlshap run --config-from {store} {model}`"
    with pytest.raises(UserError, match="not complete: 2 of 4 shards are done"):
        pipeline.open_store(store)
    command = inputs.overrides(store) if again == "command" else shlex.split(again_.strip("`"))[2:]
    assert dispatch(["run", *command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_computed"] == rows_of({1, 3})
    check_same(store, finished)


@pytest.mark.parametrize(
    "key",
    [
        "codes/c.2.0",
        "name/c.0",
        "convergence_delta/zarr.json",
        "shard_crc32/c.0.0",
        *(
            pytest.param(key, marks=pytest.mark.slow)
            for key in (
                "codes/zarr.json",
                "strand/zarr.json",
                "target/c.0",
                "hypothetical/zarr.json",
                "file/zarr.json",
                "file_bytes/c.0",
            )
        ),
    ],
)
@pytest.mark.parametrize(("with_run", "kind"), [(True, "delete"), (False, "flip")], ids=["run", "no run"])
def test_what_the_input_gives_is_restored(
    inputs: Inputs, finished: Path, tmp_path: Path, with_run: bool, key: str, kind: str
) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run)
    if kind == "flip":
        flip(store / key, random.Random(0))
    else:
        (store / key).unlink()
    directory = RunDirectory(store)
    repair(directory, verify(directory))
    is_known = with_run or key.partition("/")[0] not in MANIFEST_ARRAYS
    assert run(inputs, store) == (rows_of(shards_of([key])) if is_known else N_ROWS)
    check_same(store, finished)


def check_repaired(inputs: Inputs, finished: Path, store: Path, seed: int) -> None:
    generator = random.Random(seed)
    copy_of(finished, store, with_run=True)
    done = [damage(store, generator.choice(KINDS), generator) for _ in range(generator.randrange(1, 4))]
    keys = [key for each in done for key in each.keys]
    is_known = not {key.partition("/")[0] for key in keys} & {*MANIFEST_ARRAYS}
    if ROOT not in keys and generator.random() < 0.5:
        shutil.rmtree(f"{store}.run")
    else:
        is_known = True
    directory = RunDirectory(store)
    findings = verify(directory)
    assert not findings.sound
    assert findings.is_recorded == is_known
    repair(directory, findings)
    assert run(inputs, store) <= (rows_of(shards_of(keys)) if is_known else N_ROWS)
    check_same(store, finished)


@pytest.mark.parametrize("seed", range(4))
def test_any_damage_is_repaired(inputs: Inputs, finished: Path, tmp_path: Path, seed: int) -> None:
    check_repaired(inputs, finished, tmp_path / "a.zarr", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_much_damage_is_repaired(inputs: Inputs, finished: Path, tmp_path: Path, seed: int) -> None:
    check_repaired(inputs, finished, tmp_path / "a.zarr", seed)


def test_strays_do_not_become_part_of_the_store(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run=False)
    (store / ".DS_Store").write_bytes(b"x")
    (store / "prediction/c.1.0").unlink()
    directory = RunDirectory(store)
    repair(directory, verify(directory))
    assert run(inputs, store) == rows_of({1})
    assert verify(RunDirectory(store)).strays == [".DS_Store"]


def test_done_records_that_cannot_be_read_are_made_again(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    assert not pipeline.run(inputs.overrides(store, "run.shards=0-2")).complete
    Path(f"{store}.run/done/00000001.json").write_bytes(b"\xff{")
    directory = RunDirectory(store)
    text = repair(directory, verify(directory))
    assert text.startswith("1 shard to be computed again:")
    assert run(inputs, store) == rows_of({1, 3})
    check_same(store, finished)


def change_a_digit(path: Path, after: str) -> None:
    """What still parses, and says something else."""
    text = path.read_text()
    backend = text.index(after) + len(after)
    digit = next(index for index in range(backend, len(text)) if text[index].isdigit())
    path.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])


def test_a_done_record_that_says_something_else_is_made_again_by_the_command(
    inputs: Inputs, finished: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a.zarr"
    assert not pipeline.run(inputs.overrides(store, "run.shards=0-2")).complete
    change_a_digit(Path(f"{store}.run/done/00000001.json"), '"crc32": ')
    assert run(inputs, store) == rows_of({1, 3})
    check_same(store, finished)


def test_an_unfinished_store_s_own_file_is_named_and_made_anew(
    inputs: Inputs, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "a.zarr"
    assert not pipeline.run(inputs.overrides(store, "run.shards=0-2")).complete
    whole = (store / ROOT).read_bytes()
    for content in (
        whole.replace(b'"seed": 0', b'"seed": 1'),
        whole[:-9],
        b"",
        whole.replace(b"attributes", b"Attributes"),
    ):
        (store / ROOT).write_bytes(content)
        with pytest.raises(UserError, match=rf"{store}/{ROOT} (is|cannot) .*after `dlshap verify --repair {store}`"):
            pipeline.run(inputs.overrides(store))
        assert dispatch(["status", str(store)]) == 0
    assert dispatch(["verify", str(store), "--repair"]) == 1
    assert f"damaged: the group: {ROOT}" in capsys.readouterr().out
    assert run(inputs, store) == rows_of({3}), "shards that are done stay done"
    check_same(store, finished)


def test_a_plan_that_says_something_else_is_taken_from_the_store(
    inputs: Inputs, finished: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a.zarr"
    assert not pipeline.run(inputs.overrides(store, "run.shards=0-2")).complete
    change_a_digit(Path(f"{store}.run/plan.json"), '"seed": ')
    said = f"{store}.run/plan.json is damaged .*; `dlshap verify --repair {store}` takes it from the store"
    with pytest.raises(UserError, match=said):
        pipeline.run(inputs.overrides(store))
    directory = RunDirectory(store)
    findings = verify(directory)
    assert [problem.key for problem in findings.problems] == ["plan.json"]
    assert repair(directory, findings).startswith("the records of the store to be written again:")
    assert run(inputs, store) == rows_of({3})
    check_same(store, finished)


def without_checksum(path: Path, *inside: str) -> None:
    """As version 0.1.0 wrote it."""
    content = json.loads(path.read_text())
    holder = content
    for name in inside:
        holder = holder[name]
    assert holder.pop("checksum").startswith("crc32:")
    path.write_text(json.dumps(content))


def test_records_of_the_version_before_are_gone_on_from(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    """Without checksums of their own."""
    store = tmp_path / "a.zarr"
    assert not pipeline.run(inputs.overrides(store, "run.shards=0-2")).complete
    without_checksum(store / ROOT, "attributes")
    unsealed = ("result.json", "metrics.json")
    records = [path for path in Path(f"{store}.run").rglob("*.json") if path.name not in unsealed]
    assert len(records) == 5
    for path in records:
        without_checksum(path)
    Path(f"{store}.run/restore.json").write_text('["name/c.0"]')
    assert verify(RunDirectory(store)).sound
    assert run(inputs, store) == rows_of({3})
    check_same(store, finished)


# --- crashes --------------------------------------------------------------------------------------------------------


def hurt(finished: Path, store: Path, with_run: bool) -> Path:
    """Two shards and two of the files that the input gives; the group's own where that can be mended."""
    copy_of(finished, store, with_run)
    (store / shard_key("attribution", 0)).unlink()
    flip(store / shard_key("codes", 2), random.Random(0))
    (store / "name/c.0").write_bytes(b"")
    (store / "convergence_delta/zarr.json").unlink()
    if with_run:
        (store / ROOT).write_bytes(b"")
    return store


def repair_until(store: Path, left: int | None) -> int | None:
    """Repair until the plug is pulled; the number of changes, None if it was."""
    with plugged(left) as plug, contextlib.suppress(PulledPlug):
        directory = RunDirectory(store)
        findings = verify(directory)
        if not findings.sound:
            repair(directory, findings)
        return len(plug.used)
    return None


def run_until(inputs: Inputs, store: Path, left: int | None) -> int | None:
    with plugged(left) as plug, contextlib.suppress(PulledPlug):
        pipeline.run(inputs.overrides(store))
        return len(plug.used)
    return None


def crash_in_repair(inputs: Inputs, finished: Path, folder: Path, with_run: bool, step: int) -> None:
    total = repair_until(hurt(finished, folder / "whole.zarr", with_run), None)
    assert total is not None
    assert total > 3
    for left in range(0, total, step):
        store = hurt(finished, folder / f"{left}.zarr", with_run)
        assert repair_until(store, left) is None
        assert repair_until(store, None) is not None
        assert run(inputs, store) == rows_of({0, 2}), f"after {left} changes"
        check_same(store, finished)


def crash_in_the_run_after(inputs: Inputs, finished: Path, folder: Path, with_run: bool, step: int) -> None:
    repaired = hurt(finished, folder / "repaired.zarr", with_run)
    repair_until(repaired, None)
    total = run_until(inputs, copy_of(repaired, folder / "whole.zarr", True), None)
    assert total is not None
    assert total > 20
    for left in range(0, total, step):
        store = copy_of(repaired, folder / f"{left}.zarr", True)
        assert run_until(inputs, store, left) is None
        assert run(inputs, store) <= rows_of({0, 2}), f"after {left} changes"
        check_same(store, finished)


@WITH_AND_WITHOUT_RUN
def test_some_crashes_in_a_repair(inputs: Inputs, finished: Path, tmp_path: Path, with_run: bool) -> None:
    crash_in_repair(inputs, finished, tmp_path, with_run, 9)


def test_some_crashes_in_the_run_after_it(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    crash_in_the_run_after(inputs, finished, tmp_path, True, 23)


@pytest.mark.parametrize("left", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 2, 3, 5)), 4])
def test_a_crash_while_everything_is_given_up(inputs: Inputs, finished: Path, tmp_path: Path, left: int) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run=False)
    (store / "shard_crc32/c.0.0").unlink()
    one, other = store / shard_key("hypothetical", 0), store / shard_key("hypothetical", 1)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    repair_until(store, left)
    assert repair_until(store, None) is not None
    assert run(inputs, store) == N_ROWS
    check_same(store, finished)


@pytest.mark.slow
@WITH_AND_WITHOUT_RUN
def test_a_crash_at_every_point_of_a_repair(inputs: Inputs, finished: Path, tmp_path: Path, with_run: bool) -> None:
    crash_in_repair(inputs, finished, tmp_path, with_run, 1)


@pytest.mark.slow
@WITH_AND_WITHOUT_RUN
def test_a_crash_at_every_point_of_the_run_after(
    inputs: Inputs, finished: Path, tmp_path: Path, with_run: bool
) -> None:
    crash_in_the_run_after(inputs, finished, tmp_path, with_run, 1)


# --- what cannot be repaired ----------------------------------------------------------------------------------------


def test_a_store_that_does_not_say_what_it_was_is_not_touched(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run=False)
    flip(store / ROOT, random.Random(0))
    before = {key: (store / key).read_bytes() for key in keys_of(store)}
    assert dispatch(["verify", str(store), "--repair"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"{store}/{ROOT} is damaged and {store}.run is gone" in err
    assert {key: (store / key).read_bytes() for key in keys_of(store)} == before
    assert not Path(f"{store}.run").exists()


def test_an_input_that_has_changed_is_refused_and_nothing_is_spoiled(
    inputs: Inputs, finished: Path, tmp_path: Path
) -> None:
    store = hurt(finished, tmp_path / "a.zarr", with_run=True)
    repair_until(store, None)
    before = {key: (store / key).read_bytes() for key in keys_of(store)}
    other = write_fasta(tmp_path / "other.fa", random_sequences(seed=1))
    for changed in (f"dataset.path={other}", "seed=5", "references.n_shuffles=4"):
        with pytest.raises(UserError, match="belongs to another run"):
            pipeline.run(inputs.overrides(store, changed))
        assert {key: (store / key).read_bytes() for key in keys_of(store)} == before
    assert run(inputs, store) == rows_of({0, 2})
    check_same(store, finished)


def test_a_sound_store_is_left_alone(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run=False)
    before = {key: (store / key).stat().st_mtime_ns for key in keys_of(store)}
    assert dispatch(["verify", str(store), "--repair"]) == 0
    assert "all as committed" in capsys.readouterr().out
    assert {key: (store / key).stat().st_mtime_ns for key in keys_of(store)} == before
    assert not Path(f"{store}.run").exists()
