"""Bars of progress, by rich: imported where one is made, as a command that counts nothing does not wait for it."""

import sys
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from pipeline.messages.secrets import without_credentials
from pipeline.messages.visible import VisibleStream


class Shows(Protocol):
    """What writes messages, above the bar while there is one."""

    bar: Progress | None


class Bar(Progress):
    """A bar below the messages of a command that is at a terminal; elsewhere it is disabled and shows nothing.

    Args:
        handler: of the messages; None where nothing is shown.
        columns: behind what is being done.
    """

    def __init__(self, handler: Shows | None, *columns: ProgressColumn) -> None:
        console = Console(file=sys.stderr.stream if isinstance(sys.stderr, VisibleStream) else sys.stderr)
        self._handler = handler
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *columns,
            console=console,
            transient=True,
            disable=handler is None or not console.is_terminal,
        )

    @classmethod
    def of_rows(cls, handler: Shows | None) -> Self:
        """Of rows, whose tasks have a field `speed`."""
        speed = TextColumn("{task.fields[speed]}")
        return cls(handler, BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())

    @classmethod
    def of_files(cls, handler: Shows | None) -> Self:
        """Of files, whose number is not known before."""
        return cls(handler, MofNCompleteColumn(), TextColumn("files"))

    def start(self) -> None:
        if self._handler is not None and not self.disable:
            self._handler.bar = self
            super().start()
            sys.stdout = VisibleStream(sys.stdout)  # rich's own, until `stop`
            sys.stderr = VisibleStream(sys.stderr, without_credentials)

    def stop(self) -> None:
        if self._handler is not None and not self.disable:
            super().stop()
            self._handler.bar = None
