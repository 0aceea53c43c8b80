"""Places: what both kinds promise, and what each does when disks, networks and other processes misbehave."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.errors import UserError
from pipeline.places import Entry, LocalPlace, ObjectPlace, Place, open_place
from pipeline.places.objects import Patience
from tests.pipeline.object_store import Bucket, Fault, FaultyProxy, fill

HASTY = Patience(answer_s=1.0, retry_s=15.0)
LEASE_S = 1.5

HOLD = """
import sys
from pipeline.places import LocalPlace, ObjectPlace
url, endpoint, lease_s = sys.argv[1:]
options = {"endpoint": endpoint, "region": "us-east-1"}
place = ObjectPlace(url, options, lease_s=float(lease_s)) if url.startswith("s3") else LocalPlace(url)
with place.lock("claim", lambda who: print("waiting", flush=True)):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""
COUNT = """
import sys
from pipeline.places import LocalPlace, ObjectPlace
url, endpoint = sys.argv[1:]
options = {"endpoint": endpoint, "region": "us-east-1"}
place = ObjectPlace(url, options, lease_s=2.0) if url.startswith("s3") else LocalPlace(url)
for _ in range(5):
    with place.lock("claim", lambda who: None):
        place.write("count", str(int(place.read("count")) + 1).encode())
"""
WRITE = """
import sys
from pipeline.places import LocalPlace
place = LocalPlace(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in b"ab":
        place.write("folder/file", bytes([letter]) * 3_000_000)
"""


@pytest.fixture(params=["local", "object"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of each kind."""
    if kind == "local":
        return open_place(tmp_path / "a" / "place")
    bucket: Bucket = request.getfixturevalue("bucket")
    return ObjectPlace(f"{bucket.url}/a/place", bucket.options, lease_s=LEASE_S)


@pytest.fixture
def shaky(bucket: Bucket, proxy: FaultyProxy) -> ObjectPlace:
    """A place behind the proxy."""
    return ObjectPlace(f"{bucket.url}/a/place", bucket.behind(proxy).options, HASTY, LEASE_S)


def keys(place: Place, prefix: str = "") -> list[str]:
    return sorted(entry.key for entry in place.files(prefix))


def endpoint_of(place: Place) -> str:
    return place.options["endpoint"] if isinstance(place, ObjectPlace) else ""


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


def test_what_is_written_is_there(place: Place) -> None:
    before = time.time()
    place.write("x", b"")
    place.write("a/b/c", b"old")
    place.write("a/b/c", b"newer")
    assert place.read("a/b/c") == b"newer"
    assert [place.size(key) for key in ("x", "a/b/c", "a/b", "x/y", "z")] == [0, 5, None, None, None]
    entries = {entry.key: entry for entry in place.files()}
    assert entries == {key: Entry(key, size, entries[key].modified) for key, size in (("x", 0), ("a/b/c", 5))}
    assert all(abs(entry.modified - before) < 60 for entry in entries.values())


@pytest.mark.parametrize("key", ["z", "x/y"])
def test_what_is_not_there_is_named(place: Place, key: str) -> None:
    place.write("x", b"1")
    with pytest.raises(FileNotFoundError) as caught:
        place.read(key)
    assert f"{place.url}/{key}" in str(caught.value)
    assert "\n" not in str(caught.value)
    place.delete(key)
    assert keys(place) == ["x"]


@pytest.mark.parametrize("key", ["", "/x", "x/", "x//y", "../x", "x/../y", "./x"])
def test_keys_stay_inside(place: Place, key: str) -> None:
    for use in (place.read, place.size, place.delete, lambda key: place.write(key, b"")):
        with pytest.raises(ValueError, match="is no key"):
            use(key)


def test_prefixes_are_of_strings(place: Place) -> None:
    for key in ("done/001", "done/002", "done/010", "donew", "x", "done.d/001"):
        place.write(key, b"")
    assert keys(place, "done/00") == ["done/001", "done/002"]
    assert keys(place, "done/") == ["done/001", "done/002", "done/010"]
    assert keys(place, "done") == ["done.d/001", "done/001", "done/002", "done/010", "donew"]
    assert keys(place, "nothing/at/all") == keys(place, "x/y") == []
    place.clear("done/00")
    assert keys(place) == ["done.d/001", "done/010", "donew", "x"]
    place.clear("done/")
    assert keys(place) == ["done.d/001", "donew", "x"]
    place.clear()
    place.clear()
    assert keys(place) == []
    place.write("again", b"1")
    assert keys(place) == ["again"]


def test_many_files_are_listed_and_cleared(place: Place, request: pytest.FixtureRequest) -> None:
    expected = [f"done/{i:05d}" for i in range(2203)]  # an object store lists 1000 at a time
    if isinstance(place, LocalPlace):
        (place.path / "done").mkdir(parents=True)
        for key in expected:
            (place.path / key).touch()
    else:
        fill(request.getfixturevalue("bucket"), [f"a/place/{key}" for key in expected])
    assert keys(place) == keys(place, "done/") == expected
    place.clear("done/0")
    assert keys(place) == []


def test_logs_grow(place: Place) -> None:
    for i in range(12):
        place.append("logs/run.jsonl", f"{i}\n".encode())
    again = open_place(place.url, getattr(place, "options", None))
    again.append("logs/run.jsonl", b"12\n")
    place.append("logs/run.jsonl", b"13\n")
    parts = keys(place, "logs/run")
    assert b"".join(place.read(part) for part in parts).decode().split() == [str(i) for i in range(14)]
    assert parts == [f"logs/run-{i:06d}.jsonl" for i in range(14)] or parts == ["logs/run.jsonl"]


def test_one_at_a_time_holds_a_lock(place: Place) -> None:
    heard: list[str] = []
    with process(HOLD, place.url, endpoint_of(place), str(LEASE_S)) as other:
        say(other, "held")

        def waiting(who: str) -> None:
            heard.append(who)
            assert other.stdin is not None
            threading.Timer(1.5 * LEASE_S, lambda: print(file=other.stdin, flush=True)).start()  # longer than a lease

        began = time.monotonic()
        with place.lock("claim", waiting):
            assert time.monotonic() - began > 1.4 * LEASE_S
            say(other, "released")
        assert len(heard) == 1
        assert heard[0].startswith(f"process {other.pid} on ")
    with place.lock("claim", pytest.fail):
        pass


def test_the_lock_of_a_dead_process_is_free(place: Place, kind: str) -> None:
    with process(HOLD, place.url, endpoint_of(place), str(LEASE_S)) as other:
        say(other, "held")
        other.kill()
        other.wait()
        began = time.monotonic()
        with place.lock("claim", lambda who: None):
            waited = time.monotonic() - began
        assert waited < 0.5 if kind == "local" else LEASE_S <= waited < 3 * LEASE_S


def test_processes_that_contend_take_turns(place: Place) -> None:
    place.write("count", b"0")
    arguments = [sys.executable, "-c", COUNT, place.url, endpoint_of(place)]
    others = [subprocess.Popen(arguments) for _ in range(2)]
    assert [other.wait(60) for other in others] == [0, 0]
    assert place.read("count") == b"10"


def test_a_lock_outlives_the_clearing_of_its_place(place: Place) -> None:
    with place.lock("claim", pytest.fail):
        place.write("x", b"1")
        place.clear()
        assert keys(place) in ([], ["claim"])
    with place.lock("claim", pytest.fail):
        pass


def test_an_error_under_a_lock_is_the_one_raised(place: Place) -> None:
    with pytest.raises(ZeroDivisionError), place.lock("claim", pytest.fail):
        raise ZeroDivisionError
    with place.lock("claim", pytest.fail):
        pass


# --- addresses --------------------------------------------------------------------------------------------------------


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("a b", Path("a b"), tmp_path / "a b", f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        place = open_place(url)
        assert isinstance(place, LocalPlace)
        assert (place.path, place.url) == (tmp_path / "a b", str(tmp_path / "a b"))
    assert os.listdir(tmp_path) == []
    for url in ("s3://b/p", "gs://b/p/"):
        place = open_place(url)
        assert isinstance(place, ObjectPlace)
        assert place.url == url.rstrip("/")
    assert isinstance(open_place("az://c/p", {"account_name": "me"}), ObjectPlace)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://localhost/x", None, r"http://localhost/x: a place is a path, or starts with .*s3://, gs:// or az://"),
        ("memory:///", None, r"not with memory://"),
        ("file://host/x", None, r"a file of another host"),
        ("s3://", None, r"s3://: there is no bucket in it; expected s3://bucket/prefix"),
        ("s3://b/x", {"endpint": "y"}, r"s3://b/x: .*'endpint' is not valid"),
        ("az://c/p", None, r"az://c/p: .*Account must be specified"),
    ],
)
def test_addresses_that_are_none(
    url: str, options: dict[str, str] | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=message) as caught:
        open_place(url, options)
    assert "\n" not in str(caught.value)


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path / "place")
    for pause in (0.01, 0.03, 0.05):
        with process(WRITE, place.url) as other:
            say(other, "ready")
            while place.size("folder/file") is None:
                time.sleep(0.001)
            time.sleep(pause)
            other.kill()
            other.wait()
        content = place.read("folder/file")
        assert content in (b"a" * 3_000_000, b"b" * 3_000_000)
        assert {"folder/file"} <= set(keys(place))
        for key in keys(place):
            assert key == "folder/file" or key.endswith(".partial"), "what is unfinished is listed, under such a name"


@pytest.mark.parametrize("fails", ["os.write", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_write_that_fails_leaves_nothing(
    fails: str, apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch" if apart else None
    place = LocalPlace(tmp_path / "place", scratch)
    place.write("x", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fails, full)
        with pytest.raises(OSError, match=rf"No space left on device: '{place.url}/x'"):
            place.write("x", b"new")
    assert place.read("x") == b"old"
    assert keys(place) == ["x"]
    assert scratch is None or os.listdir(scratch) == []


def test_unfinished_files_lie_in_the_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_place(tmp_path / "place", scratch=tmp_path / "scratch")
    seen: list[Path] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(self)
        if len(seen) == 2:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return replace(self, target)

    monkeypatch.setattr("pathlib.Path.replace", watched)
    place.write("a/x", b"1")
    place.write("a/x", b"2")  # as if the scratch folder were of another file system
    assert [path.parent for path in seen] == [tmp_path / "scratch", tmp_path / "scratch", tmp_path / "place" / "a"]
    assert len(set(seen)) == 3
    assert place.read("a/x") == b"2"
    assert os.listdir(tmp_path / "scratch") == []
    assert keys(place) == ["a/x"]


def test_names_of_new_folders_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("pipeline.places.local.sync_folder", synced.append)
    LocalPlace(tmp_path / "p" / "q").write("a/x", b"1")
    assert set(synced) == {tmp_path, tmp_path / "p", tmp_path / "p" / "q", tmp_path / "p" / "q" / "a"}
    assert synced[-2:] == [tmp_path / "p" / "q" / "a", tmp_path / "p" / "q"], "after the file is there"


def test_clearing_takes_folders_along(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path / "place")
    place.write("done/a/x", b"")
    place.write("done.d/x", b"")
    (place.path / "done" / "empty").mkdir()
    place.clear("done/")
    assert sorted(os.listdir(place.path)) == ["done.d"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    (place.path / "link").symlink_to(tmp_path / "elsewhere")
    (place.path / "dangling").symlink_to(tmp_path / "nowhere")
    assert keys(place) == ["dangling", "done.d/x", "link"]
    place.clear()
    assert os.listdir(tmp_path) == ["elsewhere"]
    assert os.listdir(tmp_path / "elsewhere") == ["kept"]


def test_files_may_vanish_while_they_are_listed(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path / "place")
    for i in range(20):
        place.write(f"{i % 4}/{i}", b"")
    seen = []
    for entry in place.files():
        seen.append(entry.key)
        if len(seen) == 1:
            for key in {f"{i % 4}/{i}" for i in range(20)} - {entry.key}:
                place.delete(key)
                with contextlib.suppress(OSError):
                    (place.path / key).parent.rmdir()
    assert len(seen) == 1 == len(keys(place))


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_says_so(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", none)
    with (
        pytest.raises(OSError, match=rf"{tmp_path}/claim: this file system keeps no locks .*; use a place on one"),
        LocalPlace(tmp_path).lock("claim", pytest.fail),
    ):
        pytest.fail("locked")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = LocalPlace(tmp_path / "file" / "place")
    for use in (
        lambda: place.write("x", b""),
        lambda: place.append("x", b""),
        lambda: place.lock("x", pytest.fail).__enter__(),
    ):
        with pytest.raises(OSError, match=rf"{place.url}/x"):
            use()
    assert place.size("x") is None
    assert keys(place) == []
    place.delete("x")


# --- an object store --------------------------------------------------------------------------------------------------


def use_everything(place: Place) -> None:
    place.write("a/x", b"1" * 1000)
    assert place.read("a/x") == b"1" * 1000
    assert place.size("a/x") == 1000
    for i in range(3):
        place.append("log.txt", f"{i}\n".encode())
    assert keys(place) == ["a/x", *(f"log-{i:06d}.txt" for i in range(3))]
    assert b"".join(place.read(key) for key in keys(place, "log-")) == b"0\n1\n2\n"
    with place.lock("claim", pytest.fail):
        assert keys(place, "c") == ["claim"]
    place.delete("a/x")
    place.delete("a/x")
    place.clear()
    assert keys(place) == []


@pytest.mark.parametrize("fault", ["later", "reset", "lost", "cut"])
def test_one_request_in_five_fails(shaky: ObjectPlace, proxy: FaultyProxy, fault: Fault) -> None:
    proxy.every(5, fault)
    for _ in range(3):
        use_everything(shaky)
    assert proxy.done[fault] > 10


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST"])
@pytest.mark.parametrize("fault", ["hang", "lost"])
def test_a_request_without_an_answer_is_sent_again(
    shaky: ObjectPlace, proxy: FaultyProxy, method: str, fault: Fault
) -> None:
    proxy.times(1, fault, method)
    use_everything(shaky)
    assert proxy.done[fault] == 1


@pytest.mark.parametrize("fault", ["cut", "reset", "lost"])
def test_a_listing_that_breaks_off_goes_on(
    shaky: ObjectPlace, bucket: Bucket, proxy: FaultyProxy, fault: Fault
) -> None:
    expected = [f"{i:05d}" for i in range(2100)]
    fill(bucket, [f"a/place/{key}" for key in expected])
    proxy.times(2, fault, "GET", "start-after")
    place = ObjectPlace(shaky.url, shaky.options)  # a long list takes its time
    assert keys(place) == expected
    assert proxy.done[fault] == 2


def test_large_objects_survive_faults(shaky: ObjectPlace, proxy: FaultyProxy) -> None:
    data = np.random.RandomState(0).bytes(12_000_000)  # more than one part
    proxy.every(3, "reset")
    shaky.write("x", data)
    assert shaky.read("x") == data


def every_use(place: Place) -> list[Callable[[], object]]:
    return [
        lambda: place.write("x", b""),
        lambda: place.read("x"),
        lambda: place.delete("x"),
        lambda: list(place.files("x")),
        lambda: place.append("x", b""),
        lambda: place.lock("x", pytest.fail).__enter__(),
    ]


@pytest.mark.parametrize(
    ("fault", "error"),
    [("later", (ConnectionError, TimeoutError)), ("reset", (ConnectionError, TimeoutError)), ("hang", TimeoutError)],
)
def test_retries_end(
    bucket: Bucket, proxy: FaultyProxy, fault: Fault, error: type[OSError] | tuple[type[OSError], ...]
) -> None:
    """A machine that is slow may let the last try of any kind run out of time instead."""
    place = ObjectPlace(f"{bucket.url}/p", bucket.behind(proxy).options, Patience(0.3, 0.8), LEASE_S)
    proxy.always(fault)
    for n_uses, use in enumerate(every_use(place), start=1):
        began = time.monotonic()
        with pytest.raises(error, match=rf"^{place.url}/x") as caught:
            use()
        assert time.monotonic() - began < 3
        assert "\n" not in str(caught.value)
        assert proxy.done[fault] >= 2 * n_uses


def test_what_another_try_cannot_mend_is_said_at_once(bucket: Bucket, proxy: FaultyProxy) -> None:
    nowhere = ObjectPlace("s3://no-such-bucket/p", bucket.options)
    denied = ObjectPlace(f"{bucket.url}/p", bucket.behind(proxy).options)
    proxy.always("denied")
    for place, error, message in (
        (nowhere, OSError, "the bucket does not exist"),
        (denied, PermissionError, r"access denied \(403 InvalidAccessKeyId: .*\); check the credentials"),
    ):
        began = time.monotonic()
        for use in every_use(place):
            with pytest.raises(error, match=rf"^{place.url}/x-?: {message}") as caught:
                use()
            assert not isinstance(caught.value, FileNotFoundError)
            assert "\n" not in str(caught.value)
        assert time.monotonic() - began < 5


def test_a_signal_does_not_wait_for_an_answer(bucket: Bucket, proxy: FaultyProxy) -> None:
    place = ObjectPlace(bucket.url, bucket.behind(proxy).options)
    proxy.always("hang")

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            place.read("x")
        assert time.monotonic() - began < 5
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_lock_is_kept_through_faults(shaky: ObjectPlace, bucket: Bucket, proxy: FaultyProxy) -> None:
    direct = ObjectPlace(shaky.url, bucket.options, HASTY, LEASE_S)
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
    shaky: ObjectPlace, bucket: Bucket, proxy: FaultyProxy
) -> None:
    direct = ObjectPlace(shaky.url, bucket.options, HASTY, LEASE_S)
    sent: list[str] = []
    rivals: list[AbstractContextManager[None]] = []

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


def test_a_holder_learns_that_its_lock_was_taken_over(shaky: ObjectPlace, bucket: Bucket, proxy: FaultyProxy) -> None:
    direct = ObjectPlace(shaky.url, bucket.options, HASTY, LEASE_S)
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


def test_a_place_opens_again_elsewhere(bucket: Bucket) -> None:
    place = open_place(f"{bucket.url}/p", bucket.options)
    assert isinstance(place, ObjectPlace)
    place.write("x", b"1")
    url, options = pickle.loads(pickle.dumps((place.url, place.options)))
    assert open_place(url, options).read("x") == b"1"


def test_zarr_reads_from_the_same_store(bucket: Bucket) -> None:
    place = ObjectPlace(f"{bucket.url}/p.zarr", bucket.options)
    group = zarr.create_group(zarr.storage.MemoryStore())
    group.create_array("x", data=np.arange(6.0))
    for key, value in group.store._store_dict.items():
        place.write(key, value.to_bytes())
    opened = zarr.open_group(zarr.storage.ObjectStore(place.store, read_only=True), mode="r")
    assert np.asarray(opened["x"][:]).tolist() == list(range(6))
