"""Arrays of a store, whoever made it: coded as dlshap codes them, and no chunk becomes larger than it says it is."""

import contextlib
import math
from collections.abc import Iterator

import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, VLenUTF8Codec

from pipeline.store.schema import TABLE_CHUNK_ROWS
from pipeline.store.unpacking import bound
from pipeline.store.zarr_private import numcodecs_of

TEXT_BYTES = TABLE_CHUNK_ROWS * 4096 * 4  # of a chunk of texts: of the longest names that `limits.name` lets through
CHUNK_BYTES = 1 << 30  # of any other: 64 rows of 2^20 positions
MOST_CHUNKS = 1 << 20  # of a shard
AT_ONCE_BYTES, MOST_AT_ONCE = 1 << 30, 10  # of the chunks that are unpacked at the same time
_PLAIN = (BytesCodec, VLenUTF8Codec, BloscCodec, Crc32cCodec)


def bounded(array: zarr.Array, where: str) -> zarr.Array:
    """The same array, of which no chunk unpacks to more than it says it has; ValueError where dlshap writes no such."""
    codecs = list(array.metadata.codecs) if array.metadata.zarr_format == 3 else [array.metadata]
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        codecs = [*codecs[0].codecs, *codecs[0].index_codecs]
    if strange := [type(codec).__name__ for codec in codecs if not isinstance(codec, _PLAIN)]:
        raise ValueError(f"{where} is coded by {strange[0]}, which dlshap does not use")
    n_values, is_text = math.prod(array.chunks), array.dtype.kind in "OT"
    most = TEXT_BYTES if is_text else n_values * array.dtype.itemsize
    if most > CHUNK_BYTES or math.prod(array.shards or array.chunks) > MOST_CHUNKS * n_values:
        raise ValueError(f"{where} is in chunks of shape {array.chunks}, of {most} bytes, which dlshap does not write")
    unpacking = numcodecs_of(array)
    if is_text and not unpacking:
        raise ValueError(f"{where} is not compressed, as dlshap writes it")
    for codec in unpacking:
        bound(codec, most, where, n_values if is_text else None)
    return array


@contextlib.contextmanager
def few_at_once(array: zarr.Array) -> Iterator[None]:
    """Within this context not many large chunks of an array are unpacked at the same time."""
    n_bytes = max(1, math.prod(array.chunks) * array.dtype.itemsize)
    if MOST_AT_ONCE * n_bytes <= AT_ONCE_BYTES:
        yield
        return
    with zarr.config.set({"async.concurrency": max(1, AT_ONCE_BYTES // n_bytes)}):
        yield
