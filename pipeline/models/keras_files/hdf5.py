"""HDF5 files read with bounded memory, and nothing outside of them.

A link that leaves the group, values kept in another file, and compression that Keras does not use are refused. What is
read may not be much larger than the file: a shape in a file costs nothing, its values do. Texts of any length lie in
heaps of the file, and many may be one and the same: each counts as much as the largest heap.
"""

import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import limits
from pipeline.messages.errors import UserError

Source = Path | IO[bytes]
_DEFLATE, _CHECKSUM = 1, 3
_PIECE_BYTES = 1 << 20
_FILTERS = (_DEFLATE, 2, _CHECKSUM)  # and shuffle; what comes out of HDF5's others is not known before
_HEAP = re.compile(rb"GCOL\x01...(.{8})", re.DOTALL)  # the head of a heap, with its size
_HEAP_HEAD = 16  # bytes
_FLOATS = {2: torch.float16, 4: torch.float32, 8: torch.float64}


class Hdf5:
    """An open file; `what` it is in errors, `size` in bytes."""

    def __init__(self, root: Any, source: Source, what: str, size: int) -> None:
        self.root, self.what, self._source = root, what, source
        self._size, self._n_bytes, self._n_text = size, 0, 0
        self.stored_as: set[str] = set()

    def find(self, group: Any, path: str) -> Any:
        """What lies at a path below a group; None where nothing does."""
        import h5py

        for part in filter(None, path.split("/")):
            link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise UserError(f"{self.what}: {part!r} is a link to another place or file, which is not followed")
            group = group[part]
        return group

    def group(self, group: Any, path: str) -> Any:
        """A group that must be there."""
        import h5py

        found = self.find(group, path)
        if not isinstance(found, h5py.Group):
            raise UserError(f"{self.what}: it has no group {path!r} in {group.name}; is the file whole?")
        return found

    def tensor(self, dataset: Any, name: str) -> Tensor:
        """The values of a dataset, as float32."""
        import h5py

        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{self.what}: it has no values for {name}; is the file whole?")
        kind, size = dataset.dtype.kind, dataset.dtype.itemsize
        if kind not in "fiu" or size > 8:
            raise UserError(f"{self.what}: {name} holds values of type {dataset.dtype}; expected numbers")
        if dataset.external or dataset.is_virtual:
            raise UserError(
                f"{self.what}: the values of {name} lie in another file; give a file that holds them itself"
            )
        created = dataset.id.get_create_plist()
        filters = [created.get_filter(index)[0] for index in range(created.get_nfilters())]
        if strange := [number for number in filters if number not in _FILTERS]:
            raise UserError(
                f"{self.what}: {name} is compressed otherwise than by gzip (filter {strange[0]}); write it without"
            )
        self._n_bytes += max(size, 4) * max(math.prod(dataset.shape), math.prod(dataset.chunks or (1,)))
        limits.require_held(
            self._n_bytes, self._size, f"{self.what}: its weights up to {name}, of shape {dataset.shape},"
        )
        self._require_chunks(dataset, filters, name)
        if kind == "f" and size != 4:
            self.stored_as.add(str(_FLOATS[size]).removeprefix("torch."))
        with np.errstate(over="ignore"):  # what becomes infinite is refused with all that is
            return torch.from_numpy(np.ascontiguousarray(dataset[()], dtype=np.float32))

    def _require_chunks(self, dataset: Any, filters: list[int], name: str) -> None:
        """Raises UserError where a compressed chunk becomes larger than a chunk is: HDF5 would unpack it all."""
        if _DEFLATE not in filters:
            return
        if filters.count(_DEFLATE) > 1 or filters[filters.index(_DEFLATE) + 1 :] not in ([], [_CHECKSUM]):
            raise UserError(
                f"{self.what}: {name} is compressed in an unusual way (filters {filters}); write it without"
            )
        place, n_bytes = filters.index(_DEFLATE), dataset.dtype.itemsize * math.prod(dataset.chunks)
        for i in range(dataset.id.get_num_chunks()):
            if (chunk := dataset.id.get_chunk_info(i)).size > self._size:
                raise UserError(f"{self.what}: {name} has a chunk of {chunk.size} bytes, more than the file")
            left_out, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
            if not left_out >> place & 1 and not _fits(packed, n_bytes):
                raise UserError(f"{self.what}: {name} has a chunk that unpacks to more than its {n_bytes} bytes")

    def text(self, group: Any, name: str) -> str | None:
        """An attribute that is a text; None where there is none."""
        value = self._attribute(group, name)
        if isinstance(value, bytes):
            return value.decode("utf-8", errors="replace")
        return value if isinstance(value, str) else None

    def names(self, group: Any, name: str) -> list[str]:
        """An attribute that is a list of names, in one piece or in several."""
        found: list[Any] = []
        for key in _pieces(name, group):
            shape = group.attrs.get_id(key).shape
            if shape is None or 0 in shape:  # of no type in particular
                continue
            if (value := self._attribute(group, key)) is None:
                raise UserError(f"{self.what}: its attribute {key} holds no names; is the file whole?")
            found += np.asarray(value).reshape(-1).tolist()
        return [one.decode("utf-8", errors="replace") if isinstance(one, bytes) else str(one) for one in found]

    def _attribute(self, group: Any, name: str) -> Any:
        """An attribute that is text, or an array of texts; None where there is none, or it is something else."""
        import h5py

        if name not in group.attrs:
            return None
        known = group.attrs.get_id(name)
        if (text := h5py.check_string_dtype(known.dtype)) is None:
            return None
        n_texts, what = math.prod(known.shape or (1,)), f"{self.what}: its attribute {name}"
        limits.require_header(n_texts * max(known.dtype.itemsize, 1), what)
        self._n_text += n_texts * (text.length or self._largest_heap)
        limits.require_block(self._n_text, f"{what}, with those before,")
        value = group.attrs[name]
        if isinstance(value, str | bytes):
            limits.require_header(len(value), what)
        return value

    @cached_property
    def _largest_heap(self) -> int:
        """Bytes of the largest heap of texts in the file; no text is longer."""
        with self._source.open("rb") if isinstance(self._source, Path) else nullcontext(self._source) as file:
            if (size := file.seek(0, os.SEEK_END)) > 2 * (self._size + _PIECE_BYTES):  # of holes: not worth a search
                return size
            largest = 0
            for start in range(0, size, _PIECE_BYTES):
                file.seek(start)
                piece = file.read(_PIECE_BYTES + _HEAP_HEAD - 1)
                found = (int.from_bytes(heap[1], "little") for heap in _HEAP.finditer(piece))
                largest = max([largest, *(min(n_bytes, size) for n_bytes in found)])
            return largest


def _fits(packed: bytes, n_bytes: int) -> bool:
    """Whether no more bytes than these come out of a stream of zlib."""
    stream, n_found = zlib.decompressobj(), 0
    while packed and n_found <= n_bytes:
        n_found += len(stream.decompress(packed, _PIECE_BYTES))
        packed = stream.unconsumed_tail
    return n_found <= n_bytes


def _pieces(name: str, group: Any) -> Iterator[str]:
    if name in group.attrs:
        yield name
        return
    index = 0
    while f"{name}{index}" in group.attrs:
        yield f"{name}{index}"
        index += 1


@contextmanager
def open_hdf5(source: Source, what: str, size: int) -> Iterator[Hdf5]:
    """A file by its path or as an open file. Raises UserError where it is damaged, or h5py is not installed."""
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{what} needs h5py to be read; install it with dlshap's extra: pip install 'dlshap[keras]'"
        ) from None
    try:
        with h5py.File(source, "r") as file:
            yield Hdf5(file, source, what, size)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} is a damaged HDF5 file: {reason}") from None
