"""Kernels on torch's own threads, and on a pool where those cannot be had."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from dlshap_core.kernels import threads

ROWS = 37


@pytest.fixture(params=["of torch", "of a pool"])
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SMALLEST_PART", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    if request.param == "of a pool":
        monkeypatch.setattr(threads, "_runtime", lambda: None)
    elif threads._runtime() is None:
        pytest.skip("torch is not built with GNU's OpenMP here")


@pytest.mark.usefixtures("_threads")
def test_every_row_is_done_once() -> None:
    done, workers = np.zeros(ROWS, dtype=int), set()

    def kernel(rows: np.ndarray, first: int, last: int) -> None:
        workers.add(threading.get_ident())
        rows[first:last] += 1
        time.sleep(0.001)  # lets go of the interpreter's lock, as compiled kernels do

    for n in range(1, 51):
        threads.in_parts(kernel, [done], ROWS, 1000)
        assert (done == n).all()
    assert len(workers) > 1


@pytest.mark.usefixtures("_threads")
def test_from_several_python_threads_at_once() -> None:
    def work(rows: np.ndarray) -> None:
        for _ in range(100):
            threads.in_parts(lambda rows, first, last: np.add.at(rows, range(first, last), 1), [rows], ROWS, 1000)

    counts = [np.zeros(ROWS, dtype=int) for _ in range(4)]
    callers = [threading.Thread(target=work, args=(rows,)) for rows in counts]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all((rows == 100).all() for rows in counts)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("error", [ValueError("of a kernel"), KeyboardInterrupt()])
def test_what_a_kernel_raises_is_raised(error: BaseException) -> None:
    def kernel(first: int, last: int) -> None:
        if last == ROWS:
            raise error

    with pytest.raises(type(error)):
        threads.in_parts(kernel, [], ROWS, 1000)


@pytest.mark.parametrize(
    ("maps", "configuration"),
    [
        ("", "ATen parallel backend: OpenMP"),
        ("0-1 r-xp 0 0:0 1 /usr/lib/libgomp.so.1\n", "ATen parallel backend: native thread pool"),
        ("0-1 r-xp 0 0:0 1 /a/libgomp.so.1\n0-1 r-xp 0 0:0 1 /b/libiomp5.so\n", "ATen parallel backend: OpenMP"),
        ("0-1 r-xp 0 0:0 1 /a/libgomp.so.1\n0-1 r-xp 0 0:0 1 /b/libgomp.so.1\n", "ATen parallel backend: OpenMP"),
    ],
)
def test_no_runtime_where_there_is_doubt(
    maps: str, configuration: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "maps").write_text(maps)
    monkeypatch.setattr(threads, "_MAPS", tmp_path / "maps")
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: configuration)
    assert threads._runtime.__wrapped__() is None


@pytest.mark.usefixtures("_threads")
def test_an_interrupt_is_not_lost() -> None:
    """Its handler runs in the main thread, at the first Python code there: that may be a thread's part, or before."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def kernel(first: int, last: int) -> None:
        if first == 0:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        for _ in range(50):
            with pytest.raises(KeyboardInterrupt):
                threads.in_parts(kernel, [], ROWS, 1000)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(threads._runtime() is None, reason="torch does not use GNU's OpenMP runtime here")
def test_threads_are_kept_for_fewer_parts() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        torch.randn(1 << 20).exp()
        tasks = set(os.listdir("/proc/self/task"))
        threads.in_parts(lambda first, last: None, [], 2, 1 << 20)
        torch.randn(1 << 20).exp()
        assert set(os.listdir("/proc/self/task")) == tasks
    finally:
        torch.set_num_threads(before)
