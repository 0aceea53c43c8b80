"""What dlshap needs of Ray that Ray does not promise: a test for each, which fails when Ray takes it away."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray
from ray._common.usage import usage_constants
from ray._private import ray_constants, services, utils, worker
from ray.data import DataContext

from pipeline.execution.executors import ray_private


def test_target_max_block_size() -> None:
    context = DataContext.get_current().copy()
    assert context.target_max_block_size != 1, "as Ray has it"
    ray_private.report_at_once(context)
    assert context.target_max_block_size == 1


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
    for name in ("RAY_BACKEND_LOG_LEVEL", "process_group_cleanup_enabled"):
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
    for made in (folder, deep, deeper, Path(short), elsewhere):
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
