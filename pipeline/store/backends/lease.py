"""The lock of an object store: an object that its holder writes again and again.

Who makes the object holds the lock. Its holder renews it three times in the length of the lease; when the object has
not changed for a whole lease, by the clock of whoever waits, it is free to be taken over. Clocks of two machines are
never compared. Every write is conditional (on nothing being there, or on the version last seen), so that of two who
try, one succeeds.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, cast

import obstore
from obstore.store import ObjectStore

from pipeline.places.failures import FAILURES, TRANSIENT, as_os_error

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion


@dataclass(frozen=True)
class Claim:
    """What the object says.

    Attributes:
        token: unique to one holding of the lock.
        holder: who that is, for people.
        lease_s: how long the object may stay unchanged.
        renewals: the content must differ each time, because the version (etag) of an object may be a hash of it.
    """

    token: str
    holder: str
    lease_s: float
    renewals: int


class Lease:
    """One holding of a lock.

    Args:
        store: one that sends each request once, and waits for it much less than a lease: a request that is sent again
            by itself could delete, late, what is someone else's by then.
        url: of the place.
        key: of the lock.
        lease_s: seconds.
        retry_s: seconds without an answer after which it is no longer tried to get the lock.
    """

    def __init__(self, store: ObjectStore, url: str, key: str, lease_s: float, retry_s: float) -> None:
        self._store, self._url, self._key = store, url, key
        self._lease_s, self._retry_s = lease_s, retry_s
        self._claim = Claim(uuid.uuid4().hex, f"process {os.getpid()} on {socket.gethostname()}", lease_s, 0)
        self._version: UpdateVersion | None = None  # last written, or last seen while waiting
        self._seen_first = 0.0  # when that was, by this machine's steady clock
        self._told = False
        self._lost_to = ""
        self._renewed = time.monotonic()

    @contextlib.contextmanager
    def held(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock; `waiting` is told once who holds it, where one must wait.

        Raises:
            OSError: the store does not answer or does not allow it; at the end, someone else has taken the lock over.
        """
        self._acquire(waiting)
        released = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(released,), name=f"lease {self._key}", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            released.set()
            renewing.join()
            self._release()
        if self._lost_to:
            raise OSError(
                f"{self._url}/{self._key}: {self._lost_to} took this lock over, as it had not been renewed for "
                f"{self._lease_s:g} s; the work is theirs now: run the same command again once they are done"
            )

    def _acquire(self, waiting: Callable[[str], None]) -> None:
        answered = time.monotonic()
        while True:
            try:
                if self._seize(waiting):
                    return
                answered = time.monotonic()
            except FileExistsError:  # another one was faster
                answered = time.monotonic()
            except TRANSIENT:
                if time.monotonic() - answered > self._retry_s:
                    raise
            time.sleep(min(2.0, self._lease_s / 10))

    def _seize(self, waiting: Callable[[str], None]) -> bool:
        """Take the lock if it is free."""
        asked = time.monotonic()
        found = self._look()
        if found is None:
            self._write(None)
            return True
        version, claim = found
        if claim.token == self._claim.token:  # a try whose answer was lost
            self._version = version
            return True
        if not self._told:
            waiting(claim.holder)
            self._told = True
        if version != self._version:
            self._version, self._seen_first = version, time.monotonic()
        elif asked - self._seen_first >= claim.lease_s:
            self._write(version)
            return True
        return False

    def _renew_until(self, released: threading.Event) -> None:
        pause = self._lease_s / 3
        while not self._lost_to and not released.wait(pause):
            try:
                self._renew()
                pause = self._lease_s / 3
            except OSError:  # it may go better soon; whoever waits lets a whole lease pass
                pause = self._lease_s / 20

    def _renew(self) -> None:
        try:
            self._write(self._version)
        except FileExistsError:
            found = self._look()
            if found is None and time.monotonic() - self._renewed > self._lease_s:  # taken over, used and let go
                self._lost_to = "someone"
            elif found is None:  # someone removed it
                self._write(None)
            elif found[1].token == self._claim.token:  # a renewal whose answer was lost
                self._write(found[0])
            else:
                self._lost_to = found[1].holder

    def _release(self) -> None:
        """Renew once more, which shows that it is ours for a while yet, and delete it then.

        Where the store does not answer, the lock runs out by itself.
        """
        deadline, sent = time.monotonic() + self._lease_s, False
        while not self._lost_to and time.monotonic() < deadline:
            with contextlib.suppress(*FAILURES):
                # A delete whose answer was lost may have been done, and the lock be someone else's by now.
                if sent and not self._is_ours(self._look()):
                    return
                self._renew()
                if not self._lost_to:
                    sent = True
                    obstore.delete(self._store, self._key)
                return
            time.sleep(self._lease_s / 20)

    def _is_ours(self, found: "tuple[UpdateVersion, Claim] | None") -> bool:
        return found is not None and found[1].token == self._claim.token

    def _look(self) -> "tuple[UpdateVersion, Claim] | None":
        """The lock as it is; None where nothing is."""
        with self._failures():
            try:
                found = obstore.get(self._store, self._key)
                text = bytes(found.bytes())
            except FileNotFoundError as error:
                failure = as_os_error(error, self._url, self._key)
                if isinstance(failure, FileNotFoundError):
                    return None
                raise
        version = _version(found.meta)
        try:
            return version, Claim(**json.loads(text))
        except (ValueError, TypeError):
            return version, Claim("", "another process", self._lease_s, 0)

    def _write(self, version: "UpdateVersion | None") -> None:
        """Write the claim where there is nothing, or this version.

        Raises:
            FileExistsError: there is another one.
        """
        self._claim = replace(self._claim, renewals=self._claim.renewals + 1)
        text = json.dumps(asdict(self._claim)).encode()
        asked = time.monotonic()
        with self._failures():
            written = obstore.put(self._store, self._key, text, mode=version or "create")
        self._version, self._renewed = _version(written), asked

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise as_os_error(error, self._url, self._key) from error


def _version(answer: "ObjectMeta | PutResult") -> "UpdateVersion":
    """What a conditional write names; stores use one of the two, or both."""
    given = {"e_tag": answer["e_tag"], "version": answer["version"]}
    return cast("UpdateVersion", {name: value for name, value in given.items() if value is not None})
