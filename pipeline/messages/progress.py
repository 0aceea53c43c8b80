"""Progress on the driver: a bar on a terminal, a plain line now and then elsewhere. Always on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


def note(text: str) -> None:
    """One line for the person who watches."""
    sys.stderr.write(f"dlshap: {text}\n")
    sys.stderr.flush()


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
        self._started = self._last_line = time.monotonic()
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TextColumn("{task.fields[speed]}"), TimeRemainingColumn()]
        console = Console(file=sys.stderr)
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task(doing, total=total, completed=done, speed="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        elif self.total is not None:
            note(f"{self.doing}: {self.total} rows, {self.done} of them done before")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, n_rows: int) -> None:
        """So many more rows are done."""
        self.done += n_rows
        self._new += n_rows
        if self._bar is not None:
            self._bar.update(self._task, advance=n_rows, speed=f"{self.rows_per_second:.1f} rows/s")
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            note(f"{self.doing}: {self.line()}")

    def say(self, text: str) -> None:
        """One line for the person who watches, above the bar."""
        if self._bar is not None:
            self._bar.console.print(f"dlshap: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            note(text)

    @property
    def rows_per_second(self) -> float:
        return self._new / max(time.monotonic() - self._started, 1e-9)

    def line(self) -> str:
        """Where things stand, in a few words."""
        text = f"{self.done} rows" if self.total is None else f"{self.done} of {self.total} rows"
        text += f", {self.rows_per_second:.1f} rows/s"
        if self.total is not None and self._new:
            text += f", {duration((self.total - self.done) / self.rows_per_second)} left"
        return text


class FileProgress:
    """Counts files, on a terminal alone.

    Args:
        doing: what is being done with them.
    """

    def __init__(self, doing: str) -> None:
        console = Console(file=sys.stderr)
        columns = [SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("files")]
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(doing, total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, n_files: int) -> None:
        """So many more files are done."""
        self._bar.update(self._task, advance=n_files)


def duration(seconds: float) -> str:
    """A length of time for people: 4.2 s, 3 min 20 s, 5 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"
