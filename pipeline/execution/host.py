"""The process that a run is called in: what a run changes in it, and restores when it ends, however it ends."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping

from pipeline.models import own_modules

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h


@contextlib.contextmanager
def environment(variables: Mapping[str, str], *, replace: bool = False) -> Iterator[None]:
    """Set environment variables for the time of this context: those that are not set, or all with `replace`."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if replace or before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def same_search_path() -> Iterator[None]:
    """Put sys.path and the working folder back: the user's own modules, and the search for them, change them."""
    path, folder = list(sys.path), os.getcwd()
    try:
        with own_modules.restored():
            yield
    finally:
        sys.path[:] = path
        os.chdir(folder)


@contextlib.contextmanager
def own_numerics(allow_tf32: bool) -> Iterator[None]:
    """Set aside what the caller has set in torch and numpy, and put back the states of its random generators.

    Calls of several threads that do and do not allow TF32 wait for each other.
    """
    import torch  # seconds that a command need not wait for

    from dlshap_core.passes.host import process_settings, random_states, thread_settings

    device = torch.device("cuda" if torch.cuda.is_available() and torch.cuda.is_initialized() else "cpu")
    with thread_settings(), process_settings(allow_tf32), random_states(device):
        yield


def give_back_freed_memory() -> None:
    """Have this process give large pieces of memory back as soon as they are free, where memory is dearer than time."""
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        for option, n_bytes in ((_M_TRIM_THRESHOLD, 2**22), (_M_TOP_PAD, 0), (_M_MMAP_THRESHOLD, 2**22)):
            libc.mallopt(option, n_bytes)


def keep_freed_memory() -> None:
    """Have this process keep what it frees for what it allocates next, to its end.

    glibc gives activations back to the system with every batch, and takes them anew page by page: several percent of a
    batch on a CPU. Elsewhere this does nothing.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        for option, n_bytes in ((_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28), (_M_MMAP_THRESHOLD, 2**30)):
            libc.mallopt(option, n_bytes)
