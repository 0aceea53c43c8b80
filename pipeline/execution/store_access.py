"""The store and its run directory as a command meets them: other commands may work on them, or take them away."""

import contextlib
from collections.abc import Iterator
from typing import Any

from pipeline.messages.errors import RunError, UserError
from pipeline.messages.progress import LOG
from pipeline.store.attributes import read_attributes
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import ROOT


def attributes_of(directory: RunDirectory) -> dict[str, Any] | None:
    """Attributes of the store; None where there is none, or its own file is missing: not there yet, or no longer.

    Raises:
        UserError: something else lies at its path.
    """
    if directory.store.size(ROOT) is None and directory.read_plan() is not None:
        return None
    return read_attributes(directory.store, is_known=directory.prepared)


def present_attributes(directory: RunDirectory) -> dict[str, Any]:
    """Attributes of a store that existed a moment ago.

    Raises:
        RunError: it is gone.
    """
    attributes = attributes_of(directory)
    if attributes is None:
        raise RunError(f"{directory.url} was removed or given up meanwhile; run the same command again")
    return attributes


@contextlib.contextmanager
def claimed(directory: RunDirectory, doing: str) -> Iterator[None]:
    """Within this context no other command prepares or completes the store.

    Raises:
        UserError: the storage cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            claim = directory.claim(lambda who: LOG.info(f"waiting for {who}, which is {doing} {directory.url}"))
            stack.enter_context(claim)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write to {directory.run.url}: {reason}; check store.path") from error
        yield
