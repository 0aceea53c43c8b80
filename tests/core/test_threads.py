"""Kernels on several threads: all rows are done, and what is raised on the way comes through."""

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dlshap_core.rules import threads

N_ROWS = 8
ENOUGH = 1 << 20  # elements, for as many threads as there are


@pytest.fixture(params=["torch", "own"])
def _four_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "own":
        monkeypatch.setattr(threads, "_runtime", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_four_threads")
@pytest.mark.parametrize("n_rows", [1, 3, 4, 9])
def test_each_row_is_done_once(n_rows: int) -> None:
    done = np.zeros(n_rows)

    def kernel(out: np.ndarray, first: int, last: int) -> None:
        out[first:last] += 1

    threads.in_parts(kernel, [done], n_rows, ENOUGH)
    assert (done == 1).all()


@pytest.mark.usefixtures("_four_threads")
def test_an_error_on_any_thread_is_raised() -> None:
    def kernel(first: int, last: int) -> None:
        if last == N_ROWS:
            raise MemoryError("the last part")

    with pytest.raises(MemoryError, match="the last part"):
        threads.in_parts(kernel, [], N_ROWS, ENOUGH)


@pytest.mark.usefixtures("_four_threads")
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
                threads.in_parts(kernel, [], N_ROWS, ENOUGH)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(threads._runtime() is None, reason="torch does not use GNU's OpenMP runtime here")
@pytest.mark.usefixtures("_four_threads")
def test_threads_are_kept_for_fewer_parts() -> None:
    torch.randn(ENOUGH).exp()
    threads.in_parts(lambda first, last: None, [], 2, ENOUGH)
    torch.randn(ENOUGH).exp()
    before = set(os.listdir("/proc/self/task"))
    threads.in_parts(lambda first, last: None, [], 2, ENOUGH)
    torch.randn(ENOUGH).exp()
    assert set(os.listdir("/proc/self/task")) == before
