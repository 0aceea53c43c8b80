"""What is installed here and what the machine has, as far as it can be seen without starting or writing anything."""

import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from pipeline.config import memory
from pipeline.config.registry import GROUPS, plugin_points
from pipeline.execution.device import device_kind
from pipeline.messages.secrets import one_line, without_credentials
from pipeline.messages.words import size

SHOWN = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RAY_ADDRESS", "RAY_AUTH_MODE", "DLSHAP_CACHE")
CREDENTIALS = (  # only their names are shown
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_NAME",
)


def examine() -> dict[str, Any]:
    """What there is, fit for JSON; `problems` is empty where a run can begin."""
    return {
        "dlshap": {
            "version": importlib.metadata.version("dlshap"),
            "in": str(Path(__file__).resolve().parents[2]),
            "plugins": [f"{group}={point.name}" for group in GROUPS for point in plugin_points(group)],
        },
        "python": {"version": platform.python_version(), "in": sys.prefix, "system": platform.platform()},
        "libraries": dict(_libraries()),
        "devices": dict(_devices()),
        "memory": {
            "free": f"{size(memory.free())} of {size(memory.total())}",
            "shared": _room("/dev/shm"),
        },
        "disk": {"here": _room("."), "temporary": f"{_room(tempfile.gettempdir())} in {tempfile.gettempdir()}"},
        "limits": {
            "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
            "files": " of ".join(map(_limit, resource.getrlimit(resource.RLIMIT_NOFILE))),
            "processes": " of ".join(map(_limit, resource.getrlimit(resource.RLIMIT_NPROC))),
        },
        "stores": {
            "kinds": ["paths", "s3://", "gs://", "az://"],
            "credentials": [name for name in CREDENTIALS if name in os.environ],
        },
        "environment": {name: without_credentials(os.environ[name]) for name in SHOWN if name in os.environ},
        "problems": list(_problems()),
    }


def _needed() -> Iterator[tuple[Requirement, str]]:
    """What dlshap asks for, each with the extra that it belongs to ("": none)."""
    for line in importlib.metadata.requires("dlshap") or []:
        need = Requirement(line)
        extra = str(need.marker).partition("extra == ")[2].strip('"') if need.marker else ""
        if extra not in ("test", "dev", "docs"):
            yield need, extra


def _libraries() -> Iterator[tuple[str, str]]:
    for need, extra in _needed():
        version = _version(need.name)
        if version is not None:
            yield need.name, version
        else:
            yield need.name, f"not installed{f' (extra {extra})' if extra else ''}"


def _problems() -> Iterator[str]:
    for need, extra in _needed():
        version = _version(need.name)
        if version is None and not extra:
            yield f"{need.name} is not installed; expected {need.specifier}"
        elif version is not None and not need.specifier.contains(version, prereleases=True):
            yield f"{need.name} {version} is installed; expected {need.specifier}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[tuple[str, str]]:
    yield "cpu", device_kind("cpu")
    yield "cuda", f"torch was built for {torch.version.cuda}" if torch.version.cuda else "torch was built without CUDA"
    for number in range(torch.cuda.device_count()):
        yield f"cuda:{number}", _gpu(number)


def _gpu(number: int) -> str:
    try:
        found = torch.cuda.get_device_properties(number)
    except Exception as error:  # noqa: BLE001 - a GPU or driver that is not well is what this command is to tell
        return f"cannot be asked: {one_line(error)}"
    return f"{found.name}, {size(found.total_memory)}"


def _room(folder: str) -> str:
    try:
        found = shutil.disk_usage(folder)
    except OSError as error:
        return f"cannot be seen: {error.strerror}"
    return f"{size(found.free)} free of {size(found.total)}"


def _limit(number: int) -> str:
    return "no limit" if number == resource.RLIM_INFINITY else str(number)
