"""What Zarr opens to read a folder of a disk: its own store, but that no link is followed, and no pipe waited for."""

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Self

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.buffer import cpu
from zarr.storage import LocalStore

from pipeline.store.backends.tree import MOST_BYTES, Tree, read_regular

_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class FolderStore(LocalStore):
    """A folder to read.

    Args:
        root: the folder, which may be a link; nothing below it may.
        read_only: for Zarr.
        most: bytes that are read of a file at once.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False, most: int = MOST_BYTES) -> None:
        super().__init__(root, read_only=read_only)
        self._most = most
        self._tree = Tree(self.root, may_be_link=True)

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.root, read_only=read_only, most=self._most)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        made = (prototype or cpu.buffer_prototype).buffer
        try:
            return made.from_bytes(self._read(key, byte_range))
        except _ABSENT:
            return None

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await asyncio.to_thread(self.get_sync, key, prototype=prototype, byte_range=byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await self.get(key, byte_range=RangeByteRequest(0, 0)) is not None

    def _read(self, key: str, part: ByteRequest | None) -> bytes:
        return read_regular(self._tree.open(key), f"{self.root}/{key}", self._most, partial(_stretch, part))


def _stretch(part: ByteRequest | None, n_bytes: int) -> tuple[int, int]:
    """What Zarr asks for of a file of so many bytes."""
    if isinstance(part, RangeByteRequest):
        return part.start, max(part.start, min(part.end, n_bytes))
    if isinstance(part, OffsetByteRequest):
        return part.offset, max(part.offset, n_bytes)
    if isinstance(part, SuffixByteRequest):
        return max(0, n_bytes - part.suffix), n_bytes
    return 0, n_bytes
