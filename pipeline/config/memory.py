"""How much memory there is: of the machine, and of the control groups (cgroups, of either version) that limit it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_LIMIT, _USED = ("memory.max", "memory.limit_in_bytes"), ("memory.current", "memory.usage_in_bytes")
_CACHE = ("total_inactive_file", "inactive_file")  # counted as used, and given back when memory is asked for


def total() -> int:
    """Bytes that this process and those in its group may have."""
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([of_machine, *(limit for group in groups() if (limit := _number(group, _LIMIT)) is not None)])


def free() -> int:
    """Bytes that this process can still have before something is killed."""
    left = [_available()]
    for group in groups():
        limit, used = _number(group, _LIMIT), _number(group, _USED)
        if limit is not None and used is not None:
            left.append(limit - used + _cache(group))
    return max(0, min(left))


def groups() -> Iterator[Path]:
    """The folders of this process's memory group, as the machine or its container shows it, and of those around it."""
    with contextlib.suppress(OSError):  # no Linux, or it is hidden
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                root, inner = Path("/sys/fs/cgroup") / controllers, Path(path.lstrip("/"))
                yield from (root / folder for folder in (inner, *inner.parents) if (root / folder).is_dir())


def _available() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _number(group: Path, names: tuple[str, ...]) -> int | None:
    """The number in the first of these files; None where there is none, or no limit."""
    for name in names:
        with contextlib.suppress(OSError):
            text = (group / name).read_text().strip()
            return int(text) if text.isdigit() else None
    return None


def _cache(group: Path) -> int:
    with contextlib.suppress(OSError):
        found = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return next((int(found[name]) for name in _CACHE if name in found), 0)
    return 0
