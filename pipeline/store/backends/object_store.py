"""A prefix of an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure."""

import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.store import ObjectStore, from_url

from pipeline.errors import UserError
from pipeline.places.failures import FAILURES, TRANSIENT, as_os_error
from pipeline.places.lease import Lease
from pipeline.places.place import Entry, check_key

if TYPE_CHECKING:
    from obstore import ObjectMeta

T = TypeVar("T")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
PAGE = 1000  # keys in one request that lists or deletes


@dataclass(frozen=True)
class Patience:
    """How long an object store is waited for.

    Attributes:
        answer_s: seconds without a byte of an answer after which a request is given up, and sent again.
        retry_s: seconds from the first try after which nothing is tried again.
    """

    answer_s: float = 30.0
    retry_s: float = 90.0


def make_store(url: str, options: Mapping[str, str], patience: Patience) -> ObjectStore:
    """The obstore store of a URL.

    Raises:
        UserError: a URL without a bucket, an unknown option, or one that is missing.
    """
    endpoint = options.get("endpoint") or next((os.environ[name] for name in ENDPOINTS if name in os.environ), "")
    settings: dict[str, Any] = {
        "config": dict(options),
        "client_options": {
            "connect_timeout": timedelta(seconds=min(5.0, patience.answer_s)),
            "timeout": timedelta(seconds=patience.answer_s),
            "allow_http": endpoint.startswith("http://"),
        },
        "retry_config": {
            "max_retries": 1000 if patience.retry_s else 0,
            "retry_timeout": timedelta(seconds=patience.retry_s),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        },
    }
    try:
        return from_url(url, **settings)
    except (*FAILURES, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{url}: {reason}; check the URL and the options of the store") from error


class ObjectPlace:
    """A prefix of an object store.

    A request is tried again, with growing pauses, when there is no answer for 30 s, no connection, or an answer that
    says "later" (5xx); a minute and a half after the first try no other is started, so that an error comes after at
    most about two minutes. What another try cannot mend (no such bucket, access denied) is said at once.

    Args:
        url: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.
        options: obstore's configuration keys (endpoint, region, ...); credentials come from the environment.
        patience: see there.
        lease_s: seconds after which a lock is free when its holder no longer renews it.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, str] | None = None,
        patience: Patience | None = None,
        lease_s: float = 30.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.options = dict(options or {})
        self._patience = patience or Patience()
        self._lease_s = lease_s
        self._parts: dict[str, int] = {}  # of each log, the number of the next part
        self._locks: set[str] = set()  # held by this place
        self.store = make_store(self.url, self.options, self._patience)

    def read(self, key: str) -> bytes:
        check_key(key)
        return self._persist(key, lambda: bytes(obstore.get(self.store, key).bytes()))

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
        self._persist(key, lambda: obstore.put(self.store, key, data, max_concurrency=4))

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
            self._parts[key] = max((int(number) + 1 for number in numbers if number.isdigit()), default=0)
        return self._parts[key]

    def delete(self, key: str) -> None:
        self._delete([check_key(key)])

    def files(self, prefix: str = "") -> Iterator[Entry]:
        folder = prefix.rpartition("/")[0] or None  # the store's own prefixes are whole parts of keys
        last = None
        while page := self._persist(prefix, partial(self._page, folder, last)):
            last = page[-1]["path"]
            for found in page:
                if found["path"].startswith(prefix):
                    yield Entry(found["path"], found["size"], found["last_modified"].timestamp())

    def _page(self, folder: str | None, last: str | None) -> "Sequence[ObjectMeta]":
        """What comes after a key. After a failure obstore's own stream says that it is at its end, so each is new."""
        return next(iter(obstore.list(self.store, folder, offset=last, chunk_size=PAGE)), [])

    def clear(self, prefix: str = "") -> None:
        """Delete everything under the prefix but the locks that this place holds; they go when they are released."""
        keys = (entry.key for entry in self.files(prefix) if entry.key not in self._locks)
        while page := list(itertools.islice(keys, PAGE)):
            self._delete(page)
        self._parts.clear()

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold a key for oneself; see Lease.

        Raises:
            OSError: the store cannot be reached, or, at the end of the context, someone else has taken the lock over.
        """
        store = make_store(self.url, self.options, Patience(min(5.0, self._lease_s / 3), 0.0))
        lease = Lease(store, self.url, check_key(key), self._lease_s, self._patience.retry_s)
        with lease.held(waiting):
            self._locks.add(key)
            try:
                yield
            finally:
                self._locks.discard(key)

    def _delete(self, keys: list[str]) -> None:
        try:
            self._persist(keys[0], lambda: obstore.delete(self.store, keys))
        except FileNotFoundError:  # some kinds of store mind; the others of a page are then still there
            for key in keys if len(keys) > 1 else []:
                self._delete([key])

    def _persist(self, key: str, request: Callable[[], T]) -> T:
        """The answer to a request that may be sent twice.

        obstore itself sends again what fails with 5xx, and reads and plain writes without an answer; but not, without
        an answer, deletions and conditional writes, nor any request whose answer breaks off.
        """
        deadline, pause = time.monotonic() + self._patience.retry_s, 0.1
        while True:
            try:
                return interruptible(request)
            except FAILURES as error:
                failure = as_os_error(error, self.url, key)
                if not isinstance(failure, TRANSIENT) or time.monotonic() + pause > deadline:
                    raise failure from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)


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
