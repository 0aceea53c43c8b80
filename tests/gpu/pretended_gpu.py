"""A pytest plugin (-p tests.gpu.pretended_gpu): two pretended GPUs for CPU builds of torch.

Tensors lie in the host's memory and have a CPU's values. What is seen: operations that mix devices or have no
deterministic kernel, values that are read before they have arrived in pinned memory (NaN), the stream of a thread,
memory that runs short, and how many kernels, bytes and synchronisations a piece of work takes. What is not: races on
the device, cuDNN, times.

It must be imported before torch; its library is built once (g++, about 15 s) and kept in the folder for temporary
files.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".cpp")
GB = 1 << 30


def built() -> Path:
    """The library, built where it is not there yet."""
    key = hashlib.sha256(SOURCE.read_bytes() + importlib.metadata.version("torch").encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"pretended_gpu_{os.getuid()}_{key}.so"
    if not library.exists():
        making, include = library.with_suffix(f".{os.getpid()}"), _torch_folder() / "include"
        folders = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", f"-L{_torch_folder() / 'lib'}"]
        command = ["g++", "-O1", "-std=c++20", "-fPIC", "-shared", str(SOURCE), *folders]
        subprocess.run([*command, "-lc10", "-ltorch_cpu", "-o", str(making)], check=True)
        making.rename(library)
    return library


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    return Path(str(spec.origin)).parent


def _loaded() -> ctypes.CDLL:
    for name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
        for path in _torch_folder().glob(f"lib/{name}*"):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(built()), ctypes.RTLD_GLOBAL)
    library.fake_report.restype = ctypes.c_char_p
    for name in ("fake_held", "fake_peak", "fake_number", "fake_reserved", "fake_capacity"):
        getattr(library, name).restype = ctypes.c_int64
    library.fake_start()
    return library


_lib = _loaded()

import torch  # noqa: E402 - its registries are filled before it is imported

_local = threading.local()
_fractions: dict[int, float] = {}


class Event:
    """As torch.cuda.Event: recorded on the current stream of the current device unless a stream is given."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._at: tuple[int, int] | None = None

    def record(self, stream: Stream | None = None) -> None:
        self._at = (_lib.fake_device() if stream is None else stream.device.index), _lib.fake_number()

    def synchronize(self) -> None:
        if self._at is not None:
            _lib.fake_land(self._at[0], ctypes.c_int64(self._at[1]))


class Stream:
    """Nothing but what tells it from others."""

    def __init__(self, device: Any = None, cuda_stream: int | None = None) -> None:
        self.device = torch.device("cuda", _index(device))
        self.cuda_stream = id(self) if cuda_stream is None else cuda_stream  # that of a default stream is 0

    def synchronize(self) -> None:
        _lib.fake_sync(self.device.index)


def _index(device: Any = None) -> int:
    index = device if isinstance(device, int) or device is None else torch.device(device).index
    return int(_lib.fake_device() if index is None else index)


def _streams() -> dict[int, Stream]:
    if not hasattr(_local, "streams"):
        _local.streams = {}
    streams: dict[int, Stream] = _local.streams
    return streams


_default = [Stream(0, 0), Stream(1, 0)]


def _current_stream(device: Any = None) -> Stream:
    return _streams().get(_index(device), _default[_index(device)])


def _set_stream(stream: Stream) -> None:
    _streams()[stream.device.index] = stream
    _lib.fake_set_device(stream.device.index)


@contextlib.contextmanager
def _stream(stream: Stream) -> Iterator[None]:
    device, before = _lib.fake_device(), _current_stream(stream.device)
    _set_stream(stream)
    try:
        yield
    finally:
        _set_stream(before)
        _lib.fake_set_device(device)


@contextlib.contextmanager
def _device(device: Any) -> Iterator[None]:
    before = _lib.fake_device()
    _lib.fake_set_device(_index(device))
    try:
        yield
    finally:
        _lib.fake_set_device(before)


def _capacity() -> int:
    return int(_lib.fake_capacity())


_watching: list[int] = []  # synchronisations before


def _set_sync_debug_mode(mode: int | str) -> None:
    """As torch's warns at each synchronisation, but with all of these warnings when it is switched off."""
    n = sum(counts().syncs.values())
    for _ in range(n - _watching.pop() if _watching else 0):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
    if mode not in (0, "default"):
        _watching.append(n)


for _name, _value in {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 2,
    "current_device": lambda: _lib.fake_device(),
    "set_device": lambda device: _lib.fake_set_device(_index(device)),
    "device": _device,
    "Event": Event,
    "Stream": Stream,
    "current_stream": _current_stream,
    "set_stream": _set_stream,
    "stream": _stream,
    "synchronize": lambda device=None: _lib.fake_sync(_index(device)),
    "empty_cache": lambda: _lib.fake_empty_cache(),
    "is_bf16_supported": lambda including_emulation=True: True,
    "get_device_name": lambda device=None: "Pretended GPU",
    "memory_allocated": lambda device=None: _lib.fake_held(),
    "memory_reserved": lambda device=None: _lib.fake_reserved(),
    "max_memory_allocated": lambda device=None: _lib.fake_peak(),
    "reset_peak_memory_stats": lambda device=None: _lib.fake_reset(),
    "mem_get_info": lambda device=None: (_capacity() - _lib.fake_reserved(), _capacity()),
    "set_per_process_memory_fraction": lambda share, device=None: _fractions.__setitem__(_index(device), share),
    "set_sync_debug_mode": _set_sync_debug_mode,
    "get_sync_debug_mode": lambda: len(_watching),
    "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda state, device="cuda": None,
    "manual_seed_all": lambda seed: None,
    "manual_seed": lambda seed: None,
}.items():
    setattr(torch.cuda, _name, _value)


@dataclass(frozen=True)
class Counts:
    """What a piece of work took: kernels, bytes that they read and wrote, synchronisations by their reason."""

    kernels: int
    bytes: int
    syncs: dict[str, int]
    copied_to_device: int


def reset() -> None:
    """Begin to count."""
    _lib.fake_reset()


def counts() -> Counts:
    """Since `reset`."""
    kernels = n_bytes = copied = 0
    syncs: dict[str, int] = {}
    for line in _lib.fake_report().decode().splitlines():
        kind, name, *numbers = line.split("\t")
        if kind == "sync":
            syncs[name] = int(numbers[0])
        elif name == "(transfer) copy to device":
            copied = int(numbers[1])
        elif not name.startswith("("):
            kernels, n_bytes = kernels + int(numbers[0]), n_bytes + int(numbers[1])
    return Counts(kernels, n_bytes, syncs, copied)


@contextlib.contextmanager
def memory_of(n_bytes: int) -> Iterator[None]:
    """Within this context both devices together have so much memory, and nothing is cached at its beginning."""
    before = _capacity()
    _lib.fake_empty_cache()
    _lib.fake_set_capacity(ctypes.c_int64(n_bytes))
    try:
        yield
    finally:
        _lib.fake_set_capacity(ctypes.c_int64(before))


def cached() -> int:
    """Bytes that the allocator keeps though nothing holds them."""
    return int(_lib.fake_reserved() - _lib.fake_held())


def held() -> int:
    """Bytes of the tensors on both devices."""
    return int(_lib.fake_held())


def peak() -> int:
    """The most bytes that tensors held since `reset`."""
    return int(_lib.fake_peak())


def memory_fraction(device: int = 0) -> float | None:
    """What torch.cuda.set_per_process_memory_fraction was told."""
    return _fractions.get(device)
