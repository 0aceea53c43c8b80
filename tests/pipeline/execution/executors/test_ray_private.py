"""What dlshap needs of Ray that Ray does not promise: a test for each, which fails when Ray takes it away."""

from __future__ import annotations

import logging
import os
import platform
import queue
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
import ray
import ray.exceptions
from ray._common.usage import usage_constants, usage_lib
from ray._private import ray_constants, services, utils, worker
from ray._raylet import GcsClient
from ray.data import DataContext

from pipeline.config.schema import EngineConfig
from pipeline.execution.executors import ray_private
from pipeline.execution.executors.local import Local, LocalRayExecutor
from pipeline.messages.errors import EXIT_STOPPED, RunError, Stopped
from pipeline.store.backends.scratch import remove_folder


def test_target_max_block_size() -> None:
    context = DataContext.get_current().copy()
    assert context.target_max_block_size != 1, "as Ray has it"
    ray_private.report_at_once(context)
    assert context.target_max_block_size == 1


def test_print_to_stdstream(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """What Ray tells the driver is for the log of the run."""
    caplog.set_level(logging.DEBUG, "dlshap.ray")
    with ray_private.words_logged():
        worker.print_to_stdstream({"lines": ["\x1b[33mdied\x1b[0m", "why"], "pid": "raylet", "is_err": False}, False)
    assert caplog.messages == ["died\nwhy"]
    assert capsys.readouterr() == ("", "")


def test_py_driver_sys_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not search the working folder."""
    monkeypatch.chdir(tmp_path)
    config = ray_private.without_working_folder()
    config._py_driver_sys_path.extend(["/scripts", os.path.abspath(os.curdir)])  # as Ray does
    assert config._serialize().count(str(tmp_path).encode()) == 0
    assert b"/scripts" in config._serialize()


def test_variables_of_the_environment_are_rays() -> None:
    folder = Path(ray.__file__).parent
    assert usage_constants.USAGE_STATS_ENABLED_ENV_VAR == "RAY_USAGE_STATS_ENABLED"
    read_in_python = {
        "RAY_IGNORE_UNHANDLED_ERRORS": "_private/worker.py",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "_private/accelerators/__init__.py",
    }
    for name, path in read_in_python.items():
        assert name in (folder / path).read_text(), f"{path} does not read {name} any more"
    native = (folder / "_raylet.so").read_bytes()
    native_names = ("RAY_BACKEND_LOG_LEVEL", "process_group_cleanup_enabled", "gcs_rpc_server_reconnect_timeout_s")
    reconnecting = [f"gcs_grpc_{which}_reconnect_backoff_ms" for which in ("initial", "min", "max")]
    for name in (*native_names, *reconnecting, "get_check_signal_interval_milliseconds"):
        assert name.encode() in native, f"Ray's native part does not know {name} any more"


def test_enable_ray_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray for this machine alone has the address that only this machine reaches."""
    monkeypatch.setattr(worker, "_global_node", None)
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    with ray_private.on_loopback():
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda address: "192.0.2.7")
    assert services.get_node_ip_address() == "192.0.2.7"


TOKENS = """
import os
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode
from pipeline.execution.executors import ray_private

def asked_for():
    is_on = get_authentication_mode() == AuthenticationMode.TOKEN
    return AuthenticationTokenLoader.instance().get_raw_token() if is_on else None

seen = set()
for mode, before in [("disabled", None), ("token", "a" * 64)]:
    given = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "a" * 64}
    os.environ.update(given)
    ray_private._read_authentication_again()
    with ray_private.own_token():
        assert asked_for() == os.environ["RAY_AUTH_TOKEN"]
        seen.add(asked_for())
    assert asked_for() == before, asked_for()
    assert {name: os.environ[name] for name in given} == given
assert [len(token) for token in seen] == [64, 64]
"""


def test_auth_token(tmp_path: Path) -> None:
    """Each time a new token, in the environment alone, and then what was asked for before. In a process of its own, as
    an instance that runs would miss its token."""
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", TOKENS], env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_the_folder_is_closed_and_its_paths_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    short = tempfile.mkdtemp(prefix="x", dir="/tmp")
    deep = Path(short) / ("d" * (23 - len(short) - 1))
    deep.mkdir()
    monkeypatch.setenv(name, str(deep))
    folder = Path(ray_private.own_folder())
    assert folder.parent == deep
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(f"{folder}/ray{ray_private.SOCKET}") == ray_private.LONGEST_PATH
    assert caplog.messages == []
    deeper = Path(f"{deep}d")
    deeper.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv(name, str(deeper))
    with caplog.at_level(logging.INFO):
        elsewhere = Path(ray_private.own_folder())
    assert elsewhere.parent == Path("/tmp")
    assert caplog.messages == [f"Ray's files go to /tmp: for its sockets {deeper} is too long (24 bytes, more than 23)"]
    for made in (folder, elsewhere):
        remove_folder(str(made))
    for made in (deep, deeper, Path(short)):
        made.rmdir()


def test_what_ray_changes_in_the_process_is_put_back() -> None:
    logger, limits = logging.getLogger("ray"), resource.getrlimit(resource.RLIMIT_NOFILE)
    before = logger.level, logger.propagate, list(logger.handlers)
    with ray_private.process_restored():
        logger.setLevel(1)
        logger.propagate = not before[1]
        logger.addHandler(logging.NullHandler())
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0] - 1, limits[1]))
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_set_sigterm_handler() -> None:
    """Ray's own handler would end the command with another exit code, without a word."""
    before, stderr = signal.getsignal(signal.SIGTERM), os.fstat(2)[1:3]
    with ray_private.quiet_start():
        utils.set_sigterm_handler(signal.SIG_IGN)  # as Ray does
        assert signal.getsignal(signal.SIGTERM) == before
        assert os.fstat(2)[1:3] == os.stat(os.devnull)[1:3]
    assert signal.getsignal(signal.SIGTERM) == before
    assert os.fstat(2)[1:3] == stderr


REFUSED = """
import sys
from pipeline.store.backends.scratch import remove_folder
from pipeline.execution.executors import ray_private
print(ray_private.refusal(sys.argv[1], False))
"""


def refusal_elsewhere(**variables: str) -> str:
    """In a process of its own, as a token is read once."""
    around = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | variables
    around["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, address], env=around, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_instance")
def test_refusals_of_a_ray_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    address = ray.get_runtime_context().gcs_address
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    assert refusal_elsewhere(**token) == "None"
    assert refusal_elsewhere().startswith("it asks for a token, and this command has none; set RAY_AUTH_MODE=token and")
    wrong = {**token, "RAY_AUTH_TOKEN": "ab" * 32}
    assert refusal_elsewhere(**wrong).startswith("it asks for another token than this command has")
    nowhere = {"RAY_AUTH_MODE": "token", "HOME": "/nowhere"}
    assert refusal_elsewhere(**nowhere).startswith("RAY_AUTH_MODE=token, and this command has no token: neither RAY_")
    lost = refusal_elsewhere(**nowhere, RAY_AUTH_TOKEN_PATH="/nowhere/token")
    assert lost.startswith("RAY_AUTH_MODE=token, and there is no token in RAY_AUTH_TOKEN_PATH=/nowhere/token; give the")
    assert ray_private.refusal(address, False) is None
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    assert "and this command Ray 2.0.0 on Python" in str(ray_private.refusal(address, False))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_gcs_storage() -> None:
    address = ray.get_runtime_context().gcs_address
    assert not ray_private.keeps_state(address)
    key, namespace = f"{usage_constants.EXTRA_USAGE_TAG_PREFIX}gcs_storage".encode(), b"usage_stats"
    for storage in (b"redis", b"memory"):
        GcsClient(address=address).internal_kv_put(key, storage, overwrite=True, namespace=namespace)
        assert ray_private.keeps_state(address) == (storage == b"redis")


class Gcs:
    """Of a cluster of one node; `answers`: what it says of itself."""

    answers: ClassVar[dict[str, str] | Exception] = {}

    def __init__(self, address: str) -> None:
        if isinstance(self.answers, Exception):
            raise self.answers

    def get_all_node_info(self, timeout: float) -> dict[ray.NodeID, None]:
        return {ray.NodeID(b"a" * 28): None}


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> type[Gcs]:
    monkeypatch.setattr(ray_private, "GcsClient", Gcs)
    monkeypatch.setattr(usage_lib, "get_cluster_metadata", lambda gcs: gcs.answers)
    monkeypatch.setattr(services, "find_node_ids", lambda: {(b"a" * 28).hex(), (b"b" * 28).hex()})
    monkeypatch.setattr(ray_private, "MEMBER_WAIT_S", 0)
    monkeypatch.setattr(Gcs, "answers", {})
    return Gcs


def test_a_cluster_that_this_machine_is_in_is_not_refused(gcs: type[Gcs]) -> None:
    same = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    for answers in ({}, same):
        gcs.answers = answers
        assert ray_private.refusal("h:1", False) is None


@pytest.mark.parametrize(("here", "why"), [([], "no Ray runs here"), (["ff" * 28], "its Ray belongs to another one")])
def test_a_machine_that_is_no_member_is_refused(
    gcs: type[Gcs], monkeypatch: pytest.MonkeyPatch, here: list[str], why: str
) -> None:
    monkeypatch.setattr(services, "find_node_ids", lambda: here)
    assert str(ray_private.refusal("h:1", False)).startswith(f"this machine is not in that cluster ({why}); run the ")


def test_other_versions_are_refused(gcs: type[Gcs]) -> None:
    gcs.answers = {"ray_version": "2.9.1", "python_version": "3.11.0"}
    text = f"it has Ray 2.9.1 on Python 3.11.0, and this command Ray {ray.__version__} on Python"
    assert str(ray_private.refusal("h:1", False)).startswith(text)


def test_a_token_is_asked_for(gcs: type[Gcs], monkeypatch: pytest.MonkeyPatch) -> None:
    gcs.answers = ray.exceptions.AuthenticationError("no")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert "it asks for a token, and this command has none" in str(ray_private.refusal("h:1", False))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    assert "it asks for another token" in str(ray_private.refusal("h:1", False))


def test_the_address_of_a_ray_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: frozenset({"192.0.2.7:6379"}))
    assert ray_private.found_address() == "192.0.2.7:6379"
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: frozenset())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    with pytest.raises(ConnectionError):
        ray_private.found_address()


def test_whoever_is_stopped_with_its_ray_leaves_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is told first, and nothing of Ray decides about the exit code."""
    told: list[str] = []
    left: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(ray_private, "is_ending", lambda: bool(told))
    monkeypatch.setattr("os._exit", left.put)
    with Local().executor(EngineConfig()) as executor, executor.heard(told.append):
        assert isinstance(executor, LocalRayExecutor)
        with executor._watched_on_the_way_out():
            executor.ended_by(RunError("full"))
            executor.ended_by(Stopped(EXIT_STOPPED))
            assert left.get(timeout=9) == EXIT_STOPPED
    assert told == ["full", "stopped by SIGTERM"]
