"""Damage of every kind, to every file, is found and named; what is whole is never said to be damaged."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.execution.verify import verify
from pipeline.messages.errors import UserError
from pipeline.store.attributes import mark_incomplete
from pipeline.store.checksums import own_checksum, seal, unseal
from pipeline.store.done_shards import wrong_sizes
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import ARRAYS, MANIFEST_ARRAYS, ROOT, shard_key
from pipeline.store.verify.findings import Findings
from tests.pipeline.conftest import N_ROWS, ROWS_PER_SHARD, Inputs, random_sequences, write_fasta
from tests.pipeline.damage import KINDS, copy_of, damage, flip, keys_of, swap

N_SHARDS = 4
WITH_AND_WITHOUT_RUN = pytest.mark.parametrize("with_run", [True, False], ids=["run", "no run"])


def of_shard(key: str) -> bool:
    return key.partition("/")[0] in ARRAYS and "/c." in key


def ask(store: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = dispatch(["verify", str(store), "--json", *more])
    out, err = capsys.readouterr()
    assert err == ""
    return code, json.loads(out)


def refused(store: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert dispatch(["verify", str(store)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def check_found(finished: Path, store: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage a copy of a store, and see that it is found and named."""
    generator = random.Random(seed)
    copy_of(finished, store, with_run=generator.random() < 0.5)
    done = damage(store, KINDS[seed % len(KINDS)], generator)
    code, found = ask(store, capsys)
    assert (code, found["sound"]) == (1, False), done
    named = {problem["file"]: problem for problem in found["problems"]}
    without = ROOT in done.keys and not Path(f"{store}.run").exists()  # and then nothing says what the others should be
    assert named.keys() >= ({ROOT} if without else {*done.keys}), (done, found)
    for key in {*done.keys} & {*named}:
        if of_shard(key):
            index = int(key.partition("/c.")[2].partition(".")[0])
            rows = [index * ROWS_PER_SHARD, min((index + 1) * ROWS_PER_SHARD, N_ROWS)]
            assert (named[key]["shard"], named[key]["rows"]) == (index, rows)
    if not {key.partition("/")[0] for key in done.keys} & {ROOT, *MANIFEST_ARRAYS}:
        assert {*named} == {*done.keys}, "and nothing else"
    assert found["strays"] == []


def test_an_intact_store_is_whole(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for with_run in (True, False):
        code, found = ask(copy_of(finished, tmp_path / f"{with_run}.zarr", with_run), capsys)
        assert (code, found["sound"], found["complete"]) == (0, True, True)
        assert (found["problems"], found["strays"], found["notes"]) == ([], [], [])
        assert found["n_files"] == len(keys_of(finished))
        assert found["n_bytes"] == sum((finished / key).stat().st_size for key in keys_of(finished))
        assert found["n_sampled"] == N_ROWS
    assert dispatch(["verify", str(finished), "--sample", "5"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith(f"{finished}: {len(keys_of(finished))} files, 0.")
    assert out.endswith(" MB read, references of 5 rows drawn again: all as committed\n")


@pytest.mark.parametrize("seed", range(3 * len(KINDS)))
def test_damage_is_found_and_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    check_found(finished, tmp_path / "a.zarr", seed, capsys)


@pytest.mark.slow
def test_two_hundred_random_damages_are_found(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(1000, 1200):
        check_found(finished, tmp_path / "a.zarr", seed, capsys)
        shutil.rmtree(tmp_path / "a.zarr")
        shutil.rmtree(tmp_path / "a.zarr.run", ignore_errors=True)


@pytest.mark.slow
@WITH_AND_WITHOUT_RUN
def test_a_flipped_bit_is_found_in_every_file(finished: Path, tmp_path: Path, with_run: bool) -> None:
    store, generator = copy_of(finished, tmp_path / "a.zarr", with_run), random.Random(0)
    for key in keys_of(store):
        whole = (store / key).read_bytes()
        for _ in range(60 if key == ROOT else 2):
            flip(store / key, generator)
            assert key in {problem.key for problem in verify(RunDirectory(store), 0).problems}
            (store / key).write_bytes(whole)


@WITH_AND_WITHOUT_RUN
def test_array_shard_and_rows_are_in_the_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_run: bool
) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run)
    (store / "hypothetical/c.3.0.0.0").unlink()
    (store / "codes/c.1.0").write_bytes(b"")
    (store / "prediction/c.0.0").write_bytes((store / "prediction/c.0.0").read_bytes()[:-1])
    swap(store / "attribution/c.0.0.0", store / "attribution/c.2.0.0")
    assert dispatch(["verify", str(store)]) == 1
    lines = capsys.readouterr().out.splitlines()
    n_bytes = (finished / "prediction/c.0.0").stat().st_size
    assert {
        "damaged: hypothetical, shard 3 (rows 18 to 21): hypothetical/c.3.0.0.0 is missing",
        "damaged: codes, shard 1 (rows 6 to 11): codes/c.1.0 is empty",
        f"damaged: prediction, shard 0 (rows 0 to 5): prediction/c.0.0 is truncated: {n_bytes - 1} of {n_bytes} bytes",
        "damaged: attribution, shard 0 (rows 0 to 5): attribution/c.0.0.0 holds the bytes of attribution/c.2.0.0",
        "damaged: attribution, shard 2 (rows 12 to 17): attribution/c.2.0.0 holds the bytes of attribution/c.0.0.0",
    } == set(lines[:-2])
    assert "5 problems" in lines[-2]
    assert lines[-1] == (
        f"`dlshap verify --repair {store}` discards what is damaged, and then the command that made the store makes it "
        "again"
    )


def test_strays_are_named_and_do_no_harm(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run=False)
    strays = [".c.0.0.host.1.partial", "codes/c.4.0", "codes/c.00.0", "notes.txt", "old/zarr.json"]
    for key in strays:
        (store / key).parent.mkdir(exist_ok=True)
        (store / key).write_bytes(b"x")
    code, found = ask(store, capsys)
    assert (code, found["sound"], found["strays"]) == (0, True, sorted(strays))
    dispatch(["verify", str(store)])
    assert "stray: notes.txt is not a file of the store" in capsys.readouterr().out


# --- unfinished stores ----------------------------------------------------------------------------------------------


def unfinished(inputs: Inputs, store: Path) -> Path:
    """A store with two of its four shards."""
    assert not pipeline.run(inputs.overrides(store, "run.shards=1-2")).complete
    return store


def test_an_unfinished_store_is_whole_as_far_as_it_goes(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = unfinished(inputs, tmp_path / "a.zarr")
    code, found = ask(store, capsys)
    assert (code, found["complete"], found["problems"], found["strays"], found["notes"]) == (0, False, [], [], [])
    assert (found["n_done"], found["n_shards"], found["n_sampled"]) == (2, N_SHARDS, 12)
    assert dispatch(["verify", str(store)]) == 0
    assert capsys.readouterr().out.endswith("all as committed, not complete: 2 of 4 shards are done\n")


def test_half_a_shard_and_unfinished_files_are_no_damage(
    inputs: Inputs, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = unfinished(inputs, tmp_path / "a.zarr")
    for name in ("attribution", "hypothetical"):
        shutil.copy(finished / shard_key(name, 3), store / shard_key(name, 3))
    (Path(f"{store}.run") / "partial").mkdir(exist_ok=True)
    (Path(f"{store}.run") / "partial/.c.3.0.host.1.partial").write_bytes(b"half")
    (Path(f"{store}.run") / "attempts").mkdir(exist_ok=True)
    (Path(f"{store}.run") / "attempts/00000003-0123456789ab").write_bytes(b"")
    (store / "prediction/.c.3.0.host.1.partial").write_bytes(b"half")
    code, found = ask(store, capsys)
    assert (code, found["problems"], found["strays"]) == (0, [], ["prediction/.c.3.0.host.1.partial"])
    assert found["notes"] == ["2 files of shards that are not committed yet"]


def test_damage_to_an_unfinished_store_is_found(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, generator = unfinished(inputs, tmp_path / "a.zarr"), random.Random(0)
    keys = [shard_key("hypothetical", 1), shard_key("codes", 2), "codes/zarr.json", "name/c.0", "strand/zarr.json"]
    for key in keys:
        flip(store / key, generator)
    (store / shard_key("prediction", 2)).unlink()
    code, found = ask(store, capsys)
    assert code == 1
    assert {problem["file"] for problem in found["problems"]} == {*keys, shard_key("prediction", 2)}


def test_a_plan_that_is_not_the_run_s_is_found(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = unfinished(inputs, tmp_path / "a.zarr")
    root = json.loads((store / ROOT).read_text())
    root["attributes"]["plan"]["random_state"] = 7
    (store / ROOT).write_text(json.dumps(root))
    code, found = ask(store, capsys)
    assert code == 1
    assert [problem["file"] for problem in found["problems"]] == [ROOT]


def test_an_unfinished_store_without_its_protocol_files_is_not_judged(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = unfinished(inputs, tmp_path / "a.zarr")
    shutil.rmtree(f"{store}.run")
    assert f"{store} is not complete, and {store}.run is gone" in refused(store, capsys)


@pytest.mark.parametrize("key", [ROOT, "plan.json", "done/00000001.json", "done/00000002.json"])
def test_a_flipped_bit_in_an_unfinished_store_s_own_records_is_found(inputs: Inputs, tmp_path: Path, key: str) -> None:
    """In any place, digits among them: what still parses would be believed."""
    store, generator = unfinished(inputs, tmp_path / "a.zarr"), random.Random(0)
    path = store / key if key == ROOT else Path(f"{store}.run") / key
    whole = path.read_bytes()
    for _ in range(30):
        flip(path, generator)
        assert key in {problem.key for problem in verify(RunDirectory(store), 0).problems}
        path.write_bytes(whole)
    digits = [backend for backend, byte in enumerate(whole) if chr(byte) in "12345678"]
    for backend in generator.sample(digits, 30):
        path.write_bytes(whole[:backend] + bytes([whole[backend] + 1]) + whole[backend + 1 :])
        assert key in {problem.key for problem in verify(RunDirectory(store), 0).problems}
    path.write_bytes(whole)
    assert verify(RunDirectory(store)).sound


def test_a_flipped_bit_in_the_list_of_files_is_named(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, generator = unfinished(inputs, tmp_path / "a.zarr"), random.Random(0)
    path = Path(f"{store}.run/files.json")
    whole = path.read_bytes()
    for _ in range(40):
        flip(path, generator)
        assert f"{store}.run/files.json" in refused(store, capsys)
        path.write_bytes(whole)


@pytest.mark.parametrize("key", [ROOT, f"codes/{ROOT}", f"hypothetical/{ROOT}"])
def test_rows_of_a_damaged_store_are_not_computed_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    store = tmp_path / "a.zarr"
    shutil.copytree(finished, store)
    shutil.copytree(f"{finished}.run", f"{store}.run")
    (store / key).write_bytes((store / key).read_bytes()[:-3])
    code, found = ask(store, capsys, "--recompute", "2")
    assert (code, found["n_recomputed"]) == (1, 0)
    assert key in [problem["file"] for problem in found["problems"]]
    assert any(line.startswith("rows are not computed again") for line in found["not_checked"])


# --- consistent falsehoods ------------------------------------------------------------------------------------------


def test_references_that_do_not_follow_from_codes_and_seed_are_found(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store of another seed, which says consistently that it is of this one."""
    store = tmp_path / "a.zarr"
    assert pipeline.run(inputs.overrides(store, "seed=100")).complete
    rewrite(store, lambda plan: plan.update(seed=0, random_state=0))
    code, found = ask(store, capsys)
    assert code == 1
    assert {problem["file"] for problem in found["problems"]} == {
        shard_key("reference_checksum", index) for index in range(N_SHARDS)
    }
    assert len(found["problems"]) == N_ROWS, "each row that was sampled"
    assert "'s0'" in found["problems"][0]["what"]
    assert ask(store, capsys, "--sample", "0")[1]["n_sampled"] == 0


def rewrite(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the plan in a store, which then says consistently that it is that."""
    root = json.loads((store / ROOT).read_text())
    change(root["attributes"]["plan"])
    text = json.dumps(root, indent=2)
    (store / ROOT).write_text(text.replace(root["attributes"]["checksum"], own_checksum(text.encode())[1], 1))


def test_the_seed_of_an_older_store_means_what_it_meant(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "a.zarr"
    assert pipeline.run(inputs.overrides(store, "references.random_state=100")).complete
    shutil.rmtree(f"{store}.run", ignore_errors=True)

    def to_first_version(plan: dict[str, Any]) -> None:
        plan["seed"] = plan.pop("random_state")

    rewrite(store, to_first_version)
    code, found = ask(store, capsys)
    assert (code, found["notes"], found["n_sampled"]) == (0, [], N_ROWS)
    assert pipeline.open_store(store).plan.random_state == 100
    rewrite(store, lambda plan: plan.update(seed=101))
    assert ask(store, capsys)[0] == 1


def test_windows_that_an_older_version_drew_are_not_said_to_be_damaged(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, genome = tmp_path / "a.zarr", write_fasta(tmp_path / "genome.fa", random_sequences(3, 800, seed=9))
    overrides = ["references=genomic", f"references.genome={genome}", "references.n_shuffles=3"]
    assert pipeline.run(inputs.overrides(store, *overrides)).complete
    assert ask(store, capsys)[1]["n_sampled"] == N_ROWS

    def to_first_version(plan: dict[str, Any]) -> None:
        del plan["random_state"], plan["references"]["drawn_by"]

    shutil.rmtree(f"{store}.run", ignore_errors=True)
    rewrite(store, to_first_version)
    code, found = ask(store, capsys)
    assert (code, found["sound"], found["n_sampled"]) == (1, True, 0)
    (line,) = found["not_checked"]
    assert line.startswith("references are not drawn again: dlshap 0.1 drew these windows of a genome by another rule")


def test_done_records_that_say_something_else_are_found(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run=True)
    path = Path(f"{store}.run/done/00000002.json")
    record = unseal(path.read_bytes())
    record["files"]["attribution"]["crc32"] ^= 1
    path.write_bytes(seal(record))
    code, found = ask(store, capsys)
    assert code == 1
    assert [(problem["shard"], problem["rows"]) for problem in found["problems"]] == [(2, [12, 18])]
    assert "done record" in found["problems"][0]["what"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"shard": 1}'])
def test_done_records_that_cannot_be_read_are_found(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    store = unfinished(inputs, tmp_path / "a.zarr")
    Path(f"{store}.run/done/00000001.json").write_bytes(content)
    code, found = ask(store, capsys)
    assert code == 1
    assert [(problem["file"], problem["shard"]) for problem in found["problems"]] == [("done/00000001.json", 1)]


def test_values_of_a_shard_and_its_checksums_in_place_of_anothers_are_found(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two shards changed places with their checksums: their references do not follow from their codes."""
    store = copy_of(finished, tmp_path / "a.zarr", with_run=True)
    swap(store / shard_key("reference_checksum", 0), store / shard_key("reference_checksum", 1))
    mark_incomplete(RunDirectory(store).store)
    paths = [Path(f"{store}.run/done/0000000{index}.json") for index in (0, 1)]
    records = [unseal(path.read_bytes()) for path in paths]
    files = [record["files"] for record in records]
    files[0]["reference_checksum"], files[1]["reference_checksum"] = (
        files[1]["reference_checksum"],
        files[0]["reference_checksum"],
    )
    for path, record in zip(paths, records, strict=True):
        path.write_bytes(seal(record))
    code, found = ask(store, capsys)
    assert code == 1
    assert {problem["shard"] for problem in found["problems"]} == {0, 1}


# --- what is no store, or hardly one --------------------------------------------------------------------------------


def test_what_is_no_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path / 'nothing.zarr'} does not exist" in refused(tmp_path / "nothing.zarr", capsys)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"x")
    assert "is not a dlshap store" in refused(tmp_path / "folder", capsys)
    assert "is not a dlshap store" in refused(tmp_path / "folder/file", capsys)
    for name, content in [("empty", ""), ("list", "[]"), ("group", '{"zarr_format": 3, "attributes": {}}')]:
        (tmp_path / name).mkdir()
        (tmp_path / name / ROOT).write_text(content)
        assert "is not a dlshap store" in refused(tmp_path / name, capsys)
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2/.zgroup").write_text('{"zarr_format": 2}')
    assert "is not a dlshap store" in refused(tmp_path / "v2", capsys)


@WITH_AND_WITHOUT_RUN
def test_the_group_s_own_file_in_any_state_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_run: bool
) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run)
    (store / "attribution/c.0.0.0").unlink()
    whole = (store / ROOT).read_bytes()
    for content in (b"", b"{}", b"[]", b"\xff", b'{"attributes": []}', whole[:-1], whole[:2000], whole + b" ", None):
        (store / ROOT).unlink(missing_ok=True)
        if content is not None:
            (store / ROOT).write_bytes(content)
        code, found = ask(store, capsys)
        assert code == 1
        named = {problem["file"] for problem in found["problems"]}
        assert named == ({ROOT, "attribution/c.0.0.0"} if with_run else {ROOT}), content
        assert with_run or "is not known any more" in found["notes"][0]
    (store / ROOT).mkdir()
    assert dispatch(["verify", str(store)]) == 1
    assert ROOT in capsys.readouterr().out


def test_files_that_cannot_be_read_are_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run=False)
    key = shard_key("attribution", 1)
    (store / key).unlink()
    (store / key).mkdir()
    (store / "name/c.0").unlink()
    (store / "name/c.0").symlink_to("nowhere")
    code, found = ask(store, capsys)
    assert code == 1
    assert {problem["file"] for problem in found["problems"]} == {key, "name/c.0"}
    assert "Is a directory" in next(problem["what"] for problem in found["problems"] if problem["file"] == key)


def test_a_link_to_a_store_is_the_store(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link.zarr").symlink_to(finished, target_is_directory=True)
    assert ask(tmp_path / "link.zarr", capsys)[1]["sound"]


def test_references_from_a_file_that_is_gone_are_noted(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    array = tmp_path / "references.npy"
    bases = generator.integers(0, 4, (N_ROWS, 2, 40))
    np.save(array, np.eye(4, dtype=np.float32)[bases].transpose(0, 1, 3, 2))
    store = tmp_path / "a.zarr"
    overrides = [*inputs.overrides(store, "references=array", f"references.path={array}")]
    assert pipeline.run([each for each in overrides if "n_shuffles" not in each]).complete
    assert ask(store, capsys)[1]["n_sampled"] == N_ROWS
    array.unlink()
    code, found = ask(store, capsys)
    assert (code, found["n_sampled"]) == (1, 0)
    assert str(array) in found["not_checked"][0]
    assert dispatch(["verify", str(store)]) == 1
    told = capsys.readouterr().out
    assert "not checked: references are not drawn again" in told
    assert "all as committed" not in told
    code, found = ask(store, capsys, "--sample", "0")
    assert (code, found["not_checked"]) == (0, [])


def test_sizes_alone_are_compared_quickly(finished: Path, tmp_path: Path) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run=False)
    backend = RunDirectory(store).store
    attributes = pipeline.open_store(store).attrs
    assert wrong_sizes(backend, attributes) == []
    (store / shard_key("codes", 3)).unlink()
    (store / shard_key("prediction", 0)).write_bytes(b"x")
    assert wrong_sizes(backend, attributes) == [shard_key("prediction", 0), shard_key("codes", 3)]
    (store / "shard_bytes/c.0.0").unlink()
    assert "shard_bytes" in wrong_sizes(backend, attributes)[0]


def test_a_verdict_is_plain_values() -> None:
    assert json.loads(json.dumps(Findings("a.zarr").to_dict()))["sound"] is True
    with pytest.raises(UserError, match="does not exist"):
        verify(RunDirectory("/nowhere/at/all.zarr"))
