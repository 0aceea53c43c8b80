"""Triton where it is installed; elsewhere a stand-in, with which kernels can be defined but not run."""

import importlib
import importlib.util
from typing import Any


class _Absent:
    """Any attribute of it is itself; as a decorator or a constant it gives what it is called with."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any) -> Any:
        return args[0]


HAS_TRITON = importlib.util.find_spec("triton") is not None
triton: Any = importlib.import_module("triton") if HAS_TRITON else _Absent()
tl: Any = importlib.import_module("triton.language") if HAS_TRITON else _Absent()
