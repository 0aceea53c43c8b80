"""Opening what lies below a folder: regular files alone, and no link is followed.

Whoever may write beside a store, or packs one, may plant a link in it, a pipe or a device: the files of others would be
overwritten or deleted through it, a reader would wait for ever, or read without an end. Each folder is therefore opened
from the one above it, and a file is looked at again once it is open, so that nothing can be exchanged in between.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.messages.errors import UserError

MOST_BYTES = 256 << 20  # of a file that is read whole, where nobody says how large it may be
_SEARCHED = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)  # a folder that is gone through
_SYNCED = os.O_DIRECTORY | os.O_RDONLY  # one that is listed, or made durable
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegular(OSError, UserError):
    """Something else than a file or folder of one's own lies where one is expected."""


class TooLarge(OSError, UserError):
    """A file is larger than what is read of it.

    Attributes:
        n_bytes: its size.
    """

    def __init__(self, where: str, n_bytes: int, most: int) -> None:
        super().__init__(f"{where} is {n_bytes} bytes long, where at most {most} are expected: it is damaged")
        self.n_bytes = n_bytes


class Tree:
    """The files below a folder. Keys have / between their parts (see base.py).

    Args:
        root: the folder; what lies above it may be links.
        may_be_link: whether itself may be one too. Otherwise it is dlshap's own, as a run folder is: it is written to
            only where it belongs to this user, or to whom the folder above it belongs to.
    """

    def __init__(self, root: Path, may_be_link: bool) -> None:
        self.root, self.may_be_link = root, may_be_link

    def folder(self, key: str = "", flags: int = _SEARCHED) -> int:
        """A descriptor of a folder below the root, or of the root.

        Raises:
            NotRegular: a link lies on the way.
            FileNotFoundError, NotADirectoryError: there is no such folder.
        """
        found = self._root(flags if not key else _SEARCHED)
        try:
            parts = key.split("/") if key else []
            for i, part in enumerate(parts, start=1):
                inner = self._inner(found, part, "/".join(parts[:i]), flags if i == len(parts) else _SEARCHED)
                os.close(found)
                found = inner
        except BaseException:
            os.close(found)
            raise
        return found

    @contextlib.contextmanager
    def made(self, key: str = "") -> Iterator[list[int]]:
        """Descriptors of the root, which exists, and of each folder from there to a key; they are made where missing.

        The name of each that is made is durable in the one above it.
        """
        found = [self._root(_SYNCED)]
        try:
            self._require_own(found[0])
            parts = key.split("/") if key else []
            for i, part in enumerate(parts, start=1):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o775, dir_fd=found[-1])
                    sync_descriptor(found[-1])
                found.append(self._inner(found[-1], part, "/".join(parts[:i]), _SYNCED))
            for descriptor in () if self.may_be_link else found:
                _close_to_others(descriptor, self.root)
            yield found
        finally:
            for descriptor in found:
                os.close(descriptor)

    def status(self, key: str) -> os.stat_result:
        """Of a file, a folder or a link; FileNotFoundError, NotADirectoryError where nothing is."""
        with self._above(key) as (folder, name):
            return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def open(self, key: str) -> int:
        """A descriptor of a file, to read; errors as of `folder`."""
        with self._above(key) as (folder, name):
            return open_regular(name, os.O_RDONLY, folder, f"{self.root}/{key}")

    def unlink(self, key: str) -> None:
        """Remove a file, or a link itself."""
        with self._above(key) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def rmdir(self, key: str) -> None:
        """Remove an empty folder."""
        with self._above(key) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def listed(self, key: str) -> int:
        """A descriptor of a folder, to list it; errors as of `folder`."""
        return self.folder(key, _SYNCED)

    @contextlib.contextmanager
    def _above(self, key: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that holds a file or a folder, and the name in it; errors as of `folder`."""
        above, _, name = key.rpartition("/")
        folder = self.folder(above)
        try:
            yield folder, name
        finally:
            os.close(folder)

    def _root(self, flags: int) -> int:
        try:
            return os.open(self.root, flags if self.may_be_link else flags | os.O_NOFOLLOW)
        except OSError:
            _refuse_link(self.root.is_symlink() and not self.may_be_link, str(self.root))
            raise

    def _inner(self, folder: int, name: str, key: str, flags: int) -> int:
        try:
            return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError:
            raise
        except OSError:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            _refuse_link(stat.S_ISLNK(status.st_mode), f"{self.root}/{key}")
            raise

    def _require_own(self, root: int) -> None:
        if self.may_be_link:
            return
        owner = os.fstat(root).st_uid
        if owner not in (os.geteuid(), self.root.parent.stat().st_uid):
            raise NotRegular(
                f"{self.root} belongs to another user (number {owner}), who could exchange what is written there; give "
                f"a path in a folder of your own"
            )


def _close_to_others(folder: int, root: Path) -> None:
    """Take away what lets everyone write to a folder of dlshap's own: files could be exchanged there."""
    mode = stat.S_IMODE(os.fstat(folder).st_mode)
    if not mode & stat.S_IWOTH:
        return
    try:
        os.fchmod(folder, mode & ~stat.S_IWOTH)  # a file system without modes takes it and stays as it is
    except OSError as error:
        raise NotRegular(f"everyone may write to {root} ({error.strerror}); chmod -R o-w {root}") from None


def open_regular(name: str | Path, flags: int, folder: int | None = None, where: str = "", mode: int = 0o644) -> int:
    """A descriptor of a regular file, which with os.O_CREAT may be made.

    A file that is written to in place must have no other name: it could be that of another file.

    Args:
        name: within the folder of a descriptor; or a path.
        flags: of os.open.
        folder: the descriptor.
        where: what errors call the file.
        mode: the permissions of one that is made.

    Raises:
        NotRegular: it is a link, a pipe, a device, ...; it is not waited for.
        OSError: it cannot be opened.
    """
    where = where or str(name)
    with contextlib.suppress(FileNotFoundError):
        _require_regular(os.stat(name, dir_fd=folder, follow_symlinks=False), flags, where)
    try:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, mode, dir_fd=folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, where) from None
    try:
        _require_regular(os.fstat(descriptor), flags, where)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result, flags: int, where: str) -> None:
    kind = stat.S_IFMT(status.st_mode)
    _refuse_link(kind == stat.S_IFLNK, where)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), where)
    if kind != stat.S_IFREG:
        raise NotRegular(f"{where} is {_KINDS.get(kind, 'no regular file')} where a file is expected; remove it")
    if flags & (os.O_WRONLY | os.O_RDWR) and status.st_nlink > 1:
        raise NotRegular(f"{where} has another name too (a hard link), and would be changed there as well; remove it")


def _refuse_link(is_link: bool, where: str) -> None:
    if is_link:
        raise NotRegular(
            f"{where} is a link where a file or folder itself is expected; remove it, or put there what it points at "
            f"(cp -rL copies a folder so)"
        )


Part = Callable[[int], tuple[int, int]]  # the size of a file to [start, stop) of what is read of it


def whole(n_bytes: int) -> tuple[int, int]:
    return 0, n_bytes


def read_regular(descriptor: int, where: str, most: int = MOST_BYTES, part: Part = whole) -> bytes:
    """What is read of an open file, which is closed; TooLarge where that is more than `most` bytes."""
    try:
        start, stop = part(os.fstat(descriptor).st_size)
        if stop - start > most:
            raise TooLarge(where, stop - start, most)
        data = os.pread(descriptor, stop - start, start)
        while len(data) < stop - start and (more := os.pread(descriptor, stop - start - len(data), start + len(data))):
            data += more  # beyond 2 GiB, or where a signal came
        return data
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Make the names in an open folder durable; some file systems keep them without being asked, and refuse to be."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
