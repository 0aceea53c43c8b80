"""What nobody expected: a line that says where it happened and where the traceback lies, instead of the traceback."""

import os
import sys
import tempfile
import traceback
from pathlib import Path

import pipeline
from pipeline.messages.errors import RunError

ROOT = Path(pipeline.__file__).resolve().parent.parent


def first_of(error: BaseException) -> BaseException:
    """An error, or the first one of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def fault(error: BaseException) -> RunError:
    """What to tell of an error that none of dlshap's own code expects; the traceback is kept in a file of its own."""
    kind, text = type(error).__name__, _words(error)
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return RunError(
            f"out of memory{f': {text}' if text else ''}; free some, or give the command fewer rows or targets"
        )
    return RunError(
        f"this looks like a fault of dlshap: {kind}{f': {text}' if text else ''}, in {_place(error)}; "
        f"please report it with the traceback, which is in {_kept(error)}"
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """By torch, which is asked only where it is there: importing it takes seconds, or is what went wrong."""
    core = sys.modules.get("dlshap_core.errors")
    return core is not None and core.is_out_of_memory(error)


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failed:  # noqa: BLE001 - an error of someone else's may be unable to say what it is
        return f"(which cannot be shown: {type(failed).__name__})"


def _place(error: BaseException) -> str:
    """The last line of ours that was reached."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)] or list(frames)
    if not ours:
        return "an unknown place"
    path = Path(ours[-1].filename)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}, line {ours[-1].lineno}"


def _kept(error: BaseException) -> str:
    """The file that holds the traceback, which this user alone can read."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="dlshap-fault-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError as failed:
        return f"no file, as none can be written in {os.path.abspath(tempfile.gettempdir())} ({failed.strerror})"
    return path
