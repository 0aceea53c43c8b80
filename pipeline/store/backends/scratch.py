"""Folders for files that go with this process, `dlshap-...`, closed to others; those that killed ones left go first.

Whoever made such a folder holds a lock on a file in it, which ends with the process, however that ends.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX, _OWNER = "dlshap-", "dlshap.lock"
_held: dict[str, int] = {}  # the locks of this process, by folder


def make_folder(parent: str | None = None) -> str:
    """Make one, in `parent` or where Python makes such; what dead processes of this user left there is removed."""
    parent = tempfile.gettempdir() if parent is None else parent
    remove_left(parent)
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
    owner = os.open(f"{folder}/{_OWNER}.new", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # of a file system without locks nothing is ever removed by others
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(f"{folder}/{_OWNER}.new", f"{folder}/{_OWNER}")
    _held[folder] = owner
    return folder


def remove_folder(folder: str) -> None:
    """Remove one that this process made."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(_held.pop(folder))


def keep_folder(folder: str) -> None:
    """Have one that this process made stay for good."""
    Path(folder, _OWNER).unlink(missing_ok=True)  # a file system without locks has none
    os.close(_held.pop(folder))


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make one, and remove it at the end."""
    folder = make_folder()
    try:
        yield Path(folder)
    finally:
        remove_folder(folder)


def remove_left(parent: str) -> None:
    """Remove the folders of dead processes of this user.

    In a folder where others could put something else in the place of one between two steps, none is removed.
    """
    with contextlib.suppress(OSError):
        about = os.stat(parent)
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not about.st_mode & stat.S_ISVTX:
            return
        for entry in os.scandir(parent):
            if entry.name.startswith(PREFIX) and _is_left(entry.path):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_left(path: str) -> bool:
    """Whether a dead process of this user made it, and nobody else can have put anything there."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        stack.callback(os.close, folder)
        if not _is_own(folder, stat.S_IFDIR | 0o700):
            return False
        owner = os.open(_OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        stack.callback(os.close, owner)
        if _is_own(owner, stat.S_IFREG | 0o600) and os.fstat(owner).st_size == 0:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _is_own(descriptor: int, mode: int) -> bool:
    about = os.fstat(descriptor)
    return about.st_uid == os.getuid() and about.st_mode == mode
