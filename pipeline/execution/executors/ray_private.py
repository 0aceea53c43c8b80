"""What dlshap needs of Ray that Ray does not promise, each with the reason and with what breaks when it goes.

tests/pipeline/execution/executors/test_ray_private.py has a test for each, by its name.
"""

import contextlib
import faulthandler
import functools
import logging
import os
import platform
import re
import resource
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ray
from ray._common.usage import usage_lib
from ray._private import ray_constants, services, state, utils, worker
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray.data import DataContext
from ray.exceptions import AuthenticationError, RayError
from ray.job_config import JobConfig

from pipeline.execution.host import environment
from pipeline.messages.progress import LOG, RAY_LOG
from pipeline.store.backends.scratch import make_folder

# Environment variables of Ray. Without them: its native part writes to stderr what Ray Data does on purpose; usage is
# reported to the makers of Ray; a warning of a default to come; a terminal's Ctrl-C ends the workers, which are not in
# groups of their own; and tracebacks of Ray Data's statistics, whose actor may be killed as any other.
QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
# How often a thread that waits for Ray looks for signals; every second, where nobody says otherwise.
SOON = {"RAY_get_check_signal_interval_milliseconds": "20"}
STARTED_WITH = {
    **QUIET,
    **SOON,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_process_group_cleanup_enabled": "true",
}
# Of a cluster that runs: its native part ends this process 60 s after the head is gone, or as soon as it meets another
# head at its address, for which it would look every two seconds. See head_watch.py.
CONNECTED_WITH = {
    **QUIET,
    **SOON,
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    **{f"RAY_gcs_grpc_{which}_reconnect_backoff_ms": "10000" for which in ("initial", "min", "max")},
}

# What Ray puts below its folder for its sockets, at the longest, and the longest path that a socket may have.
SOCKET = "/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
LONGEST_PATH = 107

COLOUR = re.compile("\x1b\\[[0-9;]*m")

MEMBER_WAIT_S = 3.0  # for Ray to start on this machine


def report_at_once(context: DataContext) -> None:
    """An actor's output leaves it when it exists, not with the next ones: no block reaches the least size, one byte.

    Without `target_max_block_size`, progress comes in lumps, and a killed command has told nobody of finished shards.
    """
    context.target_max_block_size = 1


class _SearchedFirst(list[str]):
    """Folders that workers search for modules before all others, without the working folder."""

    def extend(self, folders: Iterable[str]) -> None:
        super().extend(folder for folder in folders if folder != os.getcwd())


def without_working_folder() -> JobConfig:
    """Ray adds the working folder to those that workers search first (`JobConfig._py_driver_sys_path`), where any
    zarr.py would be imported in place of the library. Workers of ours find the user's modules in another way
    (models/own_modules.py)."""
    config = JobConfig()
    config._py_driver_sys_path = _SearchedFirst()
    return config


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started within this context is reached from this machine alone, as Ray has it on Macs and Windows.

    Otherwise its nodes get the address by which other machines reach them, and eight ports listen on all interfaces.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def is_ending() -> bool:
    """Whether a process of the Ray that this one has started is gone."""
    node = worker._global_node
    groups: Iterable[Any] = () if node is None else node.all_processes.values()
    return any(each.process.poll() is not None for group in groups for each in group)


@contextlib.contextmanager
def own_process_groups() -> Iterator[None]:
    """A Ray that is started within this context is not in the process group of this command.

    A signal to that group (from `timeout`, a shell, a terminal) is for this command, which stops Ray in good order.
    Where Ray ends first, its native part ends this process with exit code 1 and without a word. Ray itself does so on
    Windows; as there, only where its processes are sure to end with this one.
    """
    before = services.ConsolePopen
    if utils.detect_fate_sharing_support():
        services.ConsolePopen = functools.partial(before, process_group=0)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = before  # type: ignore[misc]


@contextlib.contextmanager
def own_token() -> Iterator[None]:
    """A Ray that is started within this context refuses whoever does not have its token, which is in no file.

    Ray keeps tokens in ~/.ray/auth_token, with the permissions that the umask leaves. The environment of a process is
    read by its own user alone.
    """
    try:
        with environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}, replace=True):
            _read_authentication_again()
            yield
    finally:
        _read_authentication_again()


def _read_authentication_again() -> None:
    """Ray reads these variables once, when it is imported or first connected. The mode first: a thread that Ray leaves
    behind ends the process where it finds that a token is asked for and there is none."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def found_address() -> str:
    """host:port of the head that `ray.init` finds by itself; ConnectionError where no Ray is found here."""
    return str(services.canonicalize_bootstrap_address("auto"))


def refusal(address: str, is_found: bool) -> str | None:
    """Why a cluster that answers will not have this process. `ray.init` tries for a minute, and hides the cause.

    Args:
        address: host:port of its head.
        is_found: whether Ray has found it by itself, which then takes the token of ~/.ray, if any.
    """
    if is_found:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    if (why := _no_token()) is not None:
        return why
    try:
        gcs = GcsClient(address=address)
        theirs = usage_lib.get_cluster_metadata(gcs) or {}
        return _other_versions(theirs) or _no_member(gcs)
    except AuthenticationError:
        has_one = os.environ.get("RAY_AUTH_MODE") == "token"
        held = "another token than this command has" if has_one else "a token, and this command has none"
        return f"it asks for {held}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, as on its head"
    except RayError as error:
        return " ".join(str(error).split())[:500]


def _no_token() -> str | None:
    """Why this command has no token, though it is to give one: Ray's native part ends a process that looks in vain."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    try:
        has_one = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    except AuthenticationError:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        return (
            f"RAY_AUTH_MODE=token, and there is no token in RAY_AUTH_TOKEN_PATH={path}; give the file that its head has"
        )
    if has_one:
        return None
    return (
        "RAY_AUTH_MODE=token, and this command has no token: neither RAY_AUTH_TOKEN nor RAY_AUTH_TOKEN_PATH is set, "
        "and there is no ~/.ray/auth_token; set one of them as on its head"
    )


def _other_versions(theirs: Mapping[str, Any]) -> str | None:
    ours = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    if all(theirs.get(name, version) == version for name, version in ours.items()):
        return None
    return (
        f"it has Ray {theirs['ray_version']} on Python {theirs['python_version']}, and this command Ray "
        f"{ours['ray_version']} on Python {ours['python_version']}; Ray wants both the same, to the last number: use "
        f"one environment on all machines"
    )


def _no_member(gcs: Any) -> str | None:
    """A node that is just starting is waited for."""
    deadline = time.monotonic() + MEMBER_WAIT_S
    while True:
        alive = {node.hex() for node in gcs.get_all_node_info(timeout=MEMBER_WAIT_S)}
        here = set(services.find_node_ids())
        if alive & here:
            return None
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    another = "its Ray belongs to another one" if here else "no Ray runs here"
    return (
        f"this machine is not in that cluster ({another}); run the command on one of its machines, have this one join "
        f"it with `ray start`, or submit the command with `ray job submit`"
    )


def keeps_state(address: str) -> bool:
    """Whether a head goes on when it is started again, as it keeps its state on a disk or in Redis. It notes that for
    statistics, whether it sends them or not. True where it has noted nothing."""
    return usage_lib.get_extra_usage_tags_to_report(GcsClient(address=address)).get("gcs_storage") != "memory"


def n_actors_alive(name: str) -> int:
    """Actors of this command's that are up and whose class has this in its name, as Ray Data's have that of ours.
    The public list of actors asks a dashboard, which a Ray of our own has not."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    found = state.actors(job_id=job, actor_state_name="ALIVE").values()
    return sum(name in actor["ActorClassName"] for actor in found)


def free_by_node() -> dict[str, dict[str, float]]:
    """What is free on each node that is up, by the node's id."""
    return dict(state.available_resources_per_node())


def own_folder() -> str:
    """Make the folder, closed to others, that Ray's own goes into, which Ray opens to all.

    It lies where RAY_TMPDIR or TMPDIR says, or in /tmp where the paths of Ray's sockets would be too long.
    """
    parent, name = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "/dlshap-12345678/ray"
    length, most = len(os.fsencode(parent)), LONGEST_PATH - len(name) - len(SOCKET)
    if length > most:
        LOG.info(f"Ray's files go to /tmp: for its sockets {parent} is too long ({length} bytes, more than {most})")
        parent = "/tmp"
    return make_folder(parent)


@contextlib.contextmanager
def process_restored() -> Iterator[None]:
    """Put back what Ray changes in this process for good: its own loggers, the number of files that may be open, and
    whether tracebacks are printed at a crash."""
    logger = logging.getLogger("ray")
    before = logger.level, logger.propagate, list(logger.handlers)
    files, prints = resource.getrlimit(resource.RLIMIT_NOFILE), faulthandler.is_enabled()
    try:
        yield
    finally:
        logger.level, logger.propagate, logger.handlers = before
        logger.setLevel(before[0])  # also forgets what was worked out from the other level
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        if not prints:
            faulthandler.disable()


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Keep `ray.init` from replacing our handlers of signals, which end a command in good order, and from announcing
    the log level of its native part on stderr. Its failures are exceptions, and are seen."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    replaced, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = replaced
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.getsignal(number))  # its native part replaced what Python knows nothing of


@contextlib.contextmanager
def words_logged() -> Iterator[None]:
    """Within this context what Ray's processes tell the driver (the last lines of one that has died, of an autoscaler)
    goes to the logger `dlshap.ray`, not to stdout and stderr, as it does whatever `log_to_driver` says."""
    before = worker.print_to_stdstream

    def log(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        RAY_LOG.debug(COLOUR.sub("", "\n".join(map(str, data["lines"]))))

    worker.print_to_stdstream = log
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextlib.contextmanager
def errors_alone(name: str) -> Iterator[None]:
    """Within this context a logger of Ray's speaks of errors alone."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
