"""Drills of a cluster whose nodes are machines of their own (machines.py): what goes away, comes late, or is odd there.
After each the store has the values of an undisturbed run. Seconds are logged (-rP --log-level=INFO), not judged."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pipeline
from tests.pipeline.conftest import Inputs, random_sequences, write_fasta
from tests.pipeline.faults.commands import Command, record, wait_until
from tests.pipeline.faults.conftest import TARGET, check_whole
from tests.pipeline.faults.evils import FOR_EVER, environment, evil
from tests.pipeline.faults.machines import ADDRESSES, PORT, ROOT, Machines, machines, unavailable
from tests.pipeline.object_store import CREDENTIALS

REASON = unavailable()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(REASON), reason=REASON),
]

LOG = logging.getLogger(__name__)
N_ROWS = 18
ALL: dict[str, dict[str, str]] = {"head": {}, "w1": {}, "w2": {}}
PYTHON = [sys.executable, "-m", "pipeline"]
HEAD = f"{ADDRESSES['head']}:{PORT}"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Machines on which a shard takes a second and little of a processor."""
    with machines(**environment(tmp_path_factory.mktemp("net"), evil("compute", "sleep", None, FOR_EVER, 1.0))) as net:
        yield net


@dataclass
class Drill:
    """A run of 18 shards on the machines.

    Attributes:
        settings: of the run, but for where and how.
        digest: of an undisturbed run.
        s3: URL of its store, where that is not on the disk.
    """

    net: Machines
    inputs: Inputs
    store: Path
    digest: str
    s3: str = ""

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def run(self, machine: str, *more: str, limit: Sequence[str] = (), **environment: str) -> Command:
        """Start the command on a machine."""
        own = [TARGET, "store.rows_per_shard=1", "cluster=address", f"cluster.address={HEAD}"]
        given = {override.partition("=")[0] for override in more}
        kept = [override for override in own if override.partition("=")[0] not in given]
        self.began = time.monotonic()
        words = [*limit, *PYTHON, "run", *self.inputs.overrides(self.store, *kept, *more)]
        return self.net.start(machine, words, **environment)

    @property
    def n_done(self) -> int:
        done = Path(f"{self.store}.run/done")
        return sum(path.suffix == ".json" for path in done.iterdir()) if done.is_dir() else 0

    def at(self, n: int, command: Command, seconds: float = 400) -> None:
        """Wait until so many shards are done."""
        wait_until(lambda: self.n_done >= n or command.poll() is not None, seconds, f"{n} shards: {command.err}")
        assert command.poll() is None, command.err
        self.tell(f"{self.n_done} shards done")
        self.began = time.monotonic()

    def tell(self, what: str) -> None:
        LOG.info("%.1f s: %s", time.monotonic() - self.began, what)

    def ends(self, command: Command, code: int, seconds: float = 400) -> str:
        """What a command says that ends with this exit code."""
        assert command.wait(seconds) == code, command.err
        self.tell(f"ended with {code}")
        LOG.info(command.err + command.out)
        return command.err

    def whole(self) -> None:
        """The store is that of an undisturbed run."""
        check_whole(self.store, self.digest)


@pytest.fixture(scope="module")
def many(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """18 sequences, and a model whose file can be hidden from a machine."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "model").mkdir()
    weights = Path(shutil.copy(inputs.weights, folder / "model"))
    return Inputs(write_fasta(folder / "many.fa", random_sequences(N_ROWS, seed=5)), weights)


@pytest.fixture(scope="module")
def undisturbed(many: Inputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    store = tmp_path_factory.mktemp("undisturbed") / "a.zarr"
    assert pipeline.run(many.overrides(store, "store.rows_per_shard=1")).complete
    return pipeline.open_store(store).digest()


@pytest.fixture
def drill(net: Machines, many: Inputs, undisturbed: str, tmp_path: Path) -> Drill:
    return Drill(net, many, net.folder / f"{tmp_path.name}.zarr", undisturbed)


def by_worker(store: Path) -> Counter[str]:
    """Shards done by each worker, which is machine:process."""
    return Counter(json.loads(path.read_text())["worker"] for path in Path(f"{store}.run/done").iterdir())


def workers(store: Path) -> set[str]:
    """Machines that have done shards."""
    return {worker.partition(":")[0] for worker in by_worker(store)}


# --- where a run is started -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["head", "w1"])
def test_a_run_from_any_machine_of_the_cluster(drill: Drill, machine: str) -> None:
    drill.net.ray(**ALL)
    drill.ends(drill.run(machine), 0)
    assert workers(drill.store) == set(ALL)
    drill.whole()


def test_a_run_from_outside_is_refused(drill: Drill) -> None:
    drill.net.ray(**ALL)
    drill.net.up("out")
    err = drill.ends(drill.run("out"), 2)
    assert "this machine is not in that cluster (no Ray runs here)" in err
    assert not drill.store.exists()


def test_two_drivers_share_the_work_and_each_reports_its_own(drill: Drill) -> None:
    drill.net.ray(**ALL)
    both = [drill.run(machine, "cluster.actors=1") for machine in ("w1", "w2")]
    n_rows = []
    for command in both:
        drill.ends(command, 0)
        n_rows.append(rows_of(command))
    assert N_ROWS <= sum(n_rows) <= N_ROWS + 2, "they may meet at a shard"
    assert min(n_rows) > N_ROWS // 8
    drill.whole()


def rows_of(command: Command) -> int:
    """Rows that a command says it has computed."""
    (found,) = re.findall(r"\((\d+|all) of them in", command.out) or ["0"]
    return N_ROWS if found == "all" else int(found)


# --- what goes away -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [["w1"], ["w1", "w2"]], ids="-".join)
def test_nodes_are_lost_at_once(drill: Drill, lost: list[str]) -> None:
    drill.net.ray(**ALL)
    command = drill.run("head")
    drill.at(6, command)
    drill.net.off(*lost)
    drill.ends(command, 0)
    drill.whole()


@pytest.mark.parametrize("seconds", [12, 70])
def test_a_node_is_cut_off_for_a_while(drill: Drill, seconds: int) -> None:
    drill.net.ray(**ALL)
    command = drill.run("head")
    drill.at(6, command)
    drill.net.cut("w1")
    with contextlib.suppress(AssertionError):
        command.wait(seconds)
    drill.net.mend("w1")
    drill.tell(f"mended, {drill.n_done} shards done")
    drill.ends(command, 0)
    drill.whole()
    if seconds > 30:
        drill.net.no_ray()


def test_the_drivers_node_is_cut_off_for_a_moment(drill: Drill) -> None:
    drill.net.ray(**ALL)
    command = drill.run("w1")
    drill.at(6, command)
    drill.net.cut("w1")
    time.sleep(8)
    drill.net.mend("w1")
    drill.ends(command, 0)
    drill.whole()


@pytest.mark.parametrize("how", ["off", "cut"])
def test_the_head_is_lost(drill: Drill, how: str) -> None:
    drill.net.ray(**ALL)
    command = drill.run("w1")
    drill.at(6, command)
    getattr(drill.net, how)("head")
    err = drill.ends(command, 75)
    assert "the head of the Ray cluster" in err.splitlines()[-1]
    assert "the head of the Ray cluster" in record(drill.store)["error"]
    if how == "cut":
        drill.net.mend("head")
        drill.net.no_ray()
    drill.net.ray(**ALL)
    drill.ends(drill.run("w2"), 0)
    drill.whole()


def test_the_head_begins_again_under_the_same_address(drill: Drill) -> None:
    """It knows nothing of the run: that is as good as lost."""
    drill.net.ray(**ALL)
    command = drill.run("w1")
    drill.at(6, command)
    drill.net.off("head")
    drill.net.up("head")
    drill.net.join("head")
    drill.tell("the head is up again")
    drill.ends(command, 75)
    drill.net.no_ray()
    drill.net.ray(**ALL)
    drill.ends(drill.run("w1"), 0)
    drill.whole()


SCRAPE = """
import glob, json, os, urllib.request
(found,) = glob.glob(os.environ["RAY_TMPDIR"] + "/ray/prom_metrics_service_discovery.json")
for group in json.load(open(found)):
    for target in group["targets"]:
        print(urllib.request.urlopen(f"http://{target}/metrics", timeout=5).read().decode())
"""


def test_prometheus_is_told_how_a_run_stands(drill: Drill, slow: dict[str, str]) -> None:
    """As it scrapes the nodes that Ray lists for it."""
    drill.net.no_ray()
    drill.net.up("head")
    drill.net.join("head", more=["--include-dashboard=true"], **slow)
    try:
        command = drill.run("head")
        drill.at(3, command)

        def told() -> float:
            text = drill.net.do("head", [sys.executable, "-c", SCRAPE])
            rows = re.findall(
                rf'^ray_dlshap_rows{{.*store="{re.escape(str(drill.store))}".*}} (\S+)$', text, re.M | re.I
            )
            return max(map(float, rows), default=0.0)

        wait_until(lambda: told() >= 3, 60, "rows of this run at Prometheus")
        drill.ends(command, 0)
        drill.whole()
    finally:
        drill.net.no_ray()


def test_a_killed_driver_leaves_nothing_running(drill: Drill) -> None:
    drill.net.ray(**ALL)
    command = drill.run("w1")
    drill.at(6, command)
    command.kill()
    drill.began = time.monotonic()
    wait_until(lambda: not any(drill.net.pids(machine, "MapWorker") for machine in ALL), 120)
    drill.tell("no worker is left")
    status = drill.net.do("w1", [*PYTHON, "status", str(drill.store)])
    assert "killed" in status or "died" in status, status
    drill.ends(drill.run("w2"), 0)
    drill.whole()


def test_nodes_that_are_lost_and_come_again(drill: Drill) -> None:
    """As spot machines do: one of two goes every ten seconds, and another comes in its place."""
    drill.net.ray(**ALL)
    command = drill.run("head", "cluster.min_actors=1", "cluster.max_actors=3")
    n_lost = 0
    drill.at(3, command)
    while command.poll() is None and n_lost < 4:
        name = ("w1", "w2")[n_lost % 2]
        drill.net.off(name)
        n_lost += 1
        drill.net.up(name)
        drill.net.join(name)
        with contextlib.suppress(AssertionError):
            command.wait(10)
    drill.ends(command, 0)
    LOG.info("%d nodes lost; %.2f shards/s", n_lost, N_ROWS / (time.monotonic() - drill.began))
    drill.whole()


# --- machines that are odd ------------------------------------------------------------------------------------------


SLOW_S = 6.0


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    """Of a node on which a shard takes so long that others can join in the midst of a run."""
    return environment(tmp_path / "slow", evil("compute", "sleep", None, FOR_EVER, SLOW_S))


def grows(drill: Drill, around: Mapping[str, str], cpus: int = 0) -> None:
    """Have a cluster of Ray's pretended autoscaler on the machine head: up to three workers, and none to begin with."""
    drill.net.no_ray()
    drill.net.up("head")
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3}
    empty: dict[str, Any] = {name: {} for name in ("auth", "docker", "file_mounts")}
    lists = [f"{which}{kind}_commands" for kind in ("setup", "start_ray") for which in ("head_", "worker_")]
    config = {
        "cluster_name": "growing",
        "max_workers": 3,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 1.0,
        "provider": {"type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
        **empty,
        **{name: [] for name in [*lists, "setup_commands", "initialization_commands", "cluster_synced_files"]},
        "file_mounts_sync_continuously": False,
    }
    path = drill.net.folder / "growing.yaml"
    path.write_text(json.dumps(config))
    pretended = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    more = [f"--autoscaling-config={path}", f"--num-cpus={cpus}"]
    drill.net.join("head", more=more, **pretended, **around)


def test_a_pool_grows_with_its_cluster(drill: Drill, slow: dict[str, str]) -> None:
    grows(drill, slow)
    try:
        drill.ends(drill.run("head", "cluster.min_actors=1", "cluster.max_actors=3"), 0)
        assert len(by_worker(drill.store)) > 1, "nodes came while the first was at work"
        drill.whole()
    finally:
        drill.net.no_ray()


def test_a_late_node_without_the_model_is_left_out(drill: Drill, slow: dict[str, str]) -> None:
    drill.net.ray(head=slow, w1=slow)
    drill.net.up("w2")
    drill.net.do("w2", ["mount", "-t", "tmpfs", "tmpfs", str(drill.inputs.weights.parent)])
    try:
        command = drill.run("head", "cluster.min_actors=1", "cluster.max_actors=3")
        drill.at(2, command)
        drill.net.join("w2", **slow)
        drill.tell(f"w2 has joined, {drill.n_done} shards done")
        err = drill.ends(command, 0)
        assert re.search(r"left out from now on, and others go on: .*w2", err)
        assert workers(drill.store) == {"head", "w1"}
        drill.whole()
    finally:
        drill.net.do("w2", ["umount", str(drill.inputs.weights.parent)])
        drill.net.no_ray()


def test_another_token_is_refused_at_once(drill: Drill) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    drill.net.ray(head=token, w1=token)
    try:
        for given in "b" * 64, "":
            command = drill.run("w1", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=given)
            err = drill.ends(command, 2, 60)
            assert "token" in err.splitlines()[-1]
        drill.ends(drill.run("w1", **token), 0)
        drill.whole()
    finally:
        drill.net.no_ray()


def test_machines_that_are_poor(drill: Drill) -> None:
    """/dev/shm of 16 MB, 256 files that may be open and no right to have more, and a home that cannot be written."""
    drill.net.no_ray()
    drill.net.off(*(name for name in ALL if name in drill.net.names))
    drill.net.up("w1", shm="16m")
    drill.net.up("head", "w2")
    few_files = ["prlimit", "--nofile=256:256"]
    drill.net.do("w2", ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(drill.net.own / "home")])
    drill.net.join("head")
    drill.net.join("w1", few_files)
    drill.net.join("w2")
    wait_until(lambda: drill.net.n_nodes() == 3, 200)
    try:
        drill.ends(drill.run("w1", limit=few_files), 0)
        assert workers(drill.store) == set(ALL)
        drill.whole()
    finally:
        drill.net.no_ray()


def test_a_node_without_the_model_is_left_out(drill: Drill) -> None:
    drill.net.ray(**ALL)
    drill.net.do("w1", ["mount", "-t", "tmpfs", "tmpfs", str(drill.inputs.weights.parent)])
    try:
        err = drill.ends(drill.run("head"), 0)
        assert re.search(r"left out, as it cannot work on this run: node w1 \(10\.77\.0\.2\): .* is not there", err)
        assert workers(drill.store) == {"head", "w2"}
        drill.whole()
    finally:
        drill.net.do("w1", ["umount", str(drill.inputs.weights.parent)])


def test_a_node_with_other_code_is_left_out(drill: Drill, tmp_path: Path) -> None:
    """One with another dlshap of the same version, one with another class of the model's name."""
    other = tmp_path / "other"
    for name in ("pipeline", "dlshap_core", "conf", "tests"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "pipeline" / "__init__.py").open("a") as file:
        file.write("\n# patched here\n")
    net_py = "from tests.pipeline.faults.chaos import ChaosNet\n\n\nclass Net(ChaosNet):\n    VERSION = {}\n"
    for name, version in {"head": 1, "w1": 1, "w2": 2}.items():
        (drill.net.folder / name).mkdir(exist_ok=True)
        (drill.net.folder / name / "net.py").write_text(net_py.format(version))
    drill.net.ray(head={}, w1={"PYTHONPATH": str(other)}, w2={})
    model = f"model._target_={drill.net.own}/net.py:Net"
    err = drill.ends(drill.run("head", model), 0)
    assert re.search(r"node w1 .*its dlshap has other source files than the one that planned the run", err)
    assert re.search(r"node w2 .*net\.py", err)
    assert workers(drill.store) == {"head"}
    drill.whole()


def test_a_narrow_cable(drill: Drill) -> None:
    drill.net.ray(**ALL)
    drill.net.slow("w1")
    try:
        drill.ends(drill.run("head"), 0)
    finally:
        drill.net.quick("w1")
    drill.whole()


def test_a_disk_that_fills_and_is_freed(drill: Drill) -> None:
    drill.net.ray(**ALL)
    drill.store = drill.net.disk / "a.zarr"
    ballast = drill.net.disk / "ballast"
    command = drill.run("w1")
    drill.at(4, command)
    status = os.statvfs(drill.net.disk)
    ballast.write_bytes(bytes(status.f_bavail * status.f_frsize))
    err = drill.ends(command, 1)
    assert "No space left on device" in err.splitlines()[-1]
    ballast.unlink()
    drill.ends(drill.run("w1"), 0)
    drill.whole()


# --- an object store ------------------------------------------------------------------------------------------------

ON_S3 = [f"store.options.endpoint=http://{ADDRESSES['s3']}:9000", "store.options.region=us-east-1"]
OPTIONS = [f"--option={each.removeprefix('store.options.')}" for each in ON_S3]
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


@pytest.fixture
def on_s3(drill: Drill) -> Drill:
    drill.net.ray(head={}, w1={})
    drill.s3 = f"{drill.net.s3()}/{drill.store.name}"
    return drill


def whole_on_s3(drill: Drill) -> None:
    said = drill.net.do("s3", [*PYTHON, "verify", drill.s3, *OPTIONS, "--json"])
    assert json.loads(said)["sound"], said
    options = dict(each.removeprefix("--option=").split("=") for each in OPTIONS)
    digest = f"import pipeline; print(pipeline.open_store({drill.s3!r}, options={options!r}).digest())"
    assert drill.net.do("s3", [sys.executable, "-c", digest]).strip() == drill.digest


@pytest.mark.parametrize("hours", [0, 1])
def test_two_drivers_on_s3(on_s3: Drill, hours: int) -> None:
    """The clock of one of them may be off: leases and signs of life do not compare clocks."""
    library = os.environ.get("DLSHAP_FAKETIME", FAKETIME)
    if hours and not Path(library).exists():
        pytest.skip(f"no libfaketime: neither {FAKETIME} nor DLSHAP_FAKETIME")
    off = {"LD_PRELOAD": library, "FAKETIME": f"+{hours}h"} if hours else {}
    both = [
        on_s3.run(machine, "cluster.actors=1", *ON_S3, f"store.path={on_s3.s3}", **around)
        for machine, around in {"head": {}, "w1": off}.items()
    ]
    errors, n_rows = [on_s3.ends(command, 0) for command in both], [rows_of(command) for command in both]
    assert sum("1 other command at work on this store" in err for err in errors) == 1
    assert N_ROWS <= sum(n_rows) <= N_ROWS + 2, "they may meet at a shard"
    assert min(n_rows) > N_ROWS // 8
    whole_on_s3(on_s3)


def test_a_node_without_credentials_is_left_out(on_s3: Drill) -> None:
    on_s3.net.off("w1")
    on_s3.net.up("w1")
    on_s3.net.join("w1", limit=["env", *(word for name in CREDENTIALS for word in ("-u", name))])
    try:
        err = on_s3.ends(on_s3.run("head", *ON_S3, f"store.path={on_s3.s3}"), 0)
        assert re.search(r"left out, as it cannot work on this run: node w1 .*credentials", err)
        whole_on_s3(on_s3)
    finally:
        on_s3.net.no_ray()


def test_an_object_store_that_is_away_for_a_while(on_s3: Drill) -> None:
    command = on_s3.run("w1", *ON_S3, f"store.path={on_s3.s3}")
    wait_until(lambda: "rows/s" in command.err or command.poll() is not None, 400)
    on_s3.net.cut("s3")
    time.sleep(20)
    on_s3.net.mend("s3")
    on_s3.ends(command, 0)
    whole_on_s3(on_s3)
