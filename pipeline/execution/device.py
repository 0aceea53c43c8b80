"""Where the numbers are computed: the device, what kind it is, and the settings under which its results repeat."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

from pipeline.errors import UserError

_memory: Any = torch.utils.deterministic  # a module that has a property, which types do not show
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
LIBRARIES = ("dlshap", "torch", "numpy", "numba", "zarr", "ray")


def resolve_device(device: str) -> str:
    """cpu, cuda or cuda:<number> for engine.device, on this machine.

    Raises:
        UserError: a GPU that is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if not torch.cuda.is_available():
            raise UserError(f"engine.device={device}, but torch finds no GPU here; use engine.device=cpu or auto")
        if number >= torch.cuda.device_count():
            raise UserError(f"engine.device={device}, but there are {torch.cuda.device_count()} GPUs, counted from 0")
    return device


def numbers(dtype: str) -> dict[str, Any]:
    """What engine.dtype says to the engine: float32, float64, float16, bfloat16, or tf32: float32 whose products and
    convolutions a GPU may round."""
    return {"dtype": torch.float32, "allow_tf32": True} if dtype == "tf32" else {"dtype": getattr(torch, dtype)}


def require_numbers(dtype: str, device: str) -> None:
    """Raise UserError for numbers that a device does not have."""
    if dtype == "tf32" and not device.startswith("cuda"):
        raise UserError(f"engine.dtype=tf32 is for NVIDIA GPUs, and the device is {device}; use engine.dtype=float32")


def device_kind(device: str) -> str:
    """What decides the last bits of a result: the model of the GPU, or the vector instructions of the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def describe() -> dict[str, Any]:
    """This machine and these libraries, for the record."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
        "hardware": {"host": platform.node(), "platform": platform.platform(), "cpus": os.cpu_count()},
    }


def keep_freed_memory() -> None:
    """Have this process keep what it frees for what it allocates next.

    glibc gives activations back to the system with every batch, and takes them anew page by page: several percent of a
    batch on a CPU. Elsewhere this does nothing.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        for option, n_bytes in ((_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28), (_M_MMAP_THRESHOLD, 2**30)):
            libc.mallopt(option, n_bytes)


def shards_in_flight(device: str) -> int:
    """Shards that a worker has at hand: while one is on the device, another is read or written by the processor.

    On a CPU both would take the same cores.
    """
    return 2 if device.startswith("cuda") else 1


@contextlib.contextmanager
def repeatable(threads: int, deterministic: bool, fills: bool = False) -> Iterator[None]:
    """Within this context torch uses so many CPU threads, no reduced precision, and, if asked, no operation whose
    result changes from call to call. What was set before is set again afterwards.

    With `fills`, new memory holds NaN until it is written, so that a model that reads it before is found out. That is
    for a trial: it takes several percent of the time.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for; read when CUDA starts
    before = (
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        _memory.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )
    _set(threads, 2 if deterministic else 0, fills, False, False, False)
    try:
        yield
    finally:
        _set(*before)


def _set(
    threads: int, deterministic: int, fills: bool, benchmark: bool, tf32_convolutions: bool, tf32_products: bool
) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    # 2 is use_deterministic_algorithms(True), but for a setting of the compiler, whose import takes seconds.
    torch.set_deterministic_debug_mode(deterministic)
    _memory.fill_uninitialized_memory = fills
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = tf32_convolutions
    torch.backends.cuda.matmul.allow_tf32 = tf32_products
