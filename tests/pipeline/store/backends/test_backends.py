"""Storage backends: what both kinds promise, and what each does when disks, networks and other processes misbehave."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import zarr
from obstore.exceptions import GenericError

from pipeline.messages.errors import UserError
from pipeline.store import backends
from pipeline.store.backends import object_store, registry
from pipeline.store.backends.base import Backend, StoredFile
from pipeline.store.backends.local import LocalBackend
from pipeline.store.backends.object_store import OF_CLIENT, OURS, ObjectStoreBackend, Timeouts
from pipeline.store.backends.registry import open_backend
from tests.pipeline.object_store import Bucket, Fault, FaultyProxy, fill

HASTY = Timeouts(answer_s=1.0, retry_s=15.0)
LEASE_S = 1.5

HOLD = """
import sys
from pipeline.store.backends.local import LocalBackend
from pipeline.store.backends.object_store import ObjectStoreBackend
url, endpoint, lease_s = sys.argv[1:]
options = {"endpoint": endpoint, "region": "us-east-1"}
backend = ObjectStoreBackend(url, options, lease_s=float(lease_s)) if url.startswith("s3") else LocalBackend(url)
with backend.lock("claim", lambda who: print("waiting", flush=True)):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""
COUNT = """
import sys
from pipeline.store.backends.local import LocalBackend
from pipeline.store.backends.object_store import ObjectStoreBackend
url, endpoint = sys.argv[1:]
options = {"endpoint": endpoint, "region": "us-east-1"}
backend = ObjectStoreBackend(url, options, lease_s=2.0) if url.startswith("s3") else LocalBackend(url)
for _ in range(5):
    with backend.lock("claim", lambda who: None):
        backend.write("count", str(int(backend.read("count")) + 1).encode())
"""
THAW = """
import sys
from pipeline.store.backends.object_store import ObjectStoreBackend
url, endpoint, lease_s = sys.argv[1:]
backend = ObjectStoreBackend(url, {"endpoint": endpoint, "region": "us-east-1"}, lease_s=float(lease_s))
with backend.lock("claim", lambda who: None) as backend.guard:
    print("held", flush=True)
    sys.stdin.readline()
    backend.write("x", b"late")
"""
WRITE = """
import sys
from pipeline.store.backends.local import LocalBackend
backend = LocalBackend(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in b"ab":
        backend.write("folder/file", bytes([letter]) * 3_000_000)
"""


@pytest.fixture(params=["local", "object"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty place of each kind."""
    if kind == "local":
        return open_backend(tmp_path / "a" / "place")
    bucket: Bucket = request.getfixturevalue("bucket")
    return ObjectStoreBackend(f"{bucket.url}/a/place", bucket.options, lease_s=LEASE_S)


@pytest.fixture
def shaky(bucket: Bucket, proxy: FaultyProxy) -> ObjectStoreBackend:
    """A place behind the proxy."""
    return ObjectStoreBackend(f"{bucket.url}/a/place", bucket.behind(proxy).options, HASTY, LEASE_S)


def keys(backend: Backend, prefix: str = "") -> list[str]:
    return sorted(entry.key for entry in backend.files(prefix))


def endpoint_of(backend: Backend) -> str:
    return backend.options["endpoint"] if isinstance(backend, ObjectStoreBackend) else ""


def folder_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


@contextlib.contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, killed at the end if it is still there."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            yield other
        finally:
            other.kill()


def say(other: subprocess.Popen[str], expected: str) -> None:
    assert other.stdout is not None
    assert other.stdout.readline() == f"{expected}\n"


# --- both kinds -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_there(backend: Backend) -> None:
    before = time.time()
    backend.write("x", b"")
    backend.write("a/b/c", b"old")
    backend.write("a/b/c", b"newer")
    assert backend.read("a/b/c") == b"newer"
    assert [backend.size(key) for key in ("x", "a/b/c", "a/b", "x/y", "z")] == [0, 5, None, None, None]
    entries = {entry.key: entry for entry in backend.files()}
    assert entries == {key: StoredFile(key, size, entries[key].modified) for key, size in (("x", 0), ("a/b/c", 5))}
    assert all(abs(entry.modified - before) < 60 for entry in entries.values())


@pytest.mark.parametrize("key", ["z", "x/y"])
def test_what_is_not_there_is_named(backend: Backend, key: str) -> None:
    backend.write("x", b"1")
    with pytest.raises(FileNotFoundError) as caught:
        backend.read(key)
    assert f"{backend.url}/{key}" in str(caught.value)
    assert "\n" not in str(caught.value)
    backend.delete(key)
    assert keys(backend) == ["x"]


@pytest.mark.parametrize("key", ["", "/x", "x/", "x//y", "../x", "x/../y", "./x"])
def test_keys_stay_inside(backend: Backend, key: str) -> None:
    for use in (backend.read, backend.size, backend.delete, lambda key: backend.write(key, b"")):
        with pytest.raises(ValueError, match="is no key"):
            use(key)


def test_prefixes_are_of_strings(backend: Backend) -> None:
    for key in ("done/001", "done/002", "done/010", "donew", "x", "done.d/001"):
        backend.write(key, b"")
    assert keys(backend, "done/00") == ["done/001", "done/002"]
    assert keys(backend, "done/") == ["done/001", "done/002", "done/010"]
    assert keys(backend, "done") == ["done.d/001", "done/001", "done/002", "done/010", "donew"]
    assert keys(backend, "nothing/at/all") == keys(backend, "x/y") == []
    backend.clear("done/00")
    assert keys(backend) == ["done.d/001", "done/010", "donew", "x"]
    backend.clear("done/")
    assert keys(backend) == ["done.d/001", "donew", "x"]
    backend.clear()
    backend.clear()
    assert keys(backend) == []
    backend.write("again", b"1")
    assert keys(backend) == ["again"]


def test_many_files_are_listed_and_cleared(backend: Backend, request: pytest.FixtureRequest) -> None:
    expected = [f"done/{i:05d}" for i in range(2203)]  # an object store lists 1000 at a time
    if isinstance(backend, LocalBackend):
        (backend.path / "done").mkdir(parents=True)
        for key in expected:
            (backend.path / key).touch()
    else:
        fill(request.getfixturevalue("bucket"), [f"a/place/{key}" for key in expected])
    assert keys(backend) == keys(backend, "done/") == expected
    backend.clear("done/0")
    assert keys(backend) == []


def test_logs_grow(backend: Backend) -> None:
    for i in range(12):
        backend.append("logs/run.jsonl", f"{i}\n".encode())
    again = open_backend(backend.url, getattr(backend, "options", None))
    again.append("logs/run.jsonl", b"12\n")
    backend.append("logs/run.jsonl", b"13\n")
    parts = keys(backend, "logs/run")
    assert b"".join(backend.read(part) for part in parts).decode().split() == [str(i) for i in range(14)]
    assert parts == [f"logs/run-{i:06d}.jsonl" for i in range(14)] or parts == ["logs/run.jsonl"]


def test_one_at_a_time_holds_a_lock(backend: Backend) -> None:
    heard: list[str] = []
    with process(HOLD, backend.url, endpoint_of(backend), str(LEASE_S)) as other:
        say(other, "held")

        def waiting(who: str) -> None:
            heard.append(who)
            assert other.stdin is not None
            threading.Timer(1.5 * LEASE_S, lambda: print(file=other.stdin, flush=True)).start()  # longer than a lease

        began = time.monotonic()
        with backend.lock("claim", waiting):
            assert time.monotonic() - began > 1.4 * LEASE_S
            say(other, "released")
        assert len(heard) == 1
        assert heard[0].startswith(f"process {other.pid} on ")
    with backend.lock("claim", pytest.fail):
        pass


def test_the_lock_of_a_dead_process_is_free(backend: Backend, kind: str) -> None:
    with process(HOLD, backend.url, endpoint_of(backend), str(LEASE_S)) as other:
        say(other, "held")
        other.kill()
        other.wait()
        began = time.monotonic()
        with backend.lock("claim", lambda who: None):
            waited = time.monotonic() - began
        assert waited < 0.5 if kind == "local" else LEASE_S <= waited < 3 * LEASE_S


def test_processes_that_contend_take_turns(backend: Backend) -> None:
    backend.write("count", b"0")
    arguments = [sys.executable, "-c", COUNT, backend.url, endpoint_of(backend)]
    others = [subprocess.Popen(arguments) for _ in range(2)]
    assert [other.wait(60) for other in others] == [0, 0]
    assert backend.read("count") == b"10"


def test_a_lock_outlives_the_clearing_of_its_place(backend: Backend) -> None:
    with backend.lock("claim", pytest.fail):
        backend.write("x", b"1")
        backend.clear()
        assert keys(backend) in ([], ["claim"])
    with backend.lock("claim", pytest.fail):
        pass


def test_an_error_under_a_lock_is_the_one_raised(backend: Backend) -> None:
    with pytest.raises(ZeroDivisionError), backend.lock("claim", pytest.fail):
        raise ZeroDivisionError
    with backend.lock("claim", pytest.fail):
        pass


# --- addresses --------------------------------------------------------------------------------------------------------


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("a b", Path("a b"), tmp_path / "a b", f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        backend = open_backend(url)
        assert isinstance(backend, LocalBackend)
        assert (backend.path, backend.url) == (tmp_path / "a b", str(tmp_path / "a b"))
    assert os.listdir(tmp_path) == []
    for url in ("s3://b/p", "gs://b/p/"):
        backend = open_backend(url)
        assert isinstance(backend, ObjectStoreBackend)
        assert backend.url == url.rstrip("/")
    assert isinstance(open_backend("az://c/p", {"account_name": "me"}), ObjectStoreBackend)


def test_a_module_with_schemes_is_a_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nested.py").write_text(
        "from pathlib import Path\n"
        "from pipeline.store.backends.local import LocalBackend\n"
        "SCHEMES = ('nested',)\n"
        "def open_url(url, options, scratch):\n"
        "    return LocalBackend(Path(options['root']) / url.partition('://')[2], scratch)\n"
    )
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    registry._schemes.cache_clear()
    try:
        open_backend("nested://a/b", {"root": str(tmp_path)}).write("x", b"1")
    finally:
        registry._schemes.cache_clear()
        sys.modules.pop("pipeline.store.backends.nested", None)
    assert (tmp_path / "a/b/x").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        (
            "http://localhost/x",
            None,
            r"http://localhost/x: expected a path, or a URL that starts with file://, s3://, .*gs://, az://.* not with http://",
        ),
        ("memory:///", None, r"not with memory://"),
        ("file://host/x", None, r"a file of another host"),
        ("file:///x/%00y", None, r"%00 is a NUL character"),
        ("s3://", None, r"s3://: there is no bucket in it; expected s3://bucket/prefix"),
        ("s3://b/x", {"endpint": "y"}, r"s3://b/x: .*'endpint' is not valid"),
        ("az://c/p", None, r"az://c/p: .*Account must be specified"),
        ("s3://b/x", {"allow_http": "maybe"}, r"s3://b/x: .*failed to parse .maybe. as boolean"),
        ("s3://b/x", {"AWS_Timeout": "5s"}, r"store\.options\.AWS_Timeout: .* is not a setting; leave it out"),
        ("s3://b/x", {"endpoint": None}, r"store\.options\.endpoint=None; expected a text, a number, true or false"),
    ],
)
def test_addresses_that_are_none(
    url: str, options: dict[str, Any] | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=message) as caught:
        open_backend(url, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://b/x", "gs://b/x", "az://b/x"])
@pytest.mark.parametrize("options", [{"allow_http": True}, {"AWS_ALLOW_HTTP": "yes", "pool_max_idle_per_host": 2}])
def test_options_of_the_client_are_options(url: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "someone")
    open_backend(url, options)


def test_an_option_of_the_client_is_heeded(bucket: Bucket) -> None:
    open_backend(bucket.url, {**bucket.options, "allow_http": True}).write("x", b"1")
    with pytest.raises(OSError, match="cannot be reached"):
        ObjectStoreBackend(bucket.url, {**bucket.options, "allow_http": False}, Timeouts(0.3, 0.8)).read("x")


def test_the_options_of_the_client_are_those_that_obstore_has() -> None:
    declared = (Path(obstore.__file__).parent / "_store" / "_client.pyi").read_text()
    names = set(re.findall(r"^    (\w+):", declared, re.MULTILINE))
    assert names - {"default_headers", "root_certificate"} == {*OF_CLIENT, *OURS}


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path / "place")
    for pause in (0.01, 0.03, 0.05):
        with process(WRITE, backend.url) as other:
            say(other, "ready")
            while backend.size("folder/file") is None:
                time.sleep(0.001)
            time.sleep(pause)
            other.kill()
            other.wait()
        content = backend.read("folder/file")
        assert content in (b"a" * 3_000_000, b"b" * 3_000_000)
        assert {"folder/file"} <= set(keys(backend))
        for key in keys(backend):
            assert key == "folder/file" or key.endswith(".partial"), "what is unfinished is listed, under such a name"


@pytest.mark.parametrize("fails", ["os.write", "os.fsync", "os.replace"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_write_that_fails_leaves_nothing(
    fails: str, apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch" if apart else None
    backend = LocalBackend(tmp_path / "place", scratch)
    backend.write("x", b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fails, full)
        with pytest.raises(OSError, match=rf"No space left on device: '{backend.url}/x'"):
            backend.write("x", b"new")
    assert backend.read("x") == b"old"
    assert keys(backend) == ["x"]
    assert scratch is None or os.listdir(scratch) == []


def test_unfinished_files_lie_in_the_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_backend(tmp_path / "place", scratch=tmp_path / "scratch")
    seen: list[Path] = []
    replace = os.replace

    def watched(name: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        seen.append(folder_of(src_dir_fd) / name)
        if len(seen) == 2:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(name, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr("os.replace", watched)
    backend.write("a/x", b"1")
    backend.write("a/x", b"2")  # as if the scratch folder were of another file system
    assert [path.parent for path in seen] == [tmp_path / "scratch", tmp_path / "scratch", tmp_path / "place" / "a"]
    assert len(set(seen)) == 3
    assert backend.read("a/x") == b"2"
    assert os.listdir(tmp_path / "scratch") == []
    assert keys(backend) == ["a/x"]


def test_names_of_new_folders_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(folder_of(descriptor)))
    LocalBackend(tmp_path / "p" / "q").write("a/x", b"1")
    folders = {tmp_path, tmp_path / "p", tmp_path / "p" / "q", tmp_path / "p" / "q" / "a"}
    assert {path for path in synced if path.suffix != ".partial"} == folders
    assert synced[-2:] == [tmp_path / "p" / "q" / "a", tmp_path / "p" / "q"], "after the file is there"


def test_clearing_takes_folders_along(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path / "place")
    backend.write("done/a/x", b"")
    backend.write("done.d/x", b"")
    (backend.path / "done" / "empty").mkdir()
    backend.clear("done/")
    assert sorted(os.listdir(backend.path)) == ["done.d"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    (backend.path / "link").symlink_to(tmp_path / "elsewhere")
    (backend.path / "dangling").symlink_to(tmp_path / "nowhere")
    assert keys(backend) == ["dangling", "done.d/x", "link"]
    backend.clear()
    assert os.listdir(tmp_path) == ["elsewhere"]
    assert os.listdir(tmp_path / "elsewhere") == ["kept"]


def test_files_may_vanish_while_they_are_listed(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path / "place")
    for i in range(20):
        backend.write(f"{i % 4}/{i}", b"")
    seen = []
    for entry in backend.files():
        seen.append(entry.key)
        if len(seen) == 1:
            for key in {f"{i % 4}/{i}" for i in range(20)} - {entry.key}:
                backend.delete(key)
                with contextlib.suppress(OSError):
                    (backend.path / key).parent.rmdir()
    assert len(seen) == 1 == len(keys(backend))


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_says_so(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", none)
    with (
        pytest.raises(OSError, match=rf"{tmp_path}/claim: this file system keeps no locks .*; use a folder on one"),
        LocalBackend(tmp_path).lock("claim", pytest.fail),
    ):
        pytest.fail("locked")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    backend = LocalBackend(tmp_path / "file" / "place")
    for use in (
        lambda: backend.write("x", b""),
        lambda: backend.append("x", b""),
        lambda: backend.lock("x", pytest.fail).__enter__(),
    ):
        with pytest.raises(OSError, match=rf"{backend.url}/x"):
            use()
    assert backend.size("x") is None
    assert keys(backend) == []
    backend.delete("x")


# --- an object store --------------------------------------------------------------------------------------------------


def use_everything(backend: Backend) -> None:
    backend.write("a/x", b"1" * 1000)
    assert backend.read("a/x") == b"1" * 1000
    assert backend.size("a/x") == 1000
    for i in range(3):
        backend.append("log.txt", f"{i}\n".encode())
    assert keys(backend) == ["a/x", *(f"log-{i:06d}.txt" for i in range(3))]
    assert b"".join(backend.read(key) for key in keys(backend, "log-")) == b"0\n1\n2\n"
    with backend.lock("claim", pytest.fail):
        assert keys(backend, "c") == ["claim"]
    backend.delete("a/x")
    backend.delete("a/x")
    backend.clear()
    assert keys(backend) == []


@pytest.mark.parametrize(
    "fault", ["later", "lost", *(pytest.param(f, marks=pytest.mark.slow) for f in ("reset", "cut"))]
)
def test_one_request_in_five_fails(shaky: ObjectStoreBackend, proxy: FaultyProxy, fault: Fault) -> None:
    proxy.every(5, fault)
    for _ in range(3):
        use_everything(shaky)
    assert proxy.done[fault] > 10


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST"])
@pytest.mark.parametrize("fault", ["hang", "lost"])
def test_a_request_without_an_answer_is_sent_again(
    shaky: ObjectStoreBackend, proxy: FaultyProxy, method: str, fault: Fault
) -> None:
    proxy.times(1, fault, method)
    use_everything(shaky)
    assert proxy.done[fault] == 1


@pytest.mark.parametrize("fault", ["cut", "reset", "lost"])
def test_a_listing_that_breaks_off_goes_on(
    shaky: ObjectStoreBackend, bucket: Bucket, proxy: FaultyProxy, fault: Fault
) -> None:
    expected = [f"{i:05d}" for i in range(2100)]
    fill(bucket, [f"a/place/{key}" for key in expected])
    proxy.times(2, fault, "GET", "start-after")
    backend = ObjectStoreBackend(shaky.url, shaky.options)  # a long list takes its time
    assert keys(backend) == expected
    assert proxy.done[fault] == 2


def test_large_objects_survive_faults(shaky: ObjectStoreBackend, proxy: FaultyProxy) -> None:
    data = np.random.RandomState(0).bytes(12_000_000)  # more than one part
    proxy.every(3, "reset")
    shaky.write("x", data)
    assert shaky.read("x") == data


def every_use(backend: Backend) -> list[Callable[[], object]]:
    return [
        lambda: backend.write("x", b""),
        lambda: backend.read("x"),
        lambda: backend.delete("x"),
        lambda: list(backend.files("x")),
        lambda: backend.append("x", b""),
        lambda: backend.lock("x", pytest.fail).__enter__(),
    ]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("later", (ConnectionError, TimeoutError)),
        pytest.param("reset", (ConnectionError, TimeoutError), marks=pytest.mark.slow),
        pytest.param("hang", TimeoutError, marks=pytest.mark.slow),
    ],
)
def test_retries_end(
    bucket: Bucket, proxy: FaultyProxy, fault: Fault, error: type[OSError] | tuple[type[OSError], ...]
) -> None:
    """A machine that is slow may let the last try of any kind run out of time instead."""
    backend = ObjectStoreBackend(f"{bucket.url}/p", bucket.behind(proxy).options, Timeouts(0.3, 0.8), LEASE_S)
    proxy.always(fault)
    for n_uses, use in enumerate(every_use(backend), start=1):
        began = time.monotonic()
        with pytest.raises(error, match=rf"^{backend.url}/x") as caught:
            use()
        assert time.monotonic() - began < 3
        assert "\n" not in str(caught.value)
        assert proxy.done[fault] >= 2 * n_uses


def test_what_another_try_cannot_mend_is_said_at_once(bucket: Bucket, proxy: FaultyProxy) -> None:
    nowhere = ObjectStoreBackend("s3://no-such-bucket/p", bucket.options)
    denied = ObjectStoreBackend(f"{bucket.url}/p", bucket.behind(proxy).options)
    proxy.always("denied")
    for backend, error, message in (
        (nowhere, OSError, "the bucket does not exist"),
        (denied, PermissionError, r"access denied \(403 InvalidAccessKeyId: .*\); check the credentials"),
    ):
        began = time.monotonic()
        for use in every_use(backend):
            with pytest.raises(error, match=rf"^{backend.url}/x-?: {message}") as caught:
                use()
            assert not isinstance(caught.value, FileNotFoundError)
            assert "\n" not in str(caught.value)
        assert time.monotonic() - began < 5


def test_a_clock_that_is_off_is_named(bucket: Bucket, proxy: FaultyProxy) -> None:
    proxy.always("skewed")
    for use in every_use(ObjectStoreBackend(f"{bucket.url}/p", bucket.behind(proxy).options)):
        with pytest.raises(PermissionError, match=r"this machine's clock is off \(403 RequestTimeTooSkewed: .*\); set"):
            use()


def test_a_signal_does_not_wait_for_an_answer(bucket: Bucket, proxy: FaultyProxy) -> None:
    backend = ObjectStoreBackend(bucket.url, bucket.behind(proxy).options)
    proxy.always("hang")

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            backend.read("x")
        assert time.monotonic() - began < 5
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_lock_is_kept_through_faults(shaky: ObjectStoreBackend, bucket: Bucket, proxy: FaultyProxy) -> None:
    direct = ObjectStoreBackend(shaky.url, bucket.options, HASTY, LEASE_S)
    proxy.every(4, "lost")
    taken: list[float] = []

    def contend() -> None:
        with direct.lock("claim", lambda who: None):
            taken.append(time.monotonic())

    with shaky.lock("claim", pytest.fail):
        other = threading.Thread(target=contend)
        other.start()
        time.sleep(3 * LEASE_S)
        assert taken == []
    other.join(10 * LEASE_S)
    assert len(taken) == 1
    assert proxy.done["lost"] > 2


def test_a_release_whose_answer_is_lost_takes_nothing_from_the_next_holder(
    shaky: ObjectStoreBackend, bucket: Bucket, proxy: FaultyProxy
) -> None:
    direct = ObjectStoreBackend(shaky.url, bucket.options, HASTY, LEASE_S)
    sent: list[str] = []
    rivals: list[AbstractContextManager[object]] = []

    def rule(method: str, path: str) -> Fault:
        if method == "POST" and not sent:
            sent.append(path)
            return "lost"
        if sent and not rivals:  # whatever comes after the delete comes after the next holder
            rivals.append(direct.lock("claim", pytest.fail))
            rivals[0].__enter__()
        return ""

    proxy.rule = rule
    with shaky.lock("claim", pytest.fail):
        pass
    assert direct.size("claim")
    rivals[0].__exit__(None, None, None)
    assert keys(direct) == []


def test_a_holder_learns_that_its_lock_was_taken_over(
    shaky: ObjectStoreBackend, bucket: Bucket, proxy: FaultyProxy
) -> None:
    direct = ObjectStoreBackend(shaky.url, bucket.options, HASTY, LEASE_S)
    holding = shaky.lock("claim", pytest.fail)
    holding.__enter__()
    proxy.always("reset")  # cut off from the store
    other = direct.lock("claim", lambda who: None)
    other.__enter__()
    proxy.always("")
    with pytest.raises(OSError, match=rf"{shaky.url}/claim: process {os.getpid()} on .* took this lock over"):
        holding.__exit__(None, None, None)
    assert direct.size("claim"), "it is left to the other"
    other.__exit__(None, None, None)
    assert keys(direct) == []


def test_a_process_that_was_frozen_writes_nothing_under_a_lost_lock(bucket: Bucket) -> None:
    backend = ObjectStoreBackend(f"{bucket.url}/p", bucket.options, lease_s=LEASE_S)
    with process(THAW, backend.url, bucket.endpoint, str(LEASE_S)) as other:
        say(other, "held")
        other.send_signal(signal.SIGSTOP)
        with backend.lock("claim", lambda who: None):
            backend.write("x", b"mine")
            assert other.stdin is not None
            print(file=other.stdin, flush=True)
            other.send_signal(signal.SIGCONT)
            assert other.wait(60) == 1
            assert backend.read("x") == b"mine"
        assert keys(backend) == ["x"]


def test_every_change_under_a_lock_needs_the_lock(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder is frozen: its renewals stop, and then it goes on."""
    clock = Clock()
    monkeypatch.setattr("pipeline.store.backends.lease.now", clock.now)
    monkeypatch.setattr("pipeline.store.backends.lease.Lease._renew_until", lambda lease, released: None)
    mine, theirs = (ObjectStoreBackend(f"{bucket.url}/p", bucket.options, lease_s=3.0) for _ in range(2))
    holding = mine.lock("claim", pytest.fail)
    mine.guard = holding.__enter__()
    mine.write("x", b"1")
    clock.ahead += 20
    mine.write("x", b"2")  # renewed: nobody was waiting
    with theirs.lock("claim", clock.let_a_lease_pass) as theirs.guard:
        theirs.write("x", b"3")
        for change in (lambda: mine.write("x", b"4"), lambda: mine.delete("x"), mine.clear):
            with pytest.raises(OSError, match=rf"^{mine.url}/claim: process .* took this lock over"):
                change()
        assert mine.read("x") == b"3"
    with pytest.raises(OSError, match="took this lock over"):
        holding.__exit__(None, None, None)
    assert keys(theirs) == ["x"]


class Clock:
    """One that can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return time.monotonic() + self.ahead

    def let_a_lease_pass(self, who: str) -> None:
        self.ahead += 0.1  # after it was seen first
        threading.Timer(0.2, lambda: setattr(self, "ahead", self.ahead + 60)).start()


def test_a_lock_file_that_was_removed_holds_nothing(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path)
    with backend.lock("claim", pytest.fail) as backend.guard:
        backend.write("x", b"1")
        (tmp_path / "claim").unlink()
        with backend.lock("claim", pytest.fail):  # another one can
            for change in (lambda: backend.write("x", b"2"), lambda: backend.delete("x"), backend.clear):
                with pytest.raises(OSError, match=rf"^{tmp_path}/claim: this lock was removed"):
                    change()
    assert backend.read("x") == b"1"


def test_a_place_opens_again_elsewhere(bucket: Bucket) -> None:
    backend = open_backend(f"{bucket.url}/p", bucket.options)
    assert isinstance(backend, ObjectStoreBackend)
    backend.write("x", b"1")
    url, options = pickle.loads(pickle.dumps((backend.url, backend.options)))
    assert open_backend(url, options).read("x") == b"1"


def test_zarr_reads_from_the_same_store(bucket: Bucket) -> None:
    backend = ObjectStoreBackend(f"{bucket.url}/p.zarr", bucket.options)
    group = zarr.create_group(zarr.storage.MemoryStore())
    group.create_array("x", data=np.arange(6.0))
    for key, value in group.store._store_dict.items():
        backend.write(key, value.to_bytes())
    opened = zarr.open_group(zarr.storage.ObjectStore(backend.store, read_only=True), mode="r")
    assert np.asarray(opened["x"][:]).tolist() == list(range(6))


def test_credentials_that_are_missing_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on a machine of a cloud, where they may be had."""

    def head(store: Any, key: str) -> Any:
        asked.append(key)
        raise GenericError(next(answers))

    asked: list[str] = []
    answers = iter(["no route to 169.254.169.254", "status code: 403 Forbidden"])
    monkeypatch.delenv(object_store.CREDENTIALS, raising=False)
    monkeypatch.setattr(object_store.obstore, "head", head)
    monkeypatch.setattr(object_store.obstore, "get", lambda *_: (_ for _ in ()).throw(FileNotFoundError("none")))
    backend = ObjectStoreBackend("s3://lab/a.zarr", {"endpoint": "http://127.0.0.1:9", "region": "us-east-1"})
    with pytest.raises(PermissionError, match="no credentials in the environment"):
        backend.read("zarr.json")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            backend.read("zarr.json")
    assert len(asked) == 2, "once for good"
