"""The lock of an object store: an object that its holder writes again and again.

Who makes the object holds the lock. Its holder renews it three times in the length of the lease; when the object has
not changed for a whole lease, by the clock of whoever waits, it is free to be taken over. Clocks of two machines are
never compared. Every write is conditional (on no object existing, or on the version last seen), so that of two who
try, one succeeds.

A holder that was frozen for longer than a lease does not know that it was. So whatever it does under the lock it does
after `require`, which renews the lock where it has not been renewed lately, and fails where it is someone else's.
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

from pipeline.store.backends.base import LOCK_TIMEOUT_S
from pipeline.store.backends.object_errors import OBJECT_STORE_ERRORS, TRANSIENT, as_os_error
from pipeline.store.backends.turn import Turn

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion

LARGEST_CLAIM = 1 << 16  # bytes
LONGEST_LEASE_S = 3600.0


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


def now() -> float:
    """Seconds by this machine's steady clock, which goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """One holding of a lock.

    Args:
        store: one that sends each request once, and waits for it much less than a lease: a request that is sent again
            by itself could delete, late, what is someone else's by then.
        url: of the backend.
        key: of the lock.
        lease_s: seconds.
        retry_s: seconds without an answer after which it is no longer tried to get the lock.
        timeout_s: seconds for which another holder is waited for.
    """

    def __init__(
        self, store: ObjectStore, url: str, key: str, lease_s: float, retry_s: float, timeout_s: float = LOCK_TIMEOUT_S
    ) -> None:
        self._store, self._url, self._key = store, url, key
        self._lease_s, self._retry_s, self._timeout_s = lease_s, retry_s, timeout_s
        self._claim = Claim(uuid.uuid4().hex, f"process {os.getpid()} on {socket.gethostname()}", lease_s, 0)
        self._version: UpdateVersion | None = None  # last written, or last seen while waiting
        self._seen_first = 0.0  # when that was, by this machine's steady clock
        self._lost_to = ""
        self._renewed = now()
        self._renewing = threading.Lock()

    @contextlib.contextmanager
    def held(self, waiting: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """Hold the lock; `waiting` is told who holds it, at once and every minute, while one must wait.

        Yields:
            `require`, to be called before whatever only the holder may do.

        Raises:
            OSError: the store does not answer or does not allow it; at the end, someone else has taken the lock over.
        """
        self._acquire(waiting)
        released = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(released,), name=f"lease {self._key}", daemon=True)
        renewing.start()
        try:
            yield self.require
        finally:
            released.set()
            renewing.join()
            self._release()
        self._refuse_if_lost()

    def require(self) -> None:
        """Make sure that the lock is still held, and will be for half a lease.

        Raises:
            OSError: someone else has taken it over; or the store does not answer, so that someone may have.
        """
        asked = now()
        while not self._lost_to and now() - self._renewed > self._lease_s / 2:
            try:
                with self._renewing:
                    self._renew()
            except TRANSIENT:
                if now() - asked > self._retry_s:
                    raise
                time.sleep(self._lease_s / 20)
        self._refuse_if_lost()

    def _refuse_if_lost(self) -> None:
        if self._lost_to:
            raise OSError(
                f"{self._url}/{self._key}: {self._lost_to} took this lock over, as it had not been renewed for "
                f"{self._lease_s:g} s; the work is theirs now: run the same command again once they are done"
            )

    def _acquire(self, waiting: Callable[[str], None]) -> None:
        answered, turn = now(), Turn(f"{self._url}/{self._key}", waiting, self._timeout_s)
        while True:
            try:
                if self._seize(turn):
                    return
                answered = now()
            except FileExistsError:  # another one was faster
                answered = now()
            except TRANSIENT:
                if now() - answered > self._retry_s:
                    raise
            time.sleep(min(2.0, self._lease_s / 10))

    def _seize(self, turn: Turn) -> bool:
        """Take the lock if it is free."""
        asked = now()
        found = self._look()
        if found is None:
            self._write(None)
            return True
        version, claim = found
        if claim.token == self._claim.token:  # a try whose answer was lost
            self._version = version
            return True
        turn.wait_for(claim.holder)
        if version != self._version:
            self._version, self._seen_first = version, now()
        elif asked - self._seen_first >= claim.lease_s:
            self._write(version)
            return True
        return False

    def _renew_until(self, released: threading.Event) -> None:
        pause = self._lease_s / 3
        while not self._lost_to and not released.wait(pause):
            try:
                with self._renewing:
                    self._renew()
                pause = self._lease_s / 3
            except OSError:  # it may go better soon; whoever waits lets a whole lease pass
                pause = self._lease_s / 20

    def _renew(self) -> None:
        try:
            self._write(self._version)
        except FileExistsError:
            found = self._look()
            if found is None and now() - self._renewed > self._lease_s:  # taken over, used and let go
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
        deadline, sent = now() + self._lease_s, False
        while not self._lost_to and now() < deadline:
            with contextlib.suppress(*OBJECT_STORE_ERRORS):
                # A delete whose answer was lost may have been done, and the lock be someone else's by now.
                if sent and not self._is_ours(self._look()):
                    return
                with self._renewing:
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
        with self._as_os_errors():
            try:
                found = obstore.get(self._store, self._key)
                text = bytes(found.bytes()) if found.meta["size"] <= LARGEST_CLAIM else b""
            except FileNotFoundError as error:
                failure = as_os_error(error, self._url, self._key)
                if isinstance(failure, FileNotFoundError):
                    return None
                raise
        version = _version(found.meta)
        try:
            claim = Claim(**json.loads(text))
            if 0 < claim.lease_s <= LONGEST_LEASE_S and isinstance(claim.holder, str):
                return version, claim
        except (ValueError, TypeError, RecursionError):  # nothing of ours
            pass
        return version, Claim("", "another process", self._lease_s, 0)

    def _write(self, version: "UpdateVersion | None") -> None:
        """Write the claim where there is nothing, or this version.

        Raises:
            FileExistsError: another version exists.
        """
        self._claim = replace(self._claim, renewals=self._claim.renewals + 1)
        text = json.dumps(asdict(self._claim)).encode()
        asked = now()
        with self._as_os_errors():
            written = obstore.put(self._store, self._key, text, mode=version or "create")
        self._version, self._renewed = _version(written), asked

    @contextlib.contextmanager
    def _as_os_errors(self) -> Iterator[None]:
        try:
            yield
        except OBJECT_STORE_ERRORS as error:
            raise as_os_error(error, self._url, self._key) from error


def _version(answer: "ObjectMeta | PutResult") -> "UpdateVersion":
    """What a conditional write names; stores use one of the two, or both."""
    given = {"e_tag": answer["e_tag"], "version": answer["version"]}
    return cast("UpdateVersion", {name: value for name, value in given.items() if value is not None})
