"""The scripts for clusters, run with stand-ins for Slurm that record what they are asked and work on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

import pipeline
from tests.pipeline.conftest import Inputs, values

ROOT = Path(__file__).parents[4]
SCRIPTS = ROOT / "scripts" / "cluster"
BIN = Path(sys.executable).parent

SRUN = """
echo "srun $*" | head -n 1 >> "$LOG"
n=1
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) n=${1#*=} ;; esac
    shift
done
children=()
for ((i = 0; i < n; i++)); do "$@" & children+=($!); done
trap 'kill -TERM "${children[@]}" 2> /dev/null' TERM
for child in "${children[@]}"; do
    while kill -0 "$child" 2> /dev/null; do wait "$child"; done
done
"""
SCONTROL = """
echo "scontrol $*" >> "$LOG"
case "$1 $2" in
    "show hostnames") printf 'n1\\nn2\\nn3\\n' ;;
    "show job") echo "JobId=7 JobName=dlshap JobState=${FAKE_STATE:-RUNNING} Reason=None" ;;
esac
"""
RAY = """
if [ "$1" = status ]; then
    grep -c '^ray start' "$LOG" | while read -r n; do for ((i = 0; i < n; i++)); do echo " 1 node_$i"; done; done
    exit
fi
[ -z "${FAKE_RAY_FAILS:-}" ] || { echo "no room for Ray"; exit 1; }
trap 'echo "ray stopped" >> "$LOG"; exit 1' TERM
echo "ray $*" >> "$LOG"
echo "auth $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >> "$LOG"
for argument in "$@"; do
    case $argument in --temp-dir=*) folder=${argument#*=} ;; esac
done
[ -n "${FAKE_RAY_HANGS:-}" ] || case " $* " in *" --head "*) echo 10.0.0.1:1234 > "$folder/ray_current_cluster" ;; esac
while :; do sleep 0.05; done
"""
DLSHAP = """
echo "dlshap $*" >> "$LOG"
trap 'echo "dlshap told" >> "$LOG"; sleep 0.3; exit "${FAKE_CODE_TOLD:-75}"' TERM
if [ -n "${FAKE_CODE:-}" ]; then exit "$FAKE_CODE"; fi
echo "dlshap ready" >> "$LOG"
while :; do sleep 0.05; done
"""


@dataclass
class Slurm:
    """A folder of stand-ins, the environment of a job, and the log of what they were asked."""

    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def requeued(self) -> list[str]:
        return [line.removeprefix("scontrol requeue ") for line in self.log if line.startswith("scontrol requeue")]

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [SCRIPTS / script, *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, script: str, *arguments: str, timeout_s: float = 60, **environment: str) -> tuple[int, str]:
        """Exit code and standard error."""
        process = self.start(script, *arguments, **environment)
        _, said = process.communicate(timeout=timeout_s)
        return process.returncode, said

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.log, lambda: f"{line!r} in {self.log}")


def wait_until(holds: Callable[[], bool], what: Callable[[], str], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what()}"
        time.sleep(0.02)


def command(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}")
    path.chmod(0o755)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Paths of Ray's sockets are too long in pytest's folders."""
    folder = Path(tempfile.mkdtemp(prefix="dlshap-test-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(short_folder: Path) -> Iterator[Slurm]:
    folder = short_folder / "fakes"
    folder.mkdir()
    for name, body in {"srun": SRUN, "scontrol": SCONTROL, "ray": RAY, "dlshap": DLSHAP}.items():
        command(folder, name, body)
    scratch = short_folder / "s"
    scratch.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_"))} | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "LOG": str(folder / "log"),
        "DLSHAP_VENV": str(folder / "none"),
        "DLSHAP_TMP": str(scratch),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURM_GPUS_ON_NODE": "0",
    }
    slurm = Slurm(folder, environment)
    yield slurm
    for process in slurm.started:
        if process.poll() is None:  # its own ending stops what it started
            process.terminate()
        process.communicate(timeout=60)
    assert list(scratch.iterdir()) == []  # every ending cleans up


def test_one_head_one_worker_on_each_other_node_and_all_stopped(slurm: Slurm) -> None:
    code, said = slurm.run("slurm.sbatch", "model=bpnet", "store.path=a b.zarr", FAKE_CODE="0", SLURM_GPUS_ON_NODE="4")
    assert code == 0, said
    starts = [line for line in slurm.log if line.startswith("ray start")]
    heads = [line for line in starts if "--head" in line]
    assert len(starts) == 3
    assert len(heads) == 1
    assert all("--block" in line and "--num-cpus=2" in line and "--num-gpus=4" in line for line in starts)
    assert all("--address=10.0.0.1:1234" in line for line in starts if line not in heads)
    steps = [line for line in slurm.log if line.startswith("srun")]
    assert "--nodes=1 --ntasks=1 --nodelist=n1" in steps[0]
    assert "--nodes=2 --ntasks=2 --exclude=n1" in steps[1]
    assert "dlshap run cluster=address cluster.address=10.0.0.1:1234 model=bpnet store.path=a b.zarr" in slurm.log
    assert slurm.log.count("auth token 64") == 3
    assert slurm.log.count("ray stopped") == 3
    assert slurm.requeued == []


def test_one_node_has_a_head_alone(slurm: Slurm) -> None:
    code, said = slurm.run("slurm.sbatch", FAKE_CODE="0", SLURM_JOB_NUM_NODES="1")
    assert code == 0, said
    assert sum(line.startswith("ray start") for line in slurm.log) == slurm.log.count("ray stopped") == 1


@pytest.mark.parametrize("code", [1, 2, 130, 143])
def test_a_failure_keeps_its_code_and_is_not_queued_again(slurm: Slurm, code: int) -> None:
    assert slurm.run("slurm.sbatch", FAKE_CODE=str(code), SLURM_JOB_NUM_NODES="1")[0] == code
    assert slurm.requeued == []
    assert slurm.log.count("ray stopped") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_notice_reaches_dlshap_and_the_job_is_queued_again_after_ray_stopped(slurm: Slurm, number: int) -> None:
    process = slurm.start("slurm.sbatch", SLURM_JOB_NUM_NODES="1")
    slurm.wait_for("dlshap ready")
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    assert slurm.log.count("dlshap told") == 1
    assert slurm.log[-1] == "scontrol requeue 7"
    assert slurm.log.index("dlshap told") < slurm.log.index("ray stopped") < slurm.log.index("scontrol requeue 7")


def test_a_second_notice_does_not_hide_the_exit_code(slurm: Slurm) -> None:
    process = slurm.start("slurm.sbatch", SLURM_JOB_NUM_NODES="1", FAKE_CODE_TOLD="1")
    slurm.wait_for("dlshap ready")
    process.send_signal(signal.SIGUSR1)
    slurm.wait_for("dlshap told")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 1
    assert slurm.requeued == []


def test_a_notice_before_the_run_queues_the_job_again_without_running(slurm: Slurm) -> None:
    process = slurm.start("slurm.sbatch", FAKE_RAY_HANGS="1")
    wait_until(lambda: any(line.startswith("ray start") for line in slurm.log), lambda: str(slurm.log))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert slurm.requeued == ["7"]
    assert not any(line.startswith("dlshap") for line in slurm.log)
    assert "ray stopped" in slurm.log


def test_a_cancelled_job_does_not_come_back(slurm: Slurm) -> None:
    code, said = slurm.run("slurm.sbatch", FAKE_CODE="75", FAKE_STATE="COMPLETING", SLURM_JOB_NUM_NODES="1")
    assert code == 75
    assert slurm.requeued == []
    assert "not queued again: JobState=COMPLETING" in said


def test_a_job_is_not_queued_for_ever(slurm: Slurm) -> None:
    limits = {"SLURM_RESTART_COUNT": "3", "DLSHAP_MAX_RESTARTS": "3"}
    code, said = slurm.run("slurm.sbatch", FAKE_CODE="75", SLURM_JOB_NUM_NODES="1", **limits)
    assert code == 75
    assert slurm.requeued == []
    assert "DLSHAP_MAX_RESTARTS" in said


def test_a_head_that_does_not_answer_is_given_up(slurm: Slurm) -> None:
    code, said = slurm.run("slurm.sbatch", FAKE_RAY_HANGS="1", DLSHAP_START_S="2")
    assert code == 1
    assert "Ray's head on n1 did not start within 2 s" in said
    # none to stop where the machine was too busy to begin one in that time
    assert slurm.log.count("ray stopped") == sum(line.startswith("ray start") for line in slurm.log)


def test_a_head_that_ends_at_once_is_reported_with_its_words(slurm: Slurm) -> None:
    code, said = slurm.run("slurm.sbatch", FAKE_RAY_FAILS="1")
    assert code == 1
    assert "ended as it started" in said
    assert "no room for Ray" in said


def test_an_environment_that_is_not_there_is_named(slurm: Slurm) -> None:
    (slurm.folder / "dlshap").unlink()
    code, said = slurm.run("slurm.sbatch", PATH=f"{slurm.folder}:/usr/bin:/bin")
    assert code == 1
    assert f"neither in {slurm.environment['DLSHAP_VENV']} nor on PATH" in said


ARRAY = {"SLURM_ARRAY_JOB_ID": "50", "SLURM_ARRAY_TASK_ID": "3", "DLSHAP_SHARDS_PER_TASK": "10"}


@pytest.mark.parametrize(("there_are", "shards"), [(None, "30-39"), ("100", "30-39"), ("33", "30-32"), ("31", "30-30")])
def test_a_task_of_an_array_works_on_its_own_shards(slurm: Slurm, there_are: str | None, shards: str) -> None:
    known = {} if there_are is None else {"DLSHAP_SHARDS": there_are}
    code, said = slurm.run("array.sbatch", "seed=1", FAKE_CODE="0", **ARRAY, **known)
    assert code == 0, said
    assert slurm.log == [f"dlshap run cluster=none run.shards={shards} seed=1"]


def test_a_task_beyond_the_last_shard_does_nothing(slurm: Slurm) -> None:
    assert slurm.run("array.sbatch", FAKE_CODE="1", DLSHAP_SHARDS="30", **ARRAY)[0] == 0
    assert slurm.log == []


def test_a_task_is_queued_again_alone(slurm: Slurm) -> None:
    process = slurm.start("array.sbatch", **ARRAY)
    slurm.wait_for("dlshap ready")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 75
    assert slurm.requeued == ["50_3"]


def test_a_task_that_fails_keeps_its_code(slurm: Slurm) -> None:
    assert slurm.run("array.sbatch", FAKE_CODE="1", **ARRAY)[0] == 1
    assert slurm.requeued == []


@pytest.mark.parametrize("missing", ["SLURM_ARRAY_TASK_ID", "DLSHAP_SHARDS_PER_TASK"])
def test_a_task_says_what_it_lacks(slurm: Slurm, missing: str) -> None:
    code, said = slurm.run(
        "array.sbatch", FAKE_CODE="0", **{name: value for name, value in ARRAY.items() if name != missing}
    )
    assert code == 2
    assert ("--array" if missing == "SLURM_ARRAY_TASK_ID" else missing) in said
    assert slurm.log == []


def settings(inputs: Inputs, store: Path) -> list[str]:
    """Those of a run on a cluster that is not named in them."""
    return [setting for setting in inputs.overrides(store) if not setting.startswith("cluster")]


@pytest.mark.slow
@pytest.mark.ray
def test_real_ray_on_one_node_fills_the_store(slurm: Slurm, inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    for name in ("ray", "dlshap"):
        (slurm.folder / name).unlink()
    store = tmp_path / "slurm.zarr"
    code, said = slurm.run(
        "slurm.sbatch", *settings(inputs, store), DLSHAP_VENV=str(BIN.parent), SLURM_JOB_NUM_NODES="1", timeout_s=240
    )
    assert code == 0, said
    assert pipeline.open_store(store).complete
    assert values(store) == values(finished)
    assert not processes_with(slurm.environment["DLSHAP_TMP"])


@pytest.fixture
def head(short_folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a shell beside a Ray head of its own; RAY_API_SERVER_ADDRESS is where it takes jobs."""
    scratch, log = short_folder / "r", short_folder / "head.log"
    free = free_ports(2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{free[0]}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    arguments = ["--block", "--head", "--port=0", "--num-cpus=2", "--object-store-memory=209715200"]
    ports = [f"--dashboard-port={free[0]}", f"--ray-client-server-port={free[1]}", "--dashboard-agent-listen-port=0"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [BIN / "ray", "start", *arguments, *ports, f"--temp-dir={scratch}"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text(), log.read_text, timeout_s=120)
        yield environment
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert not processes_with(str(scratch))


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_job_fills_the_store(head: dict[str, str], inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "job.zarr"
    submit = [BIN / "ray", "job", "submit", "--", "dlshap", "run", "cluster=address", *settings(inputs, store)]
    job = subprocess.run(submit, env=head, capture_output=True, text=True, timeout=240)
    assert job.returncode == 0, job.stdout + job.stderr
    assert re.search(r"Job '\w+' succeeded", job.stdout)
    assert pipeline.open_store(store).complete
    assert values(store) == values(finished)


def free_ports(n: int) -> list[int]:
    """Ports that nothing listens at, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


def processes_with(text: str) -> list[str]:
    """Command lines of the processes that name some text, for a few seconds at most while there are any."""
    deadline = time.monotonic() + 10
    while found := [line for process in psutil.process_iter() if text in (line := command_line(process))]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return found


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""
