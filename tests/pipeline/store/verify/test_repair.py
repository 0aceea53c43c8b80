"""What is damaged is made anew, nothing else is, and the store is the same as before."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

import pipeline
from pipeline.cli import dispatch
from pipeline.commits import RunDirectory
from pipeline.errors import UserError
from pipeline.repair import repair
from pipeline.store import LAYOUT, MADE_AT_THE_END, ROOT, shard_key
from pipeline.verify import verify
from tests.pipeline.conftest import N_ROWS, ROWS_PER_SHARD, Inputs, random_sequences, values, write_fasta
from tests.pipeline.damage import KINDS, copy_of, damage, flip, keys_of
from tests.pipeline.plug import PulledPlug, plugged

WITH_AND_WITHOUT_RUN = pytest.mark.parametrize("with_run", [True, False], ids=["run", "no run"])
N_SHARDS = 4


def check_same(store: Path, finished: Path) -> None:
    """The store is whole, and holds what it held."""
    verdict = verify(RunDirectory(store))
    assert (verdict.sound, verdict.complete, verdict.strays, verdict.notes) == (True, True, [], []), verdict.text()
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
        if key.partition("/")[0] in LAYOUT and "/c." in key
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
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"2 shards to be computed again: run the command that made it, or `dlshap run --config-from {store}`"
    )
    with pytest.raises(UserError, match="not complete: 2 of 4 shards are there"):
        pipeline.open_store(store)
    command = inputs.overrides(store) if again == "command" else ["--config-from", str(store)]
    assert dispatch(["run", *command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_computed"] == rows_of({1, 3})
    check_same(store, finished)


@pytest.mark.parametrize(
    "key",
    [
        "codes/zarr.json",
        "codes/c.2.0",
        "name/c.0",
        "strand/zarr.json",
        "target/c.0",
        "convergence_delta/zarr.json",
        "hypothetical/zarr.json",
        "shard_crc32/c.0.0",
        "file/zarr.json",
        "file_bytes/c.0",
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
    is_known = with_run or key.partition("/")[0] not in MADE_AT_THE_END
    assert run(inputs, store) == (rows_of(shards_of([key])) if is_known else N_ROWS)
    check_same(store, finished)


def check_repaired(inputs: Inputs, finished: Path, store: Path, seed: int) -> None:
    generator = random.Random(seed)
    copy_of(finished, store, with_run=True)
    done = [damage(store, generator.choice(KINDS), generator) for _ in range(generator.randrange(1, 4))]
    keys = [key for each in done for key in each.keys]
    is_known = not {key.partition("/")[0] for key in keys} & {*MADE_AT_THE_END}
    if ROOT not in keys and generator.random() < 0.5:
        shutil.rmtree(f"{store}.run")
    else:
        is_known = True
    directory = RunDirectory(store)
    verdict = verify(directory)
    assert not verdict.sound
    assert verdict.is_recorded == is_known
    repair(directory, verdict)
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
        verdict = verify(directory)
        if not verdict.sound:
            repair(directory, verdict)
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
    crash_in_repair(inputs, finished, tmp_path, with_run, 4)


@WITH_AND_WITHOUT_RUN
def test_some_crashes_in_the_run_after_it(inputs: Inputs, finished: Path, tmp_path: Path, with_run: bool) -> None:
    crash_in_the_run_after(inputs, finished, tmp_path, with_run, 17)


def test_a_crash_while_everything_is_given_up(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    for left in range(6):
        store = copy_of(finished, tmp_path / f"{left}.zarr", with_run=False)
        (store / "shard_crc32/c.0.0").unlink()
        one, other = store / shard_key("hypothetical", 0), store / shard_key("hypothetical", 1)
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
        repair_until(store, left)
        assert repair_until(store, None) is not None
        assert run(inputs, store) == N_ROWS, f"after {left} changes"
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
