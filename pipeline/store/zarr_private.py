"""What the store needs of Zarr beyond its documented interface, in one place.

`memory_store`: that `MemoryStore` keeps the very dictionary it is given, so that the files Zarr writes are found in it.
    Zarr has no documented way to get at the bytes of a file it wrote in memory without a running event loop. Where a
    version copies the dictionary, `ShardCodec.encode` raises KeyError; read the files with `await store.get(...)` then.
`numcodecs_of`: that Zarr's own codecs keep the one of numcodecs that does the work, under these names. Where they go,
    chunks that unpack to gigabytes are no longer refused, and tests fail.
"""

from typing import Any

from zarr import Array
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.storage import MemoryStore

_NUMCODECS = ("_gzip_codec", "_zstd_codec", "_blosc_codec", "_codec")


def memory_store(files: dict[str, Buffer]) -> MemoryStore:
    """A Zarr store of these files, in memory; what Zarr writes to it is put into the dictionary."""
    return MemoryStore(files)


def to_buffer(data: bytes) -> Buffer:
    """The content of a file, as Zarr takes it."""
    return cpu.Buffer.from_bytes(data)


def numcodecs_of(array: Array[Any]) -> list[Any]:
    """The codecs of numcodecs that decode an array's chunks."""
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        return [codec for codec in (metadata.compressor, *(metadata.filters or ())) if codec is not None]
    codecs = list(metadata.codecs)
    for codec in codecs:
        codecs += getattr(codec, "codecs", ())  # of sharding
    return [getattr(codec, name) for codec in codecs for name in _NUMCODECS if hasattr(type(codec), name)]
