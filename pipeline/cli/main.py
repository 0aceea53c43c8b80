"""The command line: `dlshap run [group=choice] [name=value] ...`."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from pipeline.cli import audit, compare, completion, doctor, export, logo, motifs, plan, report, run, status, verify
from pipeline.cli.faults import fault, first_of
from pipeline.cli.parser import build
from pipeline.cli.streams import complain, reader_is_gone, reader_may_leave
from pipeline.messages import errors
from pipeline.messages.errors import RunError, Stopped, UserError
from pipeline.messages.progress import shown_on_stderr
from pipeline.messages.secrets import refuse_arguments
from pipeline.messages.visible import to_json, visible_streams
from pipeline.models import own_modules

COMMANDS = {
    "run": run,
    "plan": plan,
    "audit": audit,
    "status": status,
    "verify": verify,
    "export": export,
    "report": report,
    "logo": logo,
    "motifs": motifs,
    "compare": compare,
    "doctor": doctor,
    "completion": completion,
}
STOPPED = {signal.SIGTERM: errors.EXIT_STOPPED, signal.SIGINT: errors.EXIT_INTERRUPTED}
GRACE_S = 20  # for the way out after a signal; what is not finished by then is done again by the same command
END_S = 5  # for the end of the interpreter after that
FULL = os.strerror(errno.ENOSPC)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this process; ends the process with an exit code (see errors.py)."""
    with reader_may_leave():
        exit_code = dispatch(sys.argv[1:] if arguments is None else arguments)
    if exit_code in STOPPED.values():
        for number in STOPPED:
            signal.signal(number, signal.SIG_IGN)
        _end_after(END_S, exit_code)
    sys.exit(exit_code)


@visible_streams()
def dispatch(arguments: Sequence[str]) -> int:
    """Run a command line, and turn errors into a line on stderr and an exit code."""
    as_json = "--json" in arguments
    try:
        refuse_arguments(arguments)
        parser = build(COMMANDS, arguments[0] if arguments else None)
        if not arguments:
            parser.print_help()
            return errors.EXIT_DONE
        options = parser.parse(arguments)
        _require_usable_folder(arguments[0])
        with signals_stop(), shown_on_stderr(), own_modules.restored():
            exit_code: int = options.run(options)
            return exit_code
    except (Exception, KeyboardInterrupt, Stopped, BaseExceptionGroup) as raised:
        return _end_by(first_of(raised), as_json)


def _end_by(error: BaseException, as_json: bool) -> int:
    """Tell what ended a command, in a line; returns the exit code."""
    if isinstance(error, UserError):
        return complain(error, errors.EXIT_BAD_INPUT, as_json)
    if isinstance(error, BrokenPipeError) and reader_is_gone():
        raise error
    if isinstance(error, RunError | OSError):  # OSError: a disk that is full or gone
        if FULL in str(error):
            error = RunError(f"{error}; free some space and run the same command again: what is committed is kept")
        return complain(error, errors.EXIT_FAILED, as_json)
    if isinstance(error, Stopped | KeyboardInterrupt):
        exit_code = error.exit_code if isinstance(error, Stopped) else errors.EXIT_INTERRUPTED
        text = errors.GOES_ON
        if isinstance(error, Stopped) and error.reason:
            text = f"stopped: {error.reason}"
        print(f"dlshap: {text}", file=sys.stderr)
        if as_json:
            print(to_json({"error": text, "exit_code": exit_code}))
        return exit_code
    if not isinstance(error, Exception):
        raise error
    return complain(fault(error), errors.EXIT_FAILED, as_json)


def _require_usable_folder(command: str) -> None:
    """Raise UserError where libraries would stumble over the working folder, or take settings from it.

    numba reads where compiled code lies, which it unpickles, from a file of that folder; Matplotlib how pictures look,
    whatever the file is (a pipe, settings without end).
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder has been removed; run the command in another folder") from None
    for name in (".numba_config.yaml", *getattr(COMMANDS.get(command), "FOLDER_FILES", ())):
        if os.path.lexists(name):
            raise UserError(f"{name} lies in the working folder; remove it, or run the command in another folder")


@contextlib.contextmanager
def signals_stop() -> Iterator[None]:
    """SIGTERM (a time limit, a spot notice) and Ctrl-C raise `Stopped`, with the exit code of each.

    Whatever becomes of it on the way out (a library may be interrupted where it takes any exception for its own, and
    whoever stops us may stop Ray too), `Stopped` is what leaves this context. The way out takes no longer than GRACE_S:
    then the process ends all the same, with that code.
    """
    asked: list[int] = []
    watchdogs: list[threading.Timer] = []

    def stop(number: int, frame: FrameType | None) -> None:
        for name in STOPPED:
            signal.signal(name, signal.SIG_IGN)  # a second signal must not interrupt the way out
        exit_code = STOPPED[signal.Signals(number)]
        asked.append(exit_code)
        watchdogs.append(_end_after(GRACE_S, exit_code))
        raise Stopped(exit_code)

    before = {number: signal.signal(number, stop) for number in STOPPED}
    try:
        yield
    except BaseException as error:
        if asked:
            raise Stopped(asked[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for watchdog in watchdogs:
            watchdog.cancel()


def _end_after(seconds: float, exit_code: int) -> threading.Timer:
    """End this process after a time, whatever it is doing then."""
    watchdog = threading.Timer(seconds, os._exit, [exit_code])
    watchdog.daemon = True
    watchdog.start()
    return watchdog
