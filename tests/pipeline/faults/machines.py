"""Machines of a small cluster on this one. Each has network, mount, host-name, IPC and process namespaces of its own,
and so an address, a /dev/shm, a home and a folder for Ray; files elsewhere are a disk that all share. A bridge in a
namespace joins them, so that nothing of it is seen outside. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.pipeline.faults.commands import Command, wait_until
from tests.pipeline.object_store import CREDENTIALS

ROOT = Path(__file__).parents[3]
ADDRESSES = {name: f"10.77.0.{number}" for name, number in {"head": 1, "w1": 2, "w2": 3, "s3": 9, "out": 20}.items()}
PORT = 6379
DISK = 4_000_000  # bytes of the small disk
TOOLS = ("ip", "unshare", "nsenter", "mount")
RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_worker_niceness": "0",  # or they wait for whatever else this machine does
    "RAY_memory_monitor_refresh_ms": "0",  # the memory of this machine is for all that it does, too
}
INIT = """set -e
hostname "$0"
mount --make-rprivate /
mount -t tmpfs -o size="$1" tmpfs /dev/shm
mount --bind "$2" "$3"
echo up
exec > /dev/null
while :; do sleep 1000 & wait; done
"""
BUCKET = f"http://{ADDRESSES['s3']}:9000/lab"


def unavailable() -> str:
    """Why there can be no such machines here; "" where there can."""
    if os.geteuid() != 0:
        return "machines in network namespaces need root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"machines in network namespaces need {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return tried.stderr.strip()


class Machines:
    """Machines that come and go.

    Attributes:
        folder: of their disks.
        own: another folder on each of them.
        disk: a small one that all share.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self._environment = folder, environment
        self._mount(folder, "1g")  # in memory: disks are busy where tests run, and every shard waits for them
        self.own = folder / "own"
        self.own.mkdir()
        self.disk = folder / "disk"
        self.disk.mkdir()
        self._mount(self.disk, str(DISK))
        self._init: dict[str, psutil.Process] = {}  # of each machine that is up: its first process
        self._outer: dict[str, subprocess.Popen[str]] = {}  # and what started that
        self._ray: dict[str, Mapping[str, str]] = {}  # what Ray was started with, where it runs
        self._started: list[subprocess.Popen[bytes]] = []
        self._switch = f"{folder.name}-sw"
        self._ip("netns", "add", self._switch)
        self._in_switch("link", "add", "br0", "type", "bridge")
        self._in_switch("link", "set", "br0", "up")

    @property
    def names(self) -> list[str]:
        """The machines that are up."""
        return list(self._init)

    # machines and their network

    def up(self, *names: str, shm: str = "256m") -> None:
        """Have these machines, as they are where they are there."""
        for name in names:
            if name not in self._init:
                self._make(name, shm)

    def _make(self, name: str, shm: str) -> None:
        space, disk = self._space(name), self.folder / name
        (disk / "home").mkdir(parents=True, exist_ok=True)
        if not Path(f"/run/netns/{space}").exists():
            self._ip("netns", "add", space)
            self._ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", f"p{name}", "netns", self._switch)
            self._in_switch("link", "set", f"p{name}", "master", "br0", "up")
            self._ip("-n", space, "addr", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                self._ip("-n", space, "link", "set", device, "up")
        apart = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with (self.folder / f"{name}.log").open("w") as log:
            outer = subprocess.Popen(
                ["ip", "netns", "exec", space, *apart, "bash", "-c", INIT, name, shm, disk, self.own],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert outer.stdout is not None
        with outer.stdout:
            assert outer.stdout.readline() == "up\n", (self.folder / f"{name}.log").read_text()
        (self._init[name],) = psutil.Process(outer.pid).children()
        self._outer[name] = outer

    def off(self, *names: str) -> None:
        """Power off: every process is killed at once; the disk stays."""
        for name in names:
            self._init.pop(name).kill()
            self._outer.pop(name).wait(20)
            self._ray.pop(name, None)

    def cut(self, name: str) -> None:
        """Pull the network cable."""
        self._in_switch("link", "set", f"p{name}", "down")

    def mend(self, name: str) -> None:
        self._in_switch("link", "set", f"p{name}", "up")

    def slow(self, name: str) -> None:
        """A narrow cable: 4 Mbit/s, in bursts of 16 kB, with up to 300 ms of waiting."""
        shape = ["root", "tbf", "rate", "4mbit", "burst", "16kb", "latency", "300ms"]
        subprocess.run(["tc", "-n", self._switch, "qdisc", "add", "dev", f"p{name}", *shape], check=True)
        subprocess.run(["tc", "-n", self._space(name), "qdisc", "add", "dev", "eth0", *shape], check=True)

    def quick(self, name: str) -> None:
        """As before `slow`."""
        subprocess.run(["tc", "-n", self._switch, "qdisc", "del", "dev", f"p{name}", "root"], check=True)
        subprocess.run(["tc", "-n", self._space(name), "qdisc", "del", "dev", "eth0", "root"], check=True)

    # what runs on them

    def start(self, name: str, arguments: Sequence[str], **environment: str) -> Command:
        """Start a program on a machine; the pid is the program's own, seen from here."""
        output = str(self.folder / f"command-{len(self._started)}")
        with open(output + ".out", "w") as out, open(output + ".err", "w") as err:
            process = subprocess.Popen(
                [*self._enter(name), *arguments], stdout=out, stderr=err, env=self._around(environment)
            )
        self._started.append(process)

        def ended(timeout: float) -> int | None:
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                return None

        def within() -> list[psutil.Process]:
            return psutil.Process(process.pid).children() if process.poll() is None else [psutil.Process()]

        return Command(wait_until(within, 10)[0].pid, output, ended)

    def do(self, name: str, arguments: Sequence[str], timeout: float = 200, **environment: str) -> str:
        """Run a program on a machine, which must succeed; what it prints."""
        done = subprocess.run(
            [*self._enter(name), *arguments],
            env=self._around(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ray(self, **nodes: Mapping[str, str]) -> str:
        """Have Ray on these machines, started with these variables, and on no other; the address of its head."""
        if self._ray != nodes or not all(self.pids(name, "raylet/raylet") for name in nodes):
            self.no_ray()
            self.up(*nodes)
            self.join("head", **nodes["head"])
            with ThreadPoolExecutor() as at_once:
                others = [name for name in nodes if name != "head"]
                list(at_once.map(lambda name: self.join(name, **nodes[name]), others))
            wait_until(lambda: self.n_nodes() == len(nodes), 200)
        return f"{ADDRESSES['head']}:{PORT}"

    def join(self, name: str, limit: Sequence[str] = (), more: Sequence[str] = (), **environment: str) -> None:
        """Start Ray on a machine.

        Args:
            limit: a command before that of Ray, such as prlimit.
            more: options of Ray's.
        """
        here, head = ADDRESSES[name], f"{ADDRESSES['head']}:{PORT}"
        which = ["--head", f"--port={PORT}", "--include-dashboard=false"] if name == "head" else [f"--address={head}"]
        room = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"]
        ray = [str(Path(sys.executable).parent / "ray"), "start"]
        words = [*limit, *ray, *which, f"--node-ip-address={here}", *room, *more]
        wait_until(lambda: self.start(name, words, **environment).wait(300) == 0, 300)  # Ray gives up where all is busy
        self._ray[name] = environment

    def no_ray(self) -> None:
        """End Ray on all machines, with whatever it runs, and what it keeps."""
        for name in list(self._ray):
            if name in self._init:
                self.off(name)
            self._ray.pop(name, None)
        for name in ADDRESSES:
            shutil.rmtree(self.folder / name / "ray", ignore_errors=True)

    def n_nodes(self) -> int:
        """Nodes that Ray's head takes for alive."""
        ray = str(Path(sys.executable).parent / "ray")
        words = [ray, "status", f"--address={ADDRESSES['head']}:{PORT}"]
        return self.do("head", words, **self._ray["head"]).count("1 node_")

    def s3(self, **environment: str) -> str:
        """Start an S3 server on the machine s3, with an empty bucket; the URL of the bucket."""
        self.up("s3")
        server = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", ADDRESSES["s3"], "-p", "9000"]
        self.start("s3", server, **environment)
        make = f"import urllib.request as u; u.urlopen(u.Request({BUCKET!r}, method='PUT'), timeout=5)"
        wait_until(lambda: self.start("s3", [sys.executable, "-c", make]).wait() == 0, 60, "an S3 server with a bucket")
        return "s3://lab"

    def pids(self, name: str, pattern: str = "") -> list[psutil.Process]:
        """Processes of a machine that have this text in their command line and are not dead."""
        if name not in self._init:
            return []
        space = os.readlink(f"/proc/{self._init[name].pid}/ns/pid")

        def is_there(process: psutil.Process) -> bool:
            with suppress(psutil.Error, OSError):
                is_its = os.readlink(f"/proc/{process.pid}/ns/pid") == space
                return is_its and pattern in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
            return False

        return list(filter(is_there, psutil.process_iter()))

    def close(self) -> None:
        """End all of it."""
        self.off(*list(self._init))
        for process in self._started:
            process.wait(20)
        wait_until(lambda: not any(map(self._is_busy, Path("/run/netns").glob(f"{self.folder.name}-*"))), 20)
        for space in Path("/run/netns").glob(f"{self.folder.name}-*"):
            self._ip("netns", "del", space.name)
        subprocess.run(["umount", "-l", self.disk, self.folder], check=True)

    def _is_busy(self, space: Path) -> bool:
        return bool(subprocess.run(["ip", "netns", "pids", space.name], capture_output=True, text=True).stdout)

    def _enter(self, name: str) -> list[str]:
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        return ["nsenter", f"--target={self._init[name].pid}", *spaces, "env", f"--chdir={self.own / 'home'}"]

    def _around(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        own = {"PYTHONPATH": str(ROOT), "HOME": str(self.own / "home"), "TMPDIR": str(self.own)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**kept, **own, "PATH": path, "RAY_TMPDIR": str(self.own), **RAY, **self._environment, **more}

    def _space(self, name: str) -> str:
        return f"{self.folder.name}-{name}"

    def _mount(self, folder: Path, size: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    def _in_switch(self, *arguments: str) -> None:
        self._ip("-n", self._switch, *arguments)


@contextmanager
def machines(**environment: str) -> Iterator[Machines]:
    """Machines that are all gone at the end. Paths of Ray's sockets are too long in pytest's folders."""
    folder = Path(tempfile.mkdtemp(prefix="dls", dir="/var/tmp"))
    try:
        found = Machines(folder, {**CREDENTIALS, **environment})
        try:
            yield found
        finally:
            found.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
