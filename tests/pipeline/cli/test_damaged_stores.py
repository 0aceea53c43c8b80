"""Stores that are damaged, or of a stranger's making, as every command meets them: a line and an exit code."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline
from pipeline.cli.faults import fault
from pipeline.cli.main import dispatch
from pipeline.messages.errors import UserError
from pipeline.models.nesting import require_tree
from pipeline.store.attributes import mark_incomplete, sealed
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import ROOT
from tests.pipeline import hostile
from tests.pipeline.conftest import Inputs

COMMANDS = {
    "status": ["status", "a.zarr"],
    "status of an incomplete store": ["status", "a.zarr"],
    "verify": ["verify", "a.zarr"],
    "repair": ["verify", "a.zarr", "--repair"],
    "tsv": ["export", "tsv", "a.zarr", "out.tsv", "--overwrite"],
    "parquet": ["export", "parquet", "a.zarr", "out.parquet", "--overwrite", "--allow-incomplete"],
    "logo": ["logo", "a.zarr", "s0", "--allow-incomplete"],
    "bigwig": ["export", "bigwig", "a.zarr", "out.bw", "--overwrite"],
    "modisco": ["export", "modisco", "a.zarr", "out", "--overwrite", "--window", "10", "--top", "3"],
    "region": ["export", "tsv", "a.zarr", "out.tsv", "--overwrite", "--region", "chr1:0-100"],
    "the same run": ["run", "--config-from", "a.zarr", "--cfg", "job"],
    "json": ["verify", "a.zarr", "--json"],
    "report": ["report", "a.zarr", "--allow-incomplete"],
}


@contextlib.contextmanager
def limited(seconds: int = 30, more_bytes: int = 4 << 30) -> Iterator[None]:
    """Neither time nor memory without an end."""

    def late(number: int, frame: object) -> None:
        raise AssertionError("it hung")

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def require_a_line(arguments: list[str], capfd: pytest.CaptureFixture[str], what: str) -> None:
    """The command ends well, or with one line and the exit code of a failure or of bad input."""
    capfd.readouterr()
    with limited():
        code = dispatch(arguments)
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("dlshap: error: ")]
    assert "Traceback" not in err, what
    assert "looks like a fault" not in err, (what, arguments, err)
    assert "out of memory" not in err, (what, arguments, err)
    assert code in (0, 1, 2), what
    assert len(lines) == (1 if code == 2 else len(lines)), (what, err)
    assert code != 1 or lines or arguments[0] == "verify", (what, out)


def meet(inputs: Inputs, finished: Path, capfd: pytest.CaptureFixture[str], seed: int, commands: list[str]) -> None:
    store = hostile.copied(finished, Path("a.zarr"))
    if seed % 4 == 1:  # not complete: the files beside it say how it stands
        mark_incomplete(RunDirectory(store).store)
    what = f"seed {seed}, {hostile.spoil(store, seed)}"
    for name in commands:
        require_a_line(COMMANDS[name], capfd, what)
    if seed % 7 == 0:
        require_a_line(["run", *inputs.overrides("a.zarr")], capfd, what)
    with limited(), contextlib.suppress(UserError, OSError):
        opened = pipeline.open_store("a.zarr", allow_incomplete=True)
        repr(opened)
        assert len(opened.present) == len(opened)
        opened.take(["codes", "hypothetical"], [0, 21])


PLANS = [  # fields of a plan, what they may say, and what is told of it
    ("n_rows", -1, "expected at least 1"),
    ("length", "40", "expected a whole number"),
    ("targets", [0, "x"], "plan.targets[1] is 'x'"),
    ("targets", [{"9" * 5000: 1.0}], "expected indices of outputs"),
    ("references", {"name": 3}, "references has no name"),
    ("folds", [], "expected a name for each"),
    ("dtype", "float8", "expected float64, float32"),
    ("rows_per_shard", 10**400, "expected a whole number"),
    ("batch_size", 7, "fingerprint.settings.engine.batch_size is 192, where the plan has 7"),
    ("n_references", None, "expected a whole number"),
    ("probe", {"rows": [10**12]}, "plan.probe has no device"),
    ("args", [{"shape": [-3], "dtype": "float32"}], "expected a shape"),
    ("deterministic", "yes", "expected true or false"),
    ("warning_threshold", [], "expected a number"),
    ("unheard_of", 1, "unexpected keyword argument"),
]


@pytest.mark.parametrize(("field", "value", "told"), PLANS)
def test_a_plan_is_one_that_can_be(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], field: str, value: Any, told: str
) -> None:
    change(finished, "a.zarr", lambda attributes: attributes["plan"].update({field: value}))
    for arguments in (COMMANDS["tsv"], COMMANDS["status"], COMMANDS["logo"]):
        assert dispatch(arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "holds what dlshap does not write: plan" in err
        assert told in err
    assert dispatch(COMMANDS["verify"]) == 1
    assert "damaged: the group: zarr.json holds what dlshap does not write" in capsys.readouterr().out


def change(store: Path, place: str, how: Callable[[dict[str, Any]], object]) -> None:
    """A copy of a store, without the files beside it, whose attributes say something else, its checksum mended."""
    root = json.loads((Path(shutil.copytree(store, place)) / ROOT).read_bytes())
    how(root["attributes"])
    (Path(place) / ROOT).write_bytes(sealed(root))


def test_rows_that_the_arrays_do_not_have(finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def more(attributes: dict[str, Any]) -> None:
        attributes["plan"]["n_rows"] = attributes["fingerprint"]["input.rows"] = 10**12

    change(finished, "a.zarr", more)
    assert dispatch(COMMANDS["tsv"]) == 2
    assert "expected an array of shape (1000000000000, 40), as the plan says" in capsys.readouterr().err
    assert dispatch(COMMANDS["verify"]) == 1
    assert dispatch(COMMANDS["status"]) == 0


def test_codes_that_are_no_bases_reach_no_compiled_code(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = hostile.copied(finished, Path("a.zarr"))
    shutil.rmtree("a.zarr.run")
    hostile.respell(store, "codes", slice(None), 255)
    assert dispatch(COMMANDS["verify"]) == 1
    assert "codes/c.0.0 holds what no references can be drawn for" in capsys.readouterr().out
    assert dispatch(COMMANDS["tsv"]) == 2
    assert "codes is damaged in rows 0 to 21" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["../../victim", "/etc/passwd", "name/../../victim", "name//c.0", ""])
def test_no_file_outside_is_looked_at(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    (in_folder / "victim").write_text("precious")
    change(finished, "a.zarr", lambda attributes: attributes["files"].update({key: [8, 0]}))
    assert dispatch(["verify", "--repair", "a.zarr"]) == 2
    told = capsys.readouterr()
    assert f"files has {key!r}" in told.out + told.err or "what the run was is not known any more" in told.err
    assert (in_folder / "victim").read_text() == "precious"


@pytest.mark.parametrize("text", hostile.TEXTS, ids=lambda text: repr(text[:12]))
def test_what_is_no_json_is_damage(
    finished: Path, in_folder: Path, capfd: pytest.CaptureFixture[str], text: bytes
) -> None:
    store = hostile.copied(finished, Path("a.zarr"))
    for path in (store / "name" / ROOT, Path("a.zarr.run/plan.json"), Path("a.zarr.run/result.json"), store / ROOT):
        path.write_bytes(text)
        for name in ("status", "verify", "tsv"):
            require_a_line(COMMANDS[name], capfd, f"{path} is {text[:20]!r}")


@pytest.mark.parametrize("key", ["name/c.0", "shard_crc32/c.0.0", f"codes/{ROOT}", "prediction/c.1.0"])
def test_a_run_of_a_complete_store_looks_at_all_of_its_files(
    inputs: Inputs, finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    store = hostile.copied(finished, Path("a.zarr"))
    (store / key).write_bytes((store / key).read_bytes() + b" ")
    assert dispatch(["run", *inputs.overrides("a.zarr")]) == 1
    assert f"1 of its files are gone or not what they were, {key} first" in capsys.readouterr().err
    assert dispatch(COMMANDS["tsv"]) == 2
    (store / key).unlink()
    assert dispatch(["run", *inputs.overrides("a.zarr")]) in (1, 2)  # 2: what comes first needs that file


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            KeyError("x"),
            1,
            "this looks like a fault of dlshap: KeyError: 'x', in tests/pipeline/cli/test_damaged_stores.py",
        ),
        (RecursionError("deep"), 1, "this looks like a fault of dlshap: RecursionError: deep"),
        (MemoryError(), 1, "out of memory; free some"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory: CUDA out of memory; free some"),
        (ExceptionGroup("several", [UserError("no such file")]), 2, "error: no such file"),
        (BaseExceptionGroup("several", [KeyboardInterrupt()]), 130, "stopped; what is committed is kept"),
        (KeyboardInterrupt(), 130, "stopped; what is committed is kept"),
        (UserWarning("careful"), 1, "this looks like a fault of dlshap: UserWarning: careful"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), 1, "this looks like a fault of dlshap: UnicodeEncodeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_nobody_expected_is_a_line_too(
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    told: str,
) -> None:
    def fails(options: object) -> int:
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(in_folder))
    monkeypatch.setattr("pipeline.cli.status.run", fails)
    for arguments in (["status", "a.zarr"], ["status", "a.zarr", "--json"]):
        assert dispatch(arguments) == code
        out, err = capsys.readouterr()
        assert told in err
        assert err.count("\n") == 1
        assert "--json" not in arguments or json.loads(out)["exit_code"] == code
    kept = list(in_folder.glob("dlshap-fault-*.txt"))
    assert len(kept) == (2 if "fault" in told else 0)
    for path in kept:
        assert path.stat().st_mode & 0o777 == 0o600
        assert f"{type(error).__name__}" in path.read_text()
        assert str(path) in err or path != kept[-1] or len(kept) == 2


def test_a_fault_of_torch_itself(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which cannot be imported."""
    monkeypatch.delitem(sys.modules, "dlshap_core.errors")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "a fault of dlshap: OSError: libcudart.so" in str(fault(OSError("libcudart.so")))


def test_modules_within_themselves_are_refused(in_folder: Path) -> None:
    inner = torch.nn.Sequential(torch.nn.ReLU())
    cyclic = torch.nn.Sequential(inner)
    inner.add_module("back", cyclic)
    deep = torch.nn.Sequential()
    for _ in range(300):
        deep = torch.nn.Sequential(deep)
    shared = torch.nn.Sequential()
    for _ in range(50):  # as many ways to the innermost as 2 to the 50th
        shared = torch.nn.Sequential(torch.nn.Sequential(shared), torch.nn.Sequential(shared))
    with pytest.raises(UserError, match=r"Sequential holds a module that is within itself, at 0\.back"):
        require_tree(cyclic)
    with pytest.raises(UserError, match="200 deep"):
        require_tree(deep)
    require_tree(shared)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: module\n  bad: [\n", "mine.yaml"),
        (b"\xff\xfe\x00name", "can't decode byte 0xff"),
        (b"name: " + b"[" * 100_000, "it is nested too deeply"),
        (b"name: module\nname: bpnet\n", "found duplicate key name"),
        (b"name: !!python/object/apply:os.system [touch RAN]\n", "could not determine a constructor for the tag"),
    ],
    ids=["bad", "UTF-8", "deep", "twice", "code"],
)
def test_yaml_that_is_none(in_folder: Path, capsys: pytest.CaptureFixture[str], content: bytes, told: str) -> None:
    (in_folder / "model").mkdir()
    (in_folder / "model" / "mine.yaml").write_bytes(content)
    assert dispatch(["run", "--config-dir", ".", "model=mine", "--cfg", "job"]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not (in_folder / "RAN").exists()


@pytest.mark.parametrize("setting", ["seed={}", "engine.targets=[{}]", "run.shards={}", "model.init.x={}"])
def test_numbers_of_many_digits(in_folder: Path, capsys: pytest.CaptureFixture[str], setting: str) -> None:
    assert dispatch(["run", setting.format("9" * 5000), "--cfg", "job"]) == 2
    said = "expected first-last, such as 0-9" if "shards" in setting else "limit (4300 digits)"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_stranger_s_store_ends_in_a_line(
    inputs: Inputs, finished: Path, in_folder: Path, capfd: pytest.CaptureFixture[str], part: int
) -> None:
    for seed in range(part * 10, part * 10 + 10):
        meet(inputs, finished, capfd, seed, ["status", "verify", "tsv"] if seed % 3 else ["report", "repair"])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_strangers_stores_end_in_a_line(
    inputs: Inputs, finished: Path, in_folder: Path, capfd: pytest.CaptureFixture[str], part: int
) -> None:
    for seed in range(1000 + part * 15, 1015 + part * 15):
        meet(inputs, finished, capfd, seed, [*COMMANDS])
