"""The command line: what it prints where, and the code it ends with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.cli.main import COMMANDS, dispatch, signals_stop
from pipeline.cli.settings import repeat_config
from pipeline.config.registry import choices
from pipeline.exports.registry import exports
from pipeline.messages.errors import EXIT_READER_GONE, RunError, Stopped
from pipeline.messages.progress import RowProgress
from tests.pipeline.conftest import Inputs, values


@pytest.mark.parametrize("arguments", [[name] for name in COMMANDS] + [["export", kind] for kind in exports()])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert dispatch([]) == 0
    assert arguments[0] in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^0$"):
        dispatch([*arguments, "--help"])
    told = capsys.readouterr().out
    assert f"usage: dlshap {' '.join(arguments)} " in told
    assert "SUPPRESS" not in told


def test_help_names_every_choice_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    conf = Path(__file__).parents[3] / "conf"
    for arguments, groups in ([], ["model", "dataset"]), (["run"], ["model", "dataset", "references", "cluster"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            dispatch([*arguments, "--help"])
        told = capsys.readouterr().out
        for group in groups:
            there = [path.stem for path in sorted((conf / group).glob("*.yaml"))]
            assert list(choices(group)) == there
            assert f"{group}=" in told
            assert all(re.search(rf"\b{name}\b", told) for name in there)
    assert max(map(len, told.splitlines())) <= 120
    assert all(text for group in groups for text in choices(group).values()), "each file says what it is"


def test_help_waits_for_nothing_that_computes() -> None:
    script = (
        "import sys; from pipeline.cli.main import main\n"
        "names = {'numpy', 'omegaconf', 'rich', 'hydra', 'torch', 'ray', 'pyarrow', 'zarr'}\n"
        "try: main(['--help'])\n"
        "finally: print(names & sys.modules.keys(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "set()"), done.stderr


def test_commands_that_only_look_at_a_store_do_not_wait_for_torch(finished: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pipeline.cli.main import dispatch\n"
        "for command in (['status'], ['verify'], ['compare', sys.argv[1]], ['export', 'tsv']):\n"
        "    more = [sys.argv[2]] if command[0] == 'export' else []\n"
        "    assert dispatch([*command, sys.argv[1], *more]) == 0, command\n"
        "    assert 'torch' not in sys.modules, command\n"
    )
    command = [sys.executable, "-c", script, str(finished), str(tmp_path / "a.tsv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["status", "--", "-s.zarr"], "complete"),
        (["verify", "--json", "--", "-s.zarr"], '"sound": true'),
        (["export", "tsv", "--", "-s.zarr", "-o.tsv"], "rows in -o.tsv"),
        (["logo", "-o", "l.png", "--", "-s.zarr", "-r0"], "'-r0'"),
        (["compare", "--", "-s.zarr", "-s.zarr"], "the same bits"),
        (["report", "-o", "r.html", "--", "-s.zarr"], "r.html"),
    ],
)
def test_a_store_may_be_called_like_an_option(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    told: str,
) -> None:
    (tmp_path / "-s.zarr").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    dispatch(command)
    assert told in "".join(capsys.readouterr())


def test_numbers_that_cannot_be_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["verify", str(finished), "--sample", "-5"]) == 2
    assert "argument --sample: '-5': expected a whole number from 0 on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ron"], "argument command: invalid choice: 'ron' (choose from "),
        (["run", "--wat"], "unrecognized arguments: --wat; `dlshap run --help` lists what it takes"),
        (["run", "="], "what begins with = is not a setting"),
        (["status"], "the following arguments are required: STORE"),
        (["verify"], "the following arguments are required: STORE; `dlshap verify --help`"),
        (["export", "bed", "a.zarr", "b"], "argument KIND: invalid choice: 'bed'"),
        (["export", "tsv", "a.zarr"], "required: OUT; `dlshap export tsv --help`"),
    ],
)
def test_a_command_line_that_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert dispatch(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("dlshap: error: ")
    assert message in told
    assert told.count("\n") == 1


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("dlshap 0.")


def test_the_whole_configuration_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["run", "--cfg", "job", "seed=7"]) == 0
    printed = capsys.readouterr().out
    assert "seed: 7" in printed
    assert "n_shuffles: 20" in printed


def test_results_go_to_stdout_and_progress_to_stderr(
    inputs: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["run", *inputs.overrides(tmp_path / "a.zarr")]) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"{tmp_path}/a.zarr: 22 rows, complete (22 of them in ")
    assert "convergence deltas: at most" in out
    assert "attributing: 22 rows" in err
    assert "\r" not in err
    assert "\x1b" not in err
    assert dispatch(["run", *inputs.overrides(tmp_path / "a.zarr")]) == 0
    assert "finished before, nothing to do" in capfd.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [["dataset.path=nothing.fa"], ["engine.batchsize=3"], ["store.path=/proc/x"], ["model.checkpoint=nothing.pt"]],
    ids=lambda overrides: overrides[0],
)
def test_an_error_is_one_line_without_a_traceback(
    inputs: Inputs, in_folder: Path, capfd: pytest.CaptureFixture[str], overrides: list[str]
) -> None:
    assert dispatch(["run", *inputs.overrides("a.zarr", *overrides)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("dlshap: error: ")
    assert err.count("\n") == 1
    assert list(in_folder.iterdir()) == []


def test_a_full_disk_is_one_line_and_a_failure(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "codes/c/0/0")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.template.StagedStore.append", full)
        assert dispatch(["run", *inputs.overrides(tmp_path / "a.zarr")]) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert not (tmp_path / "a.zarr").exists()


def test_a_summary_for_programs(inputs: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["run", "--json", *inputs.overrides(tmp_path / "a.zarr")]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["store"], summary["complete"], summary["rows"]) == (str(tmp_path / "a.zarr"), True, 22)
    assert dispatch(["run", "--json", *inputs.overrides(tmp_path / "b.zarr", "model.checkpoint=nothing.pt")]) == 2
    out, err = capfd.readouterr()
    failure = json.loads(out)
    assert failure["exit_code"] == 2
    assert err == f"dlshap: error: {failure['error']}\n"


def test_a_run_is_repeated_from_its_store(
    inputs: Inputs, finished: Path, tmp_path: Path, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From another folder, under other settings, which go over those of the store."""
    model = ["model._target_=pipeline.models.example.ExampleNet", "model.init={n_filters:4,n_hidden:4}"]
    assert dispatch(["run", "--config-from", str(finished), *model]) == 0
    assert "finished before, nothing to do" in capfd.readouterr().out
    assert dispatch(["run", "--config-from", str(finished), *model, f"store.path={tmp_path / 'b.zarr'}"]) == 0
    assert values(tmp_path / "b.zarr") == values(finished)
    config = repeat_config(str(finished), [*model, "cluster=address", "engine.targets=[1]", "store.path=c.zarr"])
    assert (config.cluster.name, config.cluster.address, config.engine.targets) == ("address", "auto", [1])
    assert (config.store.path, config.store.rows_per_shard, config.references.n_shuffles) == ("c.zarr", 6, 3)
    assert config.dataset.path == str(inputs.sequences)
    zeros = repeat_config(str(finished), ["references=zeros"], is_trusted=True).references
    assert (zeros.name, zeros.n_shuffles) == ("zeros", None), "a group that is chosen is taken whole"
    for wrong, reason in (
        (["--config-from", "nothing.zarr"], "there is no store there that says how it was made"),
        (["--config-from", str(finished), "experiment=quick"], "--config-from and experiment=... contradict"),
        (["--config-from", str(finished), "seed=x"], "seed=x; expected a whole number"),
        (["--config-from", str(finished), "references=zeros", "references.window=9"], "references.window contradict"),
    ):
        assert dispatch(["run", *wrong]) == 2
        assert reason in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_the_run_and_the_same_command_goes_on(
    inputs: Inputs,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    command = ["run", *inputs.overrides(tmp_path / "a.zarr")]
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(RowProgress, "advance", lambda self, n: n == 6 and os.kill(os.getpid(), number))
        assert dispatch(command) == code
    assert "the same command goes on from there" in capfd.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert dispatch(command) == 0
    assert "22 rows, complete (16 of them in" in capfd.readouterr().out
    assert values(tmp_path / "a.zarr") == values(finished)


@pytest.mark.parametrize("becomes", [RunError("Ray failed"), SystemError("an exception set"), SystemExit(15)])
def test_after_a_signal_whatever_goes_wrong_is_a_stop(becomes: BaseException) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def interrupted() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Stopped:
            raise becomes from None

    with pytest.raises(Stopped) as caught, signals_stop():
        interrupted()
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(type(becomes)), signals_stop():
        raise becomes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_way_out_ends_even_where_it_hangs(number: signal.Signals, code: int) -> None:
    """Also under a second signal."""
    script = """
import sys, time
from pipeline.cli import main as cli, run
cli.GRACE_S = 1
def hang(arguments):
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("on the way out", flush=True)
        time.sleep(60)
run.run = hang
cli.main(["run"])
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.stdout.readline() == "on the way out\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == code


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_in_a_terminal_is_not_for_rays_workers(inputs: Inputs, tmp_path: Path) -> None:
    """A terminal sends it to the whole process group; a worker that died of it would be reported and begun again."""
    overrides = inputs.overrides(tmp_path / "a.zarr", "cluster=local", "cluster.actors=1", "store.rows_per_shard=1")
    command = [sys.executable, "-m", "pipeline", "run", *overrides, "references.n_shuffles=2000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not list(tmp_path.glob("a.zarr.run/done/*")):
            time.sleep(0.1)
        workers = [child for child in psutil.Process(process.pid).children(True) if "MapWorker" in child.name()]
        assert [os.getpgid(worker.pid) == process.pid for worker in workers] == [False]
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert all(line.startswith("dlshap: ") for line in err.splitlines()), err


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_ray_prints_nothing_of_its_own_on_stdout(inputs: Inputs, tmp_path: Path) -> None:
    """In a process of its own, as Ray's messages come from other processes too."""
    command = inputs.overrides(tmp_path / "a.zarr", "cluster=local", "cluster.actors=1")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", *command], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / "a.zarr"),
        "convergence deltas",
    ]
    assert all(line.startswith("dlshap: ") for line in done.stderr.splitlines()), done.stderr


# --- whoever reads the output goes away -----------------------------------------------------------------------------


def without_reader(arguments: list[str], both: bool = False, **environment: str) -> tuple[int, str]:
    """Run a command whose stdout, or stdout and stderr, nobody reads any more; exit code and stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            stdout=writer,
            stderr=writer if both else subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            check=False,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize(
    ("kind", "unbuffered"),
    [
        pytest.param("help", "", marks=pytest.mark.slow),
        pytest.param("status", "", marks=pytest.mark.slow),
        ("export", ""),
        pytest.param("export", "1", marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_went_away_ends_a_command_quietly(
    finished: Path, tmp_path: Path, kind: str, unbuffered: str
) -> None:
    out = tmp_path / "out.tsv"
    commands = {"help": ["export", "--help"], "status": ["status"], "export": ["export", "tsv"]}
    more = {"help": [], "status": [str(finished)], "export": [str(finished), str(out)]}
    ended = without_reader([*commands[kind], *more[kind]], PYTHONUNBUFFERED=unbuffered)
    assert ended == (EXIT_READER_GONE, "")
    assert out.exists() == (kind == "export"), "what was to be written is written"


def test_a_reader_of_both_that_went_away_ends_a_command_quietly(tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing.zarr")
    assert without_reader(["status", nothing, "--json"], both=True)[0] == EXIT_READER_GONE


def test_an_output_that_cannot_be_written_is_an_error(finished: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pipeline", "status", str(finished)]
        around = {**os.environ, "PYTHONUNBUFFERED": ""}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=around, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "dlshap: error: cannot write the output: No space left on device\n",
    )
