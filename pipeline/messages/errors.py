"""Errors of the pipeline, written for the person who gets them, and the exit codes they become."""

import importlib

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
EXIT_CODES = {
    EXIT_DONE: "done, or nothing was left to do",
    EXIT_FAILED: "the run failed, or a check found something",
    EXIT_BAD_INPUT: "bad input or configuration",
    EXIT_STOPPED: "stopped by SIGTERM, or as Ray here or the head of its cluster died: run the same command again",
    EXIT_INTERRUPTED: "stopped by Ctrl-C: run the same command again",
    EXIT_READER_GONE: "the program that read the output has ended, as in `dlshap status STORE | head -1`",
}
STOPPED_BY = {EXIT_STOPPED: "stopped by SIGTERM", EXIT_INTERRUPTED: "stopped by Ctrl-C"}
GOES_ON = "stopped; what is committed is kept, and the same command goes on from there"


class UserError(ValueError):
    """Bad input or configuration; the message is one line that says what, where, what was expected, what to do."""


class RunError(RuntimeError):
    """The run failed on good input; what was committed stays, and the same command goes on from there."""


class DeviceBrokenError(RunError):
    """A device that no longer computes anything in this process, as after some errors of CUDA."""


class ShardError(RunError):
    """A shard failed; the message names the shard, its rows and its sequences."""


class Stopped(BaseException):
    """A signal asked the run to stop, or what it runs on is going away. Like KeyboardInterrupt it is no Exception: no
    handler of errors may hold it.

    Args:
        exit_code: of the command.
        reason: what to tell, where it was no signal.
    """

    def __init__(self, exit_code: int, reason: str = "") -> None:
        super().__init__(reason or STOPPED_BY[exit_code])
        self.exit_code, self.reason = exit_code, reason


def require_extra(extra: str, *modules: str) -> None:
    """Raises UserError when a library is not installed, naming the extra that brings it."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name or module} is not installed; `pip install 'dlshap[{extra}]'` adds it"
            ) from None
