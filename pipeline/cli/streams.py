"""What a command prints where: results on stdout, everything else on stderr; errors are one line."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator

from pipeline.messages import errors
from pipeline.messages.secrets import one_line
from pipeline.messages.visible import line, to_json


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Whatever libraries and their child processes print goes to stderr: stdout is for results alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def complain(error: Exception, exit_code: int, as_json: bool = False) -> int:
    """One line on stderr; for programs an object on stdout."""
    text = one_line(error)
    print(f"dlshap: error: {line(text)}", file=sys.stderr)
    if as_json:
        print(to_json({"error": text, "exit_code": exit_code}))
    return exit_code


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Where whoever reads the output goes away (`| head`), end the process with EXIT_READER_GONE and no message.

    The buffers are written here: an error that comes when the interpreter ends cannot be reported.
    """
    try:
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:  # closed by `>&-`
                    stream.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2) if isinstance(error, BrokenPipeError) else (1,):
            os.dup2(nowhere, descriptor)
        if isinstance(error, BrokenPipeError):
            sys.exit(errors.EXIT_READER_GONE)
        sys.exit(complain(OSError(f"cannot write the output: {error.strerror}"), errors.EXIT_FAILED))


def reader_is_gone() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads any more."""
    watched = select.poll()
    for descriptor in (1, 2):
        watched.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))
