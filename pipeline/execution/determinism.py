"""The settings of torch under which results repeat bit for bit."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

from pipeline.execution.host import environment

_memory: Any = torch.utils.deterministic  # a module that has a property, which types do not show
_settings_of_process = threading.RLock()
# What chooses among kernels that differ in the last bits, and what it is in a fresh process.
_KERNELS: tuple[tuple[Any, str, bool], ...] = (
    (torch.backends.cudnn, "enabled", True),
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.mkldnn, "enabled", True),
    (torch.backends.opt_einsum, "enabled", torch.backends.opt_einsum.is_available()),
)


@contextlib.contextmanager
def repeatable(threads: int, deterministic: bool, fills: bool = False) -> Iterator[None]:
    """Within this context torch uses so many CPU threads, the kernels of a fresh process, and, if asked, no operation
    whose result changes from call to call. The settings before are restored afterwards.

    With `fills`, new memory holds NaN until it is written, which exposes a model that reads it before. That is for the
    preflight: it takes several percent of the time.

    These are settings of the whole process: calls of several threads wait for each other.
    """
    wanted = [threads, 2 if deterministic else 0, fills, *(value for _, _, value in _KERNELS)]
    # What cuBLAS asks for; it reads it when CUDA starts.
    with _settings_of_process, environment({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}):
        before = _read()
        try:
            _write(wanted)
            yield
        finally:
            _write(before)


def _read() -> list[Any]:
    return [
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        _memory.fill_uninitialized_memory,
        *(getattr(owner, name) for owner, name, _ in _KERNELS),
    ]


def _write(values: list[Any]) -> None:
    threads, deterministic, fills, *kernels = values
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    # 2 is use_deterministic_algorithms(True), but for a setting of the compiler, whose import takes seconds.
    torch.set_deterministic_debug_mode(deterministic)
    _memory.fill_uninitialized_memory = fills
    for (owner, name, _), value in zip(_KERNELS, kernels, strict=True):
        setattr(owner, name, value)
