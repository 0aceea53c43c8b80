"""Notices that the head of a cluster has died, or is cut off, and says so.

Ray itself ends this process some 60 s later, from its native part: without a word, a result, or a chance to do either.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from pipeline.messages.errors import EXIT_STOPPED, Stopped
from pipeline.messages.progress import LOG, duration

EVERY_S = 2.0
ANSWER_TIMEOUT_S = 10.0
WARNED_AFTER_S = 8.0
DEAD_AFTER_S = 45.0  # nothing comes back: a machine that is off, or a network that is cut and may be mended
REFUSED_AFTER_S = 20.0  # its machine answers that no Ray listens there: a head that restarts may take some seconds
GRACE_S = 8.0  # for the way out, on which Ray may wait for the head; then this process is ended all the same
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


class Silence:
    """How long a head has given no answer."""

    def __init__(self, address: str, now: float) -> None:
        self.address, self.answered, self.is_warned = address, now, False

    def note(self, error: OSError | None, now: float) -> str | None:
        """What one attempt came to, by a clock that only goes forward; what to say where the head is given up."""
        if error is None:
            if self.is_warned:
                LOG.info(f"the head of the Ray cluster at {self.address} answers again")
            self.answered, self.is_warned = now, False
            return None
        silent_s, is_refused = now - self.answered, isinstance(error, ConnectionRefusedError)
        longest_s = REFUSED_AFTER_S if is_refused else DEAD_AFTER_S
        if silent_s >= longest_s:
            why = "no Ray listens there any more" if is_refused else "it has died, or the network to it is cut"
            return (
                f"the head of the Ray cluster at {self.address} has not answered for {duration(silent_s)}: {why}; what "
                f"is committed is kept, and the same command goes on from there once a cluster is up"
            )
        if silent_s >= WARNED_AFTER_S and not self.is_warned:
            LOG.warning(
                f"the head of the Ray cluster at {self.address} does not answer; waiting up to {longest_s:.0f} s for it"
            )
            self.is_warned = True
        return None


@contextlib.contextmanager
def head_watched(address: str, last_words: Callable[[str], None]) -> Iterator[None]:
    """Within this context `Stopped` is raised, with exit code 75, where the head of the connected cluster is gone.

    Only the main thread can be interrupted; in another one this does nothing, and Ray ends the process.

    Args:
        address: host:port of the head.
        last_words: is told the reason, before the run is interrupted: its way out may take longer than there is time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended, reasons = threading.Event(), list[str]()

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Stopped(EXIT_STOPPED, reasons[0])

    def watch() -> None:
        silence = Silence(address, time.monotonic())
        while not ended.wait(EVERY_S):
            reason = silence.note(_attempt(address), time.monotonic())
            if reason is not None and not ended.is_set():
                reasons.append(reason)
                with contextlib.suppress(OSError):  # the storage of the run is away too
                    last_words(reason)
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
                if not ended.wait(GRACE_S):
                    LOG.error(f"stopped: {reason}")
                    os._exit(EXIT_STOPPED)
                return

    before = signal.signal(SIGNAL, give_up)
    watching = threading.Thread(target=watch, name="head watch", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        signal.signal(SIGNAL, before)


def _attempt(address: str) -> OSError | None:
    try:
        greet(address)
    except OSError as error:
        return error
    return None
