"""Reading every byte of a store again, and comparing it with what was committed (manifest.py says what that is)."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.messages.words import counted
from pipeline.planning.shards import Shard
from pipeline.store.backends.base import Backend
from pipeline.store.codec import ShardCodec, read_array
from pipeline.store.json_files import parse_object
from pipeline.store.records import FileRecord
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import (
    MANIFEST_ARRAYS,
    ROOT,
    Layout,
    array_shapes,
    arrays_of,
    computed_arrays,
    layout_of,
    most_bytes,
    shard_key,
)
from pipeline.store.verify.findings import Findings, Problem
from pipeline.store.verify.manifest import Manifest, compare, read_manifest

FILES_AT_A_TIME = 256
MOST_CHUNKS = 100_000  # of a column or labels, that are named one by one


def check_files(
    directory: RunDirectory, findings: Findings, progress: Callable[[int], None] = lambda n_files: None
) -> Manifest | None:
    """Read every byte of a store, and add to the findings what is wrong; `progress` is told of files that are read.

    Returns:
        What the files were compared with; None where that is not known any more.

    Raises:
        UserError: no store exists, or one that is not complete and whose protocol files are gone.
    """
    manifest = read_manifest(directory, findings)
    if manifest is None:
        return None
    findings.n_shards, findings.n_done = manifest.plan.n_shards, int(manifest.is_done.sum())
    findings.problems += _read_all(directory.store, manifest, findings, progress)
    damaged = {problem.key for problem in findings.problems}
    findings.problems += _other_shapes(directory.store, manifest, damaged)
    findings.strays, unfinished = _others(directory.store, manifest)
    if unfinished:
        findings.notes.append(f"{counted(unfinished, 'file')} of shards that are not committed yet")
    return manifest


def _read_all(
    backend: Backend, manifest: Manifest, findings: Findings, progress: Callable[[int], None]
) -> Iterator[Problem]:
    """Read every file of the manifest."""
    known = {problem.key for problem in findings.problems}
    codec, layout, most = ShardCodec(backend, manifest.layout), layout_of(manifest.plan), most_bytes(manifest.plan)
    if not manifest.small:
        yield from _undecodable(backend, manifest)

    def look(task: tuple[str, FileRecord, int | None]) -> tuple[Problem | None, FileRecord | None]:
        key, record, index = task
        what, found = compare(backend, key, record, most)
        if what is None or key in known:
            return None, found
        if record.n_bytes < 0 and found is not None and index is not None:
            what = _own_checksums(codec, key, manifest.plan.shard(index), layout)
            if what is None:
                return None, found
        if index is None:
            return Problem(key, what), found
        shard = manifest.plan.shard(index)
        return Problem(key, _moved(found, manifest) or what, index, (shard.start, shard.stop)), found

    with ThreadPoolExecutor(backend.concurrency) as readers:
        tasks = _tasks(manifest)
        while some := list(itertools.islice(tasks, FILES_AT_A_TIME)):
            for problem, found in readers.map(look, some):
                findings.n_files += found is not None
                findings.n_bytes += found.n_bytes if found is not None else 0
                if problem is not None:
                    yield problem
            progress(len(some))


def _tasks(manifest: Manifest) -> Iterator[tuple[str, FileRecord, int | None]]:
    for key, record in manifest.small.items():
        yield key, record, None
    layout = layout_of(manifest.plan)
    for index in np.flatnonzero(manifest.is_done).tolist():
        for column, name in enumerate(layout):
            record = FileRecord(int(manifest.n_bytes[index, column]), int(manifest.crc32[index, column]))
            yield shard_key(name, index, layout), record, index


def _own_checksums(codec: ShardCodec, key: str, shard: Shard, layout: Layout) -> str | None:
    """What is wrong with the file of a shard of which nobody says what it should be."""
    try:
        codec.read(key.partition("/")[0], shard, layout)
    except (ValueError, OSError) as error:
        return f"cannot be decoded: {error}"
    return None


def _undecodable(backend: Backend, manifest: Manifest) -> Iterator[Problem]:
    """Columns and labels that cannot be read: it is not known which of their files are damaged."""
    layout = manifest.layout
    for name in sorted({*layout} - {*arrays_of(manifest.plan), *MANIFEST_ARRAYS}):
        try:
            read_array(backend, name)
        except (ValueError, OSError) as error:
            chunks = zip(layout[name]["shape"], layout[name]["chunk_grid"]["configuration"]["chunk_shape"], strict=True)
            counts = [-(-size // max(1, chunk)) for size, chunk in chunks]
            grid = itertools.product(*map(range, counts)) if math.prod(counts) <= MOST_CHUNKS else ()
            for key in (ROOT, *("c." + ".".join(map(str, index)) for index in grid)):
                yield Problem(f"{name}/{key}", f"or another file of the array is damaged: {error}")


def _moved(found: FileRecord | None, manifest: Manifest) -> str | None:
    """Whether a file holds what belongs into another."""
    if found is None or found.n_bytes == 0:
        return None
    same = np.argwhere((manifest.crc32 == found.crc32) & (manifest.n_bytes == found.n_bytes))
    if not len(same):
        return None
    index, column = same[0].tolist()
    return f"holds the bytes of {shard_key(arrays_of(manifest.plan)[column], index, layout_of(manifest.plan))}"


def _other_shapes(backend: Backend, manifest: Manifest, damaged: Iterable[str]) -> Iterator[Problem]:
    """Arrays that are laid out otherwise than the plan, or the group's own file, says."""
    arrays = layout_of(manifest.plan)
    planned = {name: (shape, *arrays[name]) for name, shape in array_shapes(manifest.plan).items()}
    for name in {**planned, **manifest.layout}:
        key = f"{name}/{ROOT}"
        if key in damaged:
            continue
        try:
            metadata = parse_object(backend.read(key))
            found = tuple(metadata["shape"]), tuple(metadata["dimension_names"]), metadata["data_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Problem(key, f"cannot be read: {error}")
            continue
        if found != planned.get(name, found):
            yield Problem(key, f"lays it out as {found} where the plan has {planned[name]}")
        elif metadata != manifest.layout.get(name, metadata):
            yield Problem(key, f"says something else of it than the group's own {ROOT}")


def _others(backend: Backend, manifest: Manifest) -> tuple[list[str], int]:
    """Files that are not the store's, and how many belong to shards that are not committed."""
    strays, n_unfinished, arrays = [], 0, layout_of(manifest.plan)
    unrecorded: tuple[str, ...] = () if manifest.is_recorded else MANIFEST_ARRAYS
    if not manifest.small:
        unrecorded += tuple(manifest.layout)
    for entry in backend.files():
        array, _, rest = entry.key.partition("/")
        first = rest.removeprefix("c.").partition(".")[0]
        index = int(first) if re.fullmatch("[0-9]{1,15}", first) else -1
        if array in arrays and 0 <= index < manifest.plan.n_shards and entry.key == shard_key(array, index, arrays):
            n_unfinished += not manifest.is_done[index] and array in computed_arrays(manifest.plan)
        elif entry.key != ROOT and entry.key not in manifest.small and array not in unrecorded:
            strays.append(entry.key)
    return sorted(strays), n_unfinished
