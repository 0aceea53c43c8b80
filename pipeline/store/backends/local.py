"""A folder of a disk: this machine's, or one that a cluster shares.

A file is written under another name, made durable, and renamed; a crash leaves at most an unfinished file of such a
name, never half a file at a key.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.messages.errors import UserError
from pipeline.store.backends.base import LOCK_TIMEOUT_S, StoredFile, anything, check_key, unguarded
from pipeline.store.backends.tree import MOST_BYTES, Tree, open_regular, read_regular, sync_descriptor
from pipeline.store.backends.turn import Turn

if TYPE_CHECKING:
    from pipeline.store.backends.zarr_folder import FolderStore

_numbers = itertools.count()
SCHEMES = ("file",)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def open_url(url: str, options: Mapping[str, str], scratch: Path | None) -> "LocalBackend":
    """The folder of a URL file:///folder; UserError where it is of another host."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{url}: a file of another host; write file:///{parts.netloc}{parts.path} if it is of this one")
    if "\0" in (path := unquote(parts.path)):
        raise UserError(f"{url}: %00 is a NUL character, which no file's name holds")
    return LocalBackend(Path(path), scratch)


class LocalBackend:
    """A folder.

    What lies above it may be links, and so may itself, but nothing below it (see tree.py).

    Args:
        path: of the folder; it is made when something is written.
        scratch: where unfinished files lie, a folder of the same file system; without it they lie beside their
            targets, with hidden names. The folder that it lies in is dlshap's own and no link: this one, or another.
    """

    concurrency = 4
    append_interval_s = 0.0

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        self.path = Path(os.path.abspath(path))
        self.url = str(self.path)
        self._scratch = None if scratch is None else Path(os.path.abspath(scratch))
        self._tree = Tree(self.path, may_be_link=self._scratch is None or self._scratch.parent != self.path)
        self._made_above: list[Path] = []
        self.guard: Callable[[], None] = unguarded
        self.lock_timeout_s = LOCK_TIMEOUT_S

    def read(self, key: str, most: int = MOST_BYTES) -> bytes:
        target = f"{self.path}/{check_key(key)}"
        try:
            return read_regular(self._tree.open(key), target, most)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target) from None

    def size(self, key: str) -> int | None:
        try:
            status = self._tree.status(check_key(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if stat.S_ISDIR(status.st_mode) else status.st_size

    def write(self, key: str, data: bytes) -> None:
        folder, _, name = check_key(key).rpartition("/")
        self.guard()
        with _naming(self.path / key):
            self._make_root()
            with self._tree.made(folder) as folders:
                if self._scratch is None:
                    self._written_by(folders[-1], folders[-1], name, data)
                else:
                    self._written(self._scratch, folders[-1], name, data)
                # Up to the root: another process may have made a folder, and not yet have got that far.
                for descriptor in reversed(folders):
                    sync_descriptor(descriptor)

    def append(self, key: str, data: bytes) -> None:
        """Add to a file in one step, so that lines of several writers do not mix; durable when the system likes."""
        with _naming(self.path / check_key(key)):
            descriptor = self._opened(key, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                _write_all(descriptor, data)
            finally:
                os.close(descriptor)

    def delete(self, key: str) -> None:
        self.guard()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._tree.unlink(check_key(key))

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        return _scan(self._tree, prefix, [])

    def clear(self, prefix: str = "", only: Callable[[str], object] = anything) -> None:
        """Delete all of those; for prefix "" also the folders above that were made for this one, where left empty."""
        self.guard()
        folders: list[str] = []
        for entry in _scan(self._tree, prefix, folders):
            if only(entry.key):
                with contextlib.suppress(FileNotFoundError):
                    self._tree.unlink(entry.key)
        for folder in reversed(folders):
            if folder and folder.startswith(prefix) and only(folder):
                with _still_filled():
                    self._tree.rmdir(folder[:-1])
        if prefix == "" and not self.path.is_symlink():
            with _still_filled():
                os.rmdir(self.path)
        while prefix == "" and self._made_above:
            with _still_filled():
                os.rmdir(self._made_above.pop())

    def is_empty(self) -> bool:
        if self.path.is_symlink() or not self.path.is_dir():
            return not os.path.lexists(self.path)
        return next(self.files(), None) is None

    @contextlib.contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """Inside the root, so that `publish` need only rename."""
        self._make_root()
        with self._tree.made():  # or it is refused
            path = self.path / name
        if path.is_symlink():
            path.unlink()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, folder: Path, last: str) -> None:
        """In one step, which needs no last file; the folder must lie on the same file system. Whatever the umask, not
        everyone may write to it then."""
        self.guard()
        for path in (folder, *folder.rglob("*")):
            if (mode := path.lstat().st_mode) & stat.S_IWOTH and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & ~stat.S_IWOTH)
        folder.rename(self.path)

    def sync(self) -> None:
        sync(self.path.parent)

    def zarr_store(self, most: int = MOST_BYTES) -> "FolderStore":
        from pipeline.store.backends.zarr_folder import FolderStore  # Zarr: a second that other uses need not wait for

        return FolderStore(self.path, read_only=True, most=most)

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """Hold a key; the lock ends with its process, or with the file. OSError where it cannot be locked."""
        target = self.path / check_key(key)
        with _naming(target):
            descriptor = self._locked(key, waiting)

        def require() -> None:
            if not self._is_at(descriptor, key):
                raise OSError(f"{target}: this lock was removed while it was held; run the same command again")

        try:
            yield require
        finally:
            os.close(descriptor)

    def _locked(self, key: str, waiting: Callable[[str], None]) -> int:
        while True:
            self._make_root()
            try:
                # Whoever may read a file may lock it: others must not be able to hold a run up.
                descriptor = self._opened(key, os.O_RDWR | os.O_CREAT, 0o600)
            except FileNotFoundError:  # whoever held it has just removed the folder
                continue
            try:
                _flock(descriptor, str(self.path / key), waiting, self.lock_timeout_s)
                # Whoever held it may have removed the file, and the lock is then on a file without a name.
                if self._is_at(descriptor, key):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is_at(self, descriptor: int, key: str) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._tree.status(key))
        except FileNotFoundError:
            return False

    def _opened(self, key: str, flags: int, mode: int = 0o644) -> int:
        """A descriptor of a file that is written to in place; folders are made where missing."""
        folder, _, name = key.rpartition("/")
        self._make_root()
        with self._tree.made(folder) as folders:
            return open_regular(name, flags, folders[-1], f"{self.path}/{key}", mode)

    def _make_root(self) -> None:
        """Make the root and what is missing above it, each folder's name durable in the one above it."""
        missing = list(itertools.takewhile(lambda each: not each.is_dir(), (self.path, *self.path.parents)))
        for each in reversed(missing):
            each.mkdir(0o775, exist_ok=True)
            sync(each.parent)
            if each != self.path:
                self._made_above.append(each)

    def _written(self, scratch: Path, folder: int, name: str, data: bytes) -> None:
        """Write a file by way of the scratch folder, or beside itself where the two are on different file systems."""
        above = LocalBackend(scratch.parent, scratch)
        above._make_root()
        with above._tree.made(scratch.name) as (_, aside):
            try:
                self._written_by(aside, folder, name, data)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._written_by(folder, folder, name, data)

    def _written_by(self, scratch: int, folder: int, name: str, data: bytes) -> None:
        """Write a file of a folder by way of another, both as descriptors."""
        owner = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.{next(_numbers)}"
        partial = f".{name}.{owner}.partial"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=scratch)
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(partial, name, src_dir_fd=scratch, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.unlink(partial, dir_fd=scratch)
            raise


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems keep names without being asked, and refuse to be.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EOPNOTSUPP)):
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


def _flock(descriptor: int, where: str, waiting: Callable[[str], None], timeout_s: float) -> None:
    turn = Turn(where, waiting, timeout_s)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            turn.wait_for(os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process")
        except OSError as error:
            if error.errno in NO_LOCKS:
                advice = "use a folder on one that does (Lustre: mount it with -o flock; NFS: start its lock service)"
                raise OSError(f"{where}: this file system keeps no locks ({error.strerror}); {advice}") from error
            raise
        turn.pause()


def _scan(tree: Tree, prefix: str, folders: list[str]) -> Iterator[StoredFile]:
    """Files whose keys start with the prefix; the folders that were looked into are added to the list, outer first.

    Folders are keys that end in /, or "".
    """
    above = prefix.rpartition("/")[0]
    todo = [above and above + "/"]
    while todo:
        folder = todo.pop()
        try:
            descriptor = tree.listed(folder[:-1])
        except (FileNotFoundError, NotADirectoryError):  # never made, or removed meanwhile
            continue
        folders.append(folder)
        start = prefix[len(folder) :] if prefix.startswith(folder) else ""
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    name = entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if name.startswith(start) or start.startswith(name + "/"):
                            todo.append(f"{folder}{name}/")
                    elif name.startswith(start) and (status := _status(entry)):
                        yield StoredFile(folder + name, status.st_size, status.st_mtime)
        finally:
            os.close(descriptor)


def _status(entry: "os.DirEntry[str]") -> os.stat_result | None:
    """Of a file, or of a link itself; None for one that has just been removed."""
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
