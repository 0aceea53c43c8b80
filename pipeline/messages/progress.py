"""Progress and messages on the driver, as records of the logger `dlshap`; a command shows them on stderr.

A library call logs and prints nothing. Within `shown_on_stderr` records are lines on stderr, `dlshap: ...`, and on a
terminal there is a bar below them. Elsewhere progress is a record now and then.
"""

import contextlib
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.messages.secrets import without_credentials
from pipeline.messages.visible import line

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BEFORE_STEPS = 3.0


class _OneLine(logging.Filter):
    """Makes the message of a record one line, for every handler: names and errors of others are in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = line(without_credentials(record.getMessage())), ()
        return True


LOG = logging.getLogger("dlshap")
LOG.addFilter(_OneLine())
RAY_LOG = LOG.getChild("ray")  # what Ray says, for the log of a run alone
RAY_LOG.setLevel(logging.DEBUG)
Advance = Callable[[int], None]  # told how many more rows are done


class StderrHandler(logging.Handler):
    """Writes a line for each record, above the bar while there is one."""

    bar: "Progress | None" = None

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " if record.levelno == logging.WARNING else ""
        text = f"dlshap: {warning}{record.getMessage()}"
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


@contextlib.contextmanager
def shown_on_stderr() -> Iterator[None]:
    """Show messages and progress on stderr, for the time of a command; other handlers of the logger stay."""
    handler, level, propagate = StderrHandler(logging.INFO), LOG.level, LOG.propagate
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # or a handler of the root logger would say everything again
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        LOG.propagate = propagate


@contextlib.contextmanager
def now_and_then(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` from time to time, on a thread of its own, while something works that tells nothing."""
    ended = threading.Event()

    def tell_on() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            tell()

    thread = threading.Thread(target=tell_on, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _handler() -> StderrHandler | None:
    """What shows messages now."""
    return next((each for each in LOG.handlers if isinstance(each, StderrHandler)), None)


class RowProgress:
    """Counts rows and says how many there are, how fast they come, and how long the rest will take.

    Args:
        doing: what is being done.
        total: rows, or None where it is not known yet.
        done: rows that were there before.
    """

    def __init__(self, doing: str, total: int | None, done: int = 0) -> None:
        self.doing, self.total, self.done = doing, total, done
        self._new = 0
        self._first: tuple[float, int] | None = None  # when the first came, after what starts up, and how many
        self._step_from: float | None = None
        self._step: str | None = None
        self._telling = contextlib.ExitStack()
        self._started = self._last_line = time.monotonic()
        from pipeline.messages.bar import Bar

        self._bar = Bar.of_rows(_handler())
        self._task = self._bar.add_task(doing, total=total, completed=done, speed="")

    def __enter__(self) -> Self:
        self._bar.start()
        if self._bar.disable and self.total is not None:
            LOG.info(f"{self.doing}: {self.total} rows{f', {self.done} of them done before' if self.done else ''}")
        if self._bar.disable:
            self._telling.enter_context(now_and_then(self._tell))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._telling.close()
        self._bar.stop()

    def _tell(self) -> None:
        """Where things stand, unless that was told shortly before."""
        now = time.monotonic()
        if now - self._last_line > SECONDS_BETWEEN_LINES / 2:
            self._last_line = now
            LOG.info(self._step if self._step and not self.done else f"{self._step or self.doing}: {self.line()}")

    def advance(self, n_rows: int) -> None:
        """So many more rows are done."""
        self.done += n_rows
        self._new += n_rows
        self._first = self._first or (time.monotonic(), n_rows)
        self._bar.update(self._task, advance=n_rows, speed=f"{self.rows_per_second:.1f} rows/s")
        if self._bar.disable and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._tell()

    def step(self, doing: str | None) -> None:
        """Something else is done before the next row; None: it is over. Off a terminal it is told where this takes
        long, with the first step that begins after some seconds."""
        now = time.monotonic()
        self._step, self._step_from = doing, None if doing is None else self._step_from or now
        self._bar.update(self._task, description=doing or self.doing)
        if self._bar.disable and self._step_from is not None and now - self._step_from > SECONDS_BEFORE_STEPS:
            self._last_line = now
            LOG.info(str(doing))

    @property
    def rows_per_second(self) -> float:
        """Since the first rows came, without these; while there are no others, of these since the start."""
        since, before = (self._started, 0) if self._first is None or self._has_first_alone else self._first
        return (self._new - before) / max(time.monotonic() - since, 1e-9)

    @property
    def _has_first_alone(self) -> bool:
        return self._first is not None and self._new == self._first[1]

    def line(self) -> str:
        """Where things stand, in a few words."""
        text = f"{self.done} rows" if self.total is None else f"{self.done} of {self.total} rows"
        if self._new:
            text += f", {self.rows_per_second:.1f} rows/s"
        if self.total is not None and self._new and not self._has_first_alone:
            text += f", {duration((self.total - self.done) / self.rows_per_second)} left"
        return text


@contextlib.contextmanager
def file_progress(doing: str) -> Iterator[Callable[[int], None]]:
    """Count files, on a terminal alone: what is yielded is told of so many more of them."""
    from pipeline.messages.bar import Bar

    with Bar.of_files(_handler()) as bar:
        yield functools.partial(bar.advance, bar.add_task(doing, total=None))


def duration(seconds: float) -> str:
    """A length of time for people: 4.2 s, 3 min 20 s, 5 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"
