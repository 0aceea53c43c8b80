"""The process a call runs in: what its host has set there is put aside for the call, and put back after it.

Some settings belong to a thread (modes, autocast, hooks), others to the whole process (precision, default dtype). Of
the latter the first call to come in sets its own and the last to leave puts the host's back; calls that want others
wait for each other.
"""

import contextlib
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from dlshap_core.passes.precision import Precision, read_precision, write_precision
from dlshap_core.torch_private import set_hooks_aside, set_modes_aside

_FRAMES = 1000  # of the stack: what the engine adds to the depth that a model needs


class _Settings(NamedTuple):
    """Of the process.

    Attributes:
        precision: of float32.
        dtype: the default one.
        finds_anomalies: whether autograd looks for NaN, and stops at one that a rule knows how to handle.
        depth: of Python's stack.
    """

    precision: Precision
    dtype: torch.dtype
    finds_anomalies: bool
    depth: int


@contextlib.contextmanager
def _unannounced() -> Iterator[None]:
    """Some versions of torch announce that the old settings will go, and a host may have made warnings errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read() -> _Settings:
    with _unannounced():
        precision = read_precision()
    return _Settings(precision, torch.get_default_dtype(), torch.is_anomaly_enabled(), sys.getrecursionlimit())


def _write(settings: _Settings) -> None:
    with _unannounced():
        write_precision(settings.precision)
    torch.set_default_dtype(settings.dtype)
    if settings.finds_anomalies != torch.is_anomaly_enabled():
        torch.autograd.set_detect_anomaly(settings.finds_anomalies, torch.is_anomaly_check_nan_enabled())
    sys.setrecursionlimit(settings.depth)


class _Process:
    """Who has set settings of the process, and what its host had set."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads: list[int] = []  # one entry for each call
        self._host: _Settings | None = None  # while there are calls
        self._now: tuple[bool, torch.dtype] | None = None

    @contextlib.contextmanager
    def __call__(self, allow_tf32: bool = False, dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Float32 in full, or as TF32 on a GPU where allowed; the default dtype float32, unless the host's is the
        model's own (`dtype`); no search for anomalies; room on Python's stack for the engine beside the model.

        All of it is the host's again when the last call of any thread has left.
        """
        me, joined = threading.get_ident(), False
        try:
            with self._changed:
                self._changed.wait_for(
                    lambda: not self._threads or me in self._threads or self._now == self._wanted(allow_tf32, dtype)
                )
                wanted = self._wanted(allow_tf32, dtype)
                self._host, joined = self._host or _read(), True
                self._threads.append(me)
                if len(self._threads) == 1:
                    self._write(wanted)
            with contextlib.nullcontext() if wanted == self._now else self._within(wanted):
                yield
        finally:
            with self._changed:
                if joined:
                    self._threads.remove(me)
                if self._host is not None and not self._threads:
                    _write(self._host)
                    self._host = self._now = None
                self._changed.notify_all()

    @contextlib.contextmanager
    def _within(self, wanted: tuple[bool, torch.dtype]) -> Iterator[None]:
        """A call within a call of the same thread that wants other settings."""
        outer = self._now
        assert outer is not None
        try:
            self._write(wanted)
            yield
        finally:
            self._write(outer)

    def _wanted(self, allow_tf32: bool, dtype: torch.dtype) -> tuple[bool, torch.dtype]:
        """A model made under another default dtype than float32 has it in what it makes itself. The host of a call
        within a call is the outer one."""
        within = self._host is None or threading.get_ident() in self._threads
        default = torch.get_default_dtype() if within or self._host is None else self._host.dtype
        return allow_tf32, default if default == dtype else torch.float32

    def _write(self, wanted: tuple[bool, torch.dtype]) -> None:
        assert self._host is not None
        self._now = wanted
        _write(_Settings(Precision.of(wanted[0]), wanted[1], False, self._host.depth + _FRAMES))


process_settings = _Process()
os.register_at_fork(after_in_child=process_settings.__init__)  # type: ignore[misc]  # other threads' calls are not there


@contextlib.contextmanager
def thread_settings() -> Iterator[None]:
    """No modes of the host (a default device among them), no autocast, no hooks on saved tensors, gradients on, and
    numpy's own answer to floating-point errors; all as before afterwards."""
    with contextlib.ExitStack() as stack:
        set_modes_aside(stack)
        set_hooks_aside(stack)
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.callback(torch.set_autocast_enabled, kind, True)
                torch.set_autocast_enabled(kind, False)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield


class _Generators:
    """The process's random generators: the first call in keeps their states, the last to leave puts them back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_calls = 0
        self.states: tuple[Any, ...] = ()


_generators = _Generators()


@contextlib.contextmanager
def random_states(device: torch.device) -> Iterator[None]:
    """The states of all random generators are what they were, whatever the model draws."""
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    with _generators.lock:
        if _generators.n_calls == 0:
            _generators.states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        _generators.n_calls += 1
    try:
        yield
    finally:
        with _generators.lock:
            _generators.n_calls -= 1
            if _generators.n_calls == 0:
                torch.set_rng_state(_generators.states[0])
                np.random.set_state(_generators.states[1])
                random.setstate(_generators.states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)
