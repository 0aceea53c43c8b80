"""Rows of a kernel shared among threads: those of torch itself where they can be had.

After each operation torch's OpenMP threads keep their processors busy for a while, waiting for the next; threads of
our own would share the processors with them, and two of them take as long as one. GNU's runtime, which torch brings
along on Linux, has one function that compiled code calls for a parallel region, `GOMP_parallel`; called from here it
wakes the same threads. Elsewhere there is a pool of our own. Numba's threads serve one caller at a time.
"""

import ctypes
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_SMALLEST_PART = 1 << 16  # elements of a thread
_MAPS = Path("/proc/self/maps")
_RUNTIMES = re.compile(r"/lib(gomp|omp|iomp5)\b[^/]*$")
_Body = ctypes.CFUNCTYPE(None)  # its argument, a pointer to data, is not looked at


def in_parts(kernel: Callable[..., None], arrays: list[Any], n_rows: int, n_elements: int) -> None:
    """kernel(*arrays, first, last) for all rows, on as many threads as torch would use.

    Raises:
        whatever the kernel raises; of several threads' errors the first.
    """
    if n_elements == 0:
        return
    n_threads = torch.get_num_threads()
    n_parts = min(n_threads, n_rows, n_elements // _SMALLEST_PART)
    if n_parts <= 1:
        kernel(*arrays, 0, n_rows)
        return
    edges = [n_rows * part // n_parts for part in range(n_parts + 1)]
    parts = list(itertools.pairwise(edges))
    runtime = _runtime()
    if runtime is None:
        for pending in [_pool().submit(kernel, *arrays, *part) for part in parts]:
            pending.result()
    else:
        _in_region(runtime, n_threads, kernel, arrays, parts)


def _in_region(
    runtime: ctypes.CDLL, n_threads: int, kernel: Callable[..., None], arrays: list[Any], parts: list[tuple[int, int]]
) -> None:
    """All of torch's threads are called, also for fewer parts: the runtime ends those that it is not asked for."""
    errors: list[BaseException] = []
    pending = iter(parts)  # the interpreter's lock lets one thread at a time take a part
    workers = [_work(pending, kernel, arrays, errors) for _ in range(n_threads)]
    for worker in workers:
        next(worker)
    take_turn = map(next, workers)  # each thread that calls gets a worker of its own
    runtime.GOMP_parallel(_Body(take_turn.__next__), None, n_threads, 0)
    if errors:
        raise errors[0]


def _work(
    pending: Iterator[tuple[int, int]], kernel: Callable[..., None], arrays: list[Any], errors: list[BaseException]
) -> Iterator[None]:
    """What a thread does between two yields.

    A generator, which is inside its `try` before it is called: an interrupt that arrives as a function is entered would
    be printed by ctypes, and lost.
    """
    try:
        yield
        for part in pending:  # the runtime may give fewer threads than it is asked for
            kernel(*arrays, *part)
    except GeneratorExit:  # it was never called
        raise
    except BaseException as error:  # noqa: BLE001  # raised by `_in_region`
        errors.append(error)
    yield


@functools.cache
def _runtime() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch uses, if it is GNU's and there is no doubt which one it is."""
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info() or not _MAPS.is_file():
        return None
    lines = _MAPS.read_text(errors="surrogateescape").splitlines()
    mapped = {Path(line.split(maxsplit=5)[-1]) for line in lines if _RUNTIMES.search(line)}
    site = Path(torch.__file__).parent.parent
    # Torch's own, or the system's if it is the only one.
    found = {path for path in mapped if path.is_relative_to(site) and "torch" in str(path)} or mapped
    if len(found) != 1 or "libgomp" not in (path := found.pop()).name:
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.GOMP_parallel  # noqa: B018  # looked up here
    except (OSError, AttributeError):  # the file is no longer there, say
        return None
    library.GOMP_parallel.argtypes = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="dlshap-kernels")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of the threads
