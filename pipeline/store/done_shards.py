"""How far a run has come, from its done records and the files of its store."""

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.planning.convergence import combine
from pipeline.planning.plan import Plan
from pipeline.planning.shards import Shard
from pipeline.store.attributes import plan_of
from pipeline.store.backends.base import Backend
from pipeline.store.codec import read_array, shard_sizes
from pipeline.store.records import DoneRecord, FileRecord
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import ROOT, arrays_of, layout_of, shard_key

RECORDS_AT_A_TIME = 4096  # in memory


@dataclass(frozen=True)
class CheckedShards:
    """What is done, S shards of it in all.

    Attributes:
        is_done: (S,) bool; a shard with a record for its rows, whose files all have the recorded size.
        n_bytes, crc32: (S, arrays of the plan), of the files of the shards that are done.
        seconds: that the shards took, together.
        deltas: summary of their convergence deltas; None where no shard is done.
    """

    is_done: np.ndarray
    n_bytes: np.ndarray
    crc32: np.ndarray
    seconds: float
    deltas: dict[str, Any] | None

    @property
    def n_done(self) -> int:
        return int(self.is_done.sum())

    @property
    def complete(self) -> bool:
        return bool(self.is_done.all())


def recorded_shards(directory: RunDirectory, plan: Plan) -> np.ndarray:
    """(S,) bool: the shards that have a done record, by the names of the records: how a resumed run begins.

    The records themselves are read once all exist; see `check_shards`.
    """
    found = np.zeros(plan.n_shards, dtype=bool)
    indices = np.array(directory.done_indices(), dtype=np.int64)
    found[indices[indices < plan.n_shards]] = True
    return found


def check_shards(directory: RunDirectory, plan: Plan) -> CheckedShards:
    """Read every done record and compare it with the files of the store.

    Memory grows by 100 bytes with each shard.
    """
    n, names = plan.n_shards, arrays_of(plan)
    found_sizes = shard_sizes(directory.store, plan)
    n_bytes, crc32 = np.zeros_like(found_sizes), np.zeros(found_sizes.shape, dtype=np.uint32)
    is_done, seconds, deltas = np.zeros(n, dtype=bool), 0.0, None
    found = (record for record in done_records(directory, n) if matches_plan(record, plan))
    while some := list(itertools.islice(found, RECORDS_AT_A_TIME)):  # one by one, numpy would take half of the time
        indices = np.array([record.shard for record in some])
        sizes = np.array([[record.files[name].n_bytes for name in names] for record in some])
        sums = np.array([[record.files[name].crc32 for name in names] for record in some], dtype=np.uint32)
        is_whole = (sizes == found_sizes[indices]).all(axis=1)
        indices, whole = indices[is_whole], list(itertools.compress(some, is_whole))
        n_bytes[indices], crc32[indices], is_done[indices] = sizes[is_whole], sums[is_whole], True
        if whole:
            seconds += sum(record.seconds for record in whole)
            deltas = combine([*([] if deltas is None else [deltas]), *(record.deltas for record in whole)])
    return CheckedShards(is_done, n_bytes, crc32, seconds, deltas)


def is_done(directory: RunDirectory, plan: Plan, shard: Shard) -> bool:
    """Whether one shard is done."""
    record, layout = _readable(directory, shard.index), layout_of(plan)
    return (
        record is not None
        and matches_plan(record, plan)
        and all(
            directory.store.size(shard_key(name, shard.index, layout)) == file.n_bytes
            for name, file in record.files.items()
        )
    )


def matches_plan(record: DoneRecord, plan: Plan) -> bool:
    """Whether a record is of the rows and arrays that the plan has."""
    shard = plan.shard(record.shard)
    return (record.start, record.stop) == (shard.start, shard.stop) and set(record.files) == set(arrays_of(plan))


def done_records(directory: RunDirectory, n: int) -> Iterator[DoneRecord]:
    """Every done record of the n shards that can be read, by index."""
    indices = [index for index in directory.done_indices() if index < n]
    with ThreadPoolExecutor(directory.run.concurrency) as readers:
        for start in range(0, len(indices), RECORDS_AT_A_TIME):
            some = readers.map(partial(_readable, directory), indices[start : start + RECORDS_AT_A_TIME])
            yield from (record for record in some if record is not None)


def _readable(directory: RunDirectory, index: int) -> DoneRecord | None:
    """The done record of a shard; None where there is none, or a damaged one: the shard is done again then."""
    try:
        record = directory.read_record(index)
    except (ValueError, TypeError):  # no JSON, or none of ours
        return None
    return record if record is not None and record.shard == index else None


def wrong_sizes(backend: Backend, attributes: Mapping[str, Any]) -> list[str]:
    """Files of a complete store that are missing, or of another size than when it was completed."""
    plan = plan_of(attributes)
    names, layout = arrays_of(plan), layout_of(plan)
    try:
        records = FileRecord.by_key(attributes["files"])
        n_bytes, keys, sizes = (read_array(backend, name) for name in ("shard_bytes", "file", "file_bytes"))
        if n_bytes.shape != (plan.n_shards, len(names)):
            raise ValueError(
                f"shard_bytes of {backend.url} has the shape {n_bytes.shape}; expected a size of each shard"
            )
        records |= FileRecord.by_key({key: [size, 0] for key, size in zip(keys.tolist(), sizes.tolist(), strict=True)})
    except ValueError as error:
        return [str(error)]
    wrong = np.argwhere(shard_sizes(backend, plan) != n_bytes)
    folders = {key.partition("/")[0] for key in records} - {*layout}
    found: dict[str, int | None] = {e.key: e.n_bytes for name in folders for e in backend.files(f"{name}/")}
    found |= {f"{name}/{ROOT}": backend.size(f"{name}/{ROOT}") for name in layout}
    others = [key for key, record in records.items() if found.get(key) != record.n_bytes]
    return [shard_key(names[column], int(index), layout) for index, column in wrong] + others
