"""Notices that the head of a cluster has died, or is cut off, or that Ray on this machine has died, and says so.

Ray itself ends this process some time later (60 s after the head, 13 s after this machine's own), from its native part:
without a word of ours, a result, or a chance to do either.
"""

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from pipeline.messages.errors import EXIT_STOPPED, Stopped
from pipeline.messages.progress import LOG, duration

EVERY_S = 0.5
ANSWER_TIMEOUT_S = 10.0
WARNED_AFTER_S = 8.0
DEAD_AFTER_S = 45.0  # nothing comes back: a machine that is off, or a network that is cut and may be mended
REFUSED_AFTER_S = 1.5  # its machine answers that no Ray listens there, and what begins there again is another Ray
RESTARTED_AFTER_S = 20.0  # the same of a head that keeps its state, and goes on when it is started again
# For the way out; then this process is ended all the same, before Ray's native part looks for the head again.
GRACE_S = 5.0
SOON_S = 0.1
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and settings, none
HTTP2_SETTINGS = 4  # the kind of frame that a server must answer with
SIGNAL = signal.SIGRTMAX - 5  # of the watch to its own process: it interrupts whatever the main thread waits for


class NoRayAnswers(OSError):
    """Something answers, and it is no Ray."""


def greet(address: str, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
    """Have a head answer, as all of Ray speaks gRPC, which is HTTP/2: a greeting is answered with a frame of settings.

    Args:
        address: host:port.
        timeout_s: of each step.

    Raises:
        TimeoutError: nothing comes back.
        NoRayAnswers: what answers is no Ray.
        OSError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return  # it expects a handshake that only Ray knows how to make
        connection.sendall(HTTP2_HELLO)
        answer = connection.recv(9, socket.MSG_WAITALL)
    if len(answer) < 9 or answer[3] != HTTP2_SETTINGS:
        raise NoRayAnswers("what answers there is no Ray cluster")


@dataclass(frozen=True)
class Part:
    """A part of Ray without which a run cannot go on.

    Attributes:
        name: what a person calls it.
        address: host:port.
        until: what must be before the same command can go on.
        refused_after_s, dead_after_s: seconds without an answer after which it is given up, where its machine says that
            nothing listens there, and where nothing comes back.
    """

    name: str
    address: str
    until: str
    refused_after_s: float
    dead_after_s: float

    def __str__(self) -> str:
        return f"{self.name} at {self.address}"


def head(address: str, keeps_state: bool) -> Part:
    """The head of a cluster. One that does not keep its state must be given up before another is at its address: Ray's
    native part ends this process as soon as it meets that."""
    refused_after_s = RESTARTED_AFTER_S if keeps_state else REFUSED_AFTER_S
    return Part("the head of the Ray cluster", address, "a cluster is up", refused_after_s, DEAD_AFTER_S)


def own_node(address: str) -> Part:
    """What Ray runs on this machine (the raylet), which may be busy for long."""
    return Part("Ray on this machine", address, "Ray runs here", REFUSED_AFTER_S, math.inf)


class Silence:
    """How long a part of Ray has given no answer."""

    def __init__(self, part: Part, now: float) -> None:
        self.part, self.answered, self.is_warned, self.is_refused = part, now, False, False

    def note(self, error: OSError | None, now: float) -> str | None:
        """What one attempt came to, by a clock that only goes forward; what to say where the part is given up."""
        self.is_refused = isinstance(error, ConnectionRefusedError)
        if error is None:
            if self.is_warned:
                LOG.info(f"{self.part} answers again")
            self.answered, self.is_warned = now, False
            return None
        silent_s = now - self.answered
        longest_s = self.part.refused_after_s if self.is_refused else self.part.dead_after_s
        if silent_s >= longest_s:
            why = "no Ray listens there any more" if self.is_refused else "it has died, or the network to it is cut"
            return (
                f"{self.part} has not answered for {duration(silent_s)}: {why}; what is committed is kept, and the "
                f"same command goes on from there once {self.part.until}"
            )
        if silent_s >= WARNED_AFTER_S and not self.is_warned and longest_s < math.inf:
            LOG.warning(f"{self.part} does not answer; waiting up to {longest_s:.0f} s for it")
            self.is_warned = True
        return None


@contextlib.contextmanager
def ray_watched(
    parts: Sequence[Part], last_words: Callable[[str], None], disconnected: threading.Event
) -> Iterator[None]:
    """Within this context `Stopped` is raised, with exit code 75, where a part of Ray is gone.

    Only the main thread can be interrupted; in another one this does nothing, and Ray ends the process.

    Args:
        parts: are asked, one after the other, every EVERY_S.
        last_words: is told the reason, before the run is interrupted: its way out may take longer than there is time.
        disconnected: is set when this process has left Ray, for which Ray may wait for the part that is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended, reasons = threading.Event(), list[str]()

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Stopped(EXIT_STOPPED, reasons[0])

    def watch() -> None:
        silences = [Silence(part, time.monotonic()) for part in parts]
        while not ended.wait(EVERY_S):
            notes = (silence.note(_attempt(silence.part.address), time.monotonic()) for silence in silences)
            reason = next(filter(None, notes), None)
            if reason is not None and not ended.is_set():
                reasons.append(reason)
                with contextlib.suppress(OSError):  # the storage of the run is away too
                    last_words(reason)
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
                if not _leaves(disconnected, [each.part for each in silences if each.is_refused]):
                    LOG.error(f"stopped: {reason}")
                    os._exit(EXIT_STOPPED)
                return

    before = signal.signal(SIGNAL, give_up)
    watching = threading.Thread(target=watch, name="Ray watch", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        signal.signal(SIGNAL, before)


def _leaves(disconnected: threading.Event, refusing: Sequence[Part]) -> bool:
    """Whether this process leaves Ray within GRACE_S, and before another Ray is where a part refused to answer: Ray's
    native part ends this process as soon as it meets that."""
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until:
        if disconnected.wait(SOON_S):
            return True
        if any(_attempt(part.address, SOON_S) is None for part in refusing):
            return False
    return False


def _attempt(address: str, timeout_s: float = ANSWER_TIMEOUT_S) -> OSError | None:
    try:
        greet(address, timeout_s)
    except OSError as error:
        return error
    return None
