"""Ray on a machine that others use too: what of a run they reach."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import grpc
import psutil
import pytest

from pipeline.execution.executors import ray_private

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]
NOBODY = 65534


def node():  # type: ignore[no-untyped-def]
    """Ray's own description of the instance: its folder, its address, its sockets."""
    from ray._private.worker import _global_node

    return _global_node


def processes() -> list[psutil.Process]:
    """This one, and those of Ray below it; one that has ended, and is not waited for yet, has no command line."""
    here = psutil.Process()
    alive = (each for each in here.children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE)
    return [here, *(each for each in alive if "ray" in " ".join(each.cmdline()))]


def test_it_listens_on_this_machine_alone() -> None:
    listening = {
        (each.laddr.ip, each.laddr.port)
        for process in processes()
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    assert len(listening) > 4
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_signal_to_the_process_group_of_the_command_is_not_for_it() -> None:
    here, *rest = processes()
    assert len(rest) > 4
    assert os.getpgid(here.pid) not in {os.getpgid(each.pid) for each in rest}


def test_whoever_connects_needs_the_token() -> None:
    for address, method in [
        (node().gcs_address, "InternalKVGcsService/InternalKVGet"),
        (f"127.0.0.1:{node().node_manager_port}", "NodeManagerService/RequestWorkerLease"),
    ]:
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(f"/ray.rpc.{method}", bytes, bytes)(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_token_is_in_no_file_and_no_command_line() -> None:
    token = os.environ["RAY_AUTH_TOKEN"].encode()
    assert len(token) == 64
    assert not [file for file in files_of_the_instance() if token in file.read_bytes()]
    for process in psutil.process_iter():
        try:
            assert token.decode() not in " ".join(process.cmdline())
        except psutil.Error:
            continue
    kept = Path("~/.ray/auth_token").expanduser()
    assert not kept.exists() or token not in kept.read_bytes()


def files_of_the_instance() -> list[Path]:
    found = [path for path in Path(node().get_temp_dir_path()).rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(found) > 5
    return found


def test_its_folder_is_closed_to_others() -> None:
    folder = Path(node().get_temp_dir_path())
    assert folder.parent.name.startswith("dlshap-")
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_uid == os.getuid()
    longest = len(node().plasma_store_socket_name) - len(str(folder))
    assert len(ray_private.SOCKET) - 7 <= longest <= len(ray_private.SOCKET), "but for the digits of the process"


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root acts as another user")
def test_another_user_sees_nothing_of_it() -> None:
    folder = Path(node().get_temp_dir_path())
    for path in (folder.parent, folder, node().raylet_socket_name, *(f"/proc/{p.pid}/environ" for p in processes())):
        look = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "head", "-c1", str(path)]
        done = subprocess.run(look, capture_output=True, text=True, check=False)
        assert "Permission denied" in done.stderr, f"{path}: {done}"
