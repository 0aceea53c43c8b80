"""The software and the machine that compute: versions for the record, and a hash of dlshap's own source files."""

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import dlshap_core

LIBRARIES = ("dlshap", "torch", "numpy", "numba", "zarr", "ray")


def describe() -> dict[str, Any]:
    """Versions and machine, for the record."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
        "hardware": {"host": platform.node(), "platform": platform.platform(), "cpus": os.cpu_count()},
    }


@functools.cache
def installed_code() -> str:
    """sha256 over dlshap's source files as installed here, in hexadecimal: files may be edited under one version."""
    digest = hashlib.sha256()
    for folder in (Path(dlshap_core.__path__[0]), Path(__file__).parents[1]):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
