"""A prefix of an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure."""

import contextlib
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import obstore
import zarr.storage
from obstore.store import ObjectStore, from_url

from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG
from pipeline.messages.secrets import refuse_values, without_credentials
from pipeline.store.backends.base import LOCK_TIMEOUT_S, StoredFile, anything, check_key, unguarded
from pipeline.store.backends.lease import Lease
from pipeline.store.backends.object_errors import OBJECT_STORE_ERRORS, TRANSIENT, as_os_error, is_without_credentials
from pipeline.store.backends.scratch import scratch_folder
from pipeline.store.backends.tree import MOST_BYTES, TooLarge
from pipeline.store.backends.turn import SAID_EVERY_S

if TYPE_CHECKING:
    from obstore import ObjectMeta

T = TypeVar("T")
SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_OF_A_STORE = re.compile(r"(\w+/)?(zarr\.json|c(\.\d+)*)")
CREDENTIALS = "AWS_ACCESS_KEY_ID"  # where this is set, no machine of a cloud is asked for any
# Options of obstore's `ClientConfig` that are given like all others; it panics where they are among those of a store.
OF_CLIENT = (
    *("allow_http", "allow_invalid_certificates", "default_content_type", "http1_only", "http2_only", "user_agent"),
    *("http2_keep_alive_interval", "http2_keep_alive_timeout", "http2_keep_alive_while_idle"),
    *("pool_idle_timeout", "pool_max_idle_per_host", "randomize_addresses"),
    *("proxy_ca_certificate", "proxy_excludes", "proxy_url"),
)
OURS = ("connect_timeout", "read_timeout", "timeout")  # of it: how long is waited is for Timeouts to say
PAGE = 1000  # keys in one request that lists or deletes


@dataclass(frozen=True)
class Timeouts:
    """How long an object store is waited for.

    Attributes:
        answer_s: seconds without a byte of an answer after which a request is given up, and sent again.
        retry_s: seconds from the first try after which nothing is tried again.
    """

    answer_s: float = 30.0
    retry_s: float = 90.0


QUICK = Timeouts(2.0, 6.0)  # in which a machine of a cloud gives credentials, if it has any


def make_store(url: str, options: Mapping[str, str], timeouts: Timeouts) -> ObjectStore:
    """The obstore store of a URL; UserError where an option is unknown or missing."""
    refuse_values(options, "store.options")
    for name in ENDPOINTS:
        refuse_values(os.environ.get(name, ""), f"the environment variable {name}")
    endpoint = options.get("endpoint") or next((os.environ[name] for name in ENDPOINTS if name in os.environ), "")
    of_store, of_client = _sorted(options)
    settings: dict[str, Any] = {
        "config": of_store,
        "client_options": {
            "allow_http": endpoint.startswith("http://"),
            **of_client,
            "connect_timeout": timedelta(seconds=min(5.0, timeouts.answer_s)),
            "timeout": timedelta(seconds=timeouts.answer_s),
        },
        "retry_config": {
            "max_retries": 1000 if timeouts.retry_s else 0,
            "retry_timeout": timedelta(seconds=timeouts.retry_s),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        },
    }
    try:
        return from_url(url, **settings)
    except (*OBJECT_STORE_ERRORS, ValueError) as error:
        reason = without_credentials(str(error).partition("\n")[0])
        raise UserError(f"{url}: {reason}; check the URL and the options of the store") from error


def _sorted(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Options of a store and of its HTTP client, as the texts that obstore expects."""
    of_store, of_client = {}, {}
    for name, value in options.items():
        if not isinstance(value, str | bool | int | float):
            raise UserError(f"store.options.{name}={value!r}; expected a text, a number, true or false")
        bare = re.sub("^(aws|google|azure)_", "", name.lower())
        if bare in OURS:
            raise UserError(
                f"store.options.{name}: for how long requests are waited for is not a setting; leave it out"
            )
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if bare in OF_CLIENT:
            of_client[bare] = text
        else:
            of_store[name] = text
    return of_store, of_client


def open_url(url: str, options: Mapping[str, str], scratch: Path | None) -> "ObjectStoreBackend":
    """The prefix of a URL s3://bucket/prefix; UserError where it has no bucket, or for an unknown option."""
    if not urlsplit(url).netloc:
        raise UserError(f"{url}: there is no bucket in it; expected {url.partition('://')[0]}://bucket/prefix")
    return ObjectStoreBackend(url, options)


class ObjectStoreBackend:
    """A prefix of an object store.

    A request is tried again, with growing pauses, when there is no answer for 30 s, no connection, or an answer that
    says "later" (5xx); a minute and a half after the first try no other is started, so that an error comes after at
    most about two minutes. What another try cannot mend (no such bucket, access denied) is raised at once.

    Args:
        url: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.
        options: obstore's configuration keys (endpoint, region, ...); credentials come from the environment.
        timeouts: how long to wait for answers.
        lease_s: seconds after which a lock is free when its holder no longer renews it.
    """

    concurrency = 32
    append_interval_s = 30.0  # each addition is an object of its own

    def __init__(
        self,
        url: str,
        options: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        lease_s: float = 30.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.options = dict(options or {})
        self._timeouts = timeouts or Timeouts()
        self._lease_s = lease_s
        self._parts: dict[str, int] = {}  # of each log, the number of the next part
        self._locks: set[str] = set()  # held by this backend
        self._may_lack_credentials = CREDENTIALS not in os.environ
        self.store = make_store(self.url, self.options, self._timeouts)
        self.guard: Callable[[], None] = unguarded
        self.lock_timeout_s = LOCK_TIMEOUT_S

    def read(self, key: str, most: int = MOST_BYTES) -> bytes:
        check_key(key)

        def get() -> bytes:
            found = obstore.get(self.store, key)
            if (n_bytes := found.meta["size"]) > most:
                raise TooLarge(f"{self.url}/{key}", n_bytes, most)
            return bytes(found.bytes())

        return self._persist(key, get)

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where nothing is, and where there is no bucket, which this request cannot tell."""
        check_key(key)
        try:
            return self._persist(key, lambda: obstore.head(self.store, key)["size"])
        except FileNotFoundError:
            return None

    def write(self, key: str, data: bytes) -> None:
        check_key(key)
        # Few parts at once, so that each gets through in time on a slow line that many workers share.
        self._persist(key, lambda: obstore.put(self.store, key, data, max_concurrency=4), changes=True)

    def append(self, key: str, data: bytes) -> None:
        path = PurePosixPath(check_key(key))
        for number in itertools.count(self._next_part(key)):
            part = str(path.with_name(f"{path.stem}-{number:06d}{path.suffix}"))
            try:
                self._persist(part, partial(obstore.put, self.store, part, data, mode="create"))
            except FileExistsError:
                # Another writer's, or this one: a try whose answer was lost.
                if self.read(part) != data:
                    continue
            self._parts[key] = number + 1
            return

    def _next_part(self, key: str) -> int:
        if key not in self._parts:
            stem, suffix = key.removesuffix(PurePosixPath(key).suffix), PurePosixPath(key).suffix
            numbers = [entry.key[len(stem) + 1 :].removesuffix(suffix) for entry in self.files(f"{stem}-")]
            self._parts[key] = max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)
        return self._parts[key]

    def delete(self, key: str) -> None:
        self._delete([check_key(key)])

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        folder = prefix.rpartition("/")[0] or None  # the store's own prefixes are whole parts of keys
        last = None
        while page := self._persist(prefix, partial(self._page, folder, last)):
            last = page[-1]["path"]
            for found in page:
                if found["path"].startswith(prefix):
                    yield StoredFile(found["path"], found["size"], found["last_modified"].timestamp())

    def _page(self, folder: str | None, last: str | None) -> "Sequence[ObjectMeta]":
        """What comes after a key. After a failure obstore's own stream says that it is at its end, so each is new."""
        return next(iter(obstore.list(self.store, folder, offset=last, chunk_size=PAGE)), [])

    def clear(self, prefix: str = "", only: Callable[[str], object] = anything) -> None:
        """Delete all of that but the locks that this backend holds; they go when they are released."""
        keys = (entry.key for entry in self.files(prefix) if entry.key not in self._locks and only(entry.key))
        while page := list(itertools.islice(keys, PAGE)):
            self._delete(page)
        self._parts.clear()

    def is_empty(self) -> bool:
        return next(self.files(), None) is None

    @contextlib.contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """On this machine's disk."""
        with scratch_folder() as folder:
            yield folder / name

    def publish(self, folder: Path, last: str) -> None:
        self.clear(only=_OF_A_STORE.fullmatch)  # what an upload that was cut off has left
        keys = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        for key in sorted(keys, key=lambda key: key == last):
            self.write(key, (folder / key).read_bytes())

    def sync(self) -> None:
        """Nothing to do: what is written is durable."""

    def zarr_store(self, most: int = MOST_BYTES) -> zarr.storage.ObjectStore[ObjectStore]:
        return zarr.storage.ObjectStore(self.store, read_only=True)

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """Hold a key; see Lease."""
        store = make_store(self.url, self.options, Timeouts(min(5.0, self._lease_s / 3), 0.0))
        lease = Lease(store, self.url, check_key(key), self._lease_s, self._timeouts.retry_s, self.lock_timeout_s)
        with lease.held(waiting) as require:
            self._locks.add(key)
            try:
                yield require
            finally:
                self._locks.discard(key)

    def _delete(self, keys: list[str]) -> None:
        try:
            self._persist(keys[0], lambda: obstore.delete(self.store, keys), changes=True)
        except FileNotFoundError:  # some kinds of store refuse; the other keys of a page are not deleted then
            for key in keys if len(keys) > 1 else []:
                self._delete([key])

    def _persist(self, key: str, request: Callable[[], T], changes: bool = False) -> T:
        """The answer to a request that may be sent twice; one that `changes` something is guarded.

        obstore itself sends again what fails with 5xx, and reads and plain writes without an answer; but not, without
        an answer, deletions and conditional writes, nor any request whose answer breaks off.
        """
        if self._may_lack_credentials:
            self._require_credentials()
        began, pause, said = time.monotonic(), 0.1, False
        while True:
            if changes:
                self.guard()
            try:
                return interruptible(request)
            except OBJECT_STORE_ERRORS as error:
                failure = as_os_error(error, self.url, key)
                if isinstance(error, TooLarge):
                    raise
                waited = time.monotonic() - began
                if not isinstance(failure, TRANSIENT) or waited + pause > self._timeouts.retry_s:
                    raise failure from error
                if waited > SAID_EVERY_S / 2 and not said:
                    LOG.info(f"trying again: {failure}")
                    said = True
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)

    def _require_credentials(self) -> None:
        """A request without credentials would be tried for as long as any: they are asked for over the network."""
        quick = make_store(self.url, self.options, QUICK)
        try:
            interruptible(lambda: obstore.head(quick, "zarr.json"))
        except OBJECT_STORE_ERRORS as error:
            if is_without_credentials(error):
                raise as_os_error(error, self.url, "") from error
        self._may_lack_credentials = False


def interruptible(request: Callable[[], T]) -> T:
    """The result of a request; on the main thread a signal (Ctrl-C, SIGTERM) need not wait for the answer.

    While obstore waits, no handler of Python's runs in its thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return request()
    outcome: Future[T] = Future()

    def answer() -> None:
        try:
            outcome.set_result(request())
        except Exception as error:  # noqa: BLE001 - it is raised where the request was made
            outcome.set_exception(error)

    threading.Thread(target=answer, daemon=True).start()
    return outcome.result()
