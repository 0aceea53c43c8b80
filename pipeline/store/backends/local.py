"""A folder of a disk: this machine's, or one that a cluster shares.

A file is written under another name, made durable, and renamed; a crash leaves at most an unfinished file of such a
name, never half a file at a key.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.places.place import Entry, check_key

_numbers = itertools.count()
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalPlace:
    """A folder.

    Args:
        path: of the folder; it is made when something is written.
        scratch: where unfinished files lie, a folder of the same file system; without it they lie beside their
            targets, with hidden names.
    """

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        self.path = Path(os.path.abspath(path))
        self.url = str(self.path)
        self._scratch = scratch

    def read(self, key: str) -> bytes:
        target = f"{self.path}/{check_key(key)}"
        try:
            with open(target, "rb", buffering=0) as file:
                return file.read()
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target) from error

    def size(self, key: str) -> int | None:
        try:
            status = self._target(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if stat.S_ISDIR(status.st_mode) else status.st_size

    def write(self, key: str, data: bytes) -> None:
        target = self._target(key)
        with _naming(target):
            self._make_folders(target.parent)
            if self._scratch is None or not self._written_by(self._scratch, target, data):
                self._written_by(target.parent, target, data)
            self._sync_folders(target.parent)

    def append(self, key: str, data: bytes) -> None:
        """Add to a file in one step, so that lines of several writers do not mix; durable when the system likes."""
        target = self._target(key)
        with _naming(target):
            self._make_folders(target.parent)
            with target.open("ab", buffering=0) as file:
                _write_all(file.fileno(), data)

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(f"{self.path}/{check_key(key)}")

    def files(self, prefix: str = "") -> Iterator[Entry]:
        folder, _, _ = prefix.rpartition("/")
        return _scan(str(self.path), folder and folder + "/", prefix)

    def clear(self, prefix: str = "") -> None:
        for entry in self.files(prefix):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}/{entry.key}")
        start = self.path / prefix.rpartition("/")[0]
        for folder, _, _ in os.walk(start, topdown=False):
            key = Path(folder).relative_to(self.path).as_posix() + "/"
            if key.startswith(prefix) or (prefix == "" and Path(folder) == start):
                with _still_filled():
                    os.rmdir(folder)

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold a key for oneself; the lock goes with the process that held it.

        Raises:
            PermissionError, OSError: the file cannot be written, or the file system has no locks.
        """
        target = self._target(key)
        with _naming(target):
            descriptor = self._locked(target, waiting)
        try:
            yield
        finally:
            os.close(descriptor)

    def _locked(self, target: Path, waiting: Callable[[str], None]) -> int:
        while True:
            self._make_folders(target.parent)
            try:
                descriptor = os.open(target, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # whoever held it has just removed the folder
                continue
            try:
                _flock(descriptor, target, waiting)
                # Whoever held it may have removed the file, and the lock is then on one that is no longer there.
                if _is_at(descriptor, target):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _target(self, key: str) -> Path:
        return self.path / check_key(key)

    def _make_folders(self, folder: Path) -> None:
        """Make what is missing, each folder's name durable in the one above it."""
        missing = list(itertools.takewhile(lambda each: not each.is_dir(), (folder, *folder.parents)))
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            sync_folder(each.parent)

    def _sync_folders(self, folder: Path) -> None:
        """Make names durable up to the place: another process may have made a folder, and not yet have got that far."""
        for each in (folder, *folder.parents):
            sync_folder(each)
            if each == self.path:
                break

    def _written_by(self, scratch: Path, target: Path, data: bytes) -> bool:
        """Write a file by way of another; False where the two are on different file systems."""
        if scratch != target.parent:
            self._make_folders(scratch)
        owner = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.{next(_numbers)}"
        partial = scratch / f".{target.name}.{owner}.partial"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            partial.replace(target)
        except BaseException as error:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno == errno.EXDEV and scratch != target.parent:
                return False
            raise
        return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some file systems keep names without being asked
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Errors name the file that was asked for, not one on the way to it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


@contextlib.contextmanager
def _still_filled() -> Iterator[None]:
    """A folder that holds something, or is gone already, is left as it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _flock(descriptor: int, target: Path, waiting: Callable[[str], None]) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in NO_LOCKS:
            advice = "use a place on one that does (Lustre: mount it with -o flock; NFS: start its lock service)"
            raise OSError(f"{target}: this file system keeps no locks ({error.strerror}); {advice}") from error
        raise


def _is_at(descriptor: int, target: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), target.stat())
    except FileNotFoundError:
        return False


def _scan(root: str, folder: str, prefix: str) -> Iterator[Entry]:
    """Files below one folder (a key that ends in /, or "") whose keys start with the prefix."""
    folders = [folder]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(f"{root}/{folder}")
        except (FileNotFoundError, NotADirectoryError):  # never there, or removed meanwhile
            continue
        start = prefix[len(folder) :] if prefix.startswith(folder) else ""
        with entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir(follow_symlinks=False):
                    if name.startswith(start) or start.startswith(name + "/"):
                        folders.append(f"{folder}{name}/")
                elif name.startswith(start) and (status := _status(entry)):
                    yield Entry(folder + name, status.st_size, status.st_mtime)


def _status(entry: "os.DirEntry[str]") -> os.stat_result | None:
    """Of what a link points at, or of the link where that is not there; None for a file that has just been removed."""
    try:
        return entry.stat()
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            return entry.stat(follow_symlinks=False)
    return None
