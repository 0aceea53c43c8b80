"""How far a run has come, from its done records and the files of its store."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.commits import DoneRecord, RunDirectory
from pipeline.deltas import combine
from pipeline.places import LocalPlace
from pipeline.plan import Plan
from pipeline.shards import Shard
from pipeline.store import arrays_of, layout_of, shard_key, shard_sizes

READERS = 32  # requests at a time to an object store
RECORDS_AT_A_TIME = 4096  # in memory


@dataclass(frozen=True)
class Standing:
    """What is done, S shards of it in all.

    Attributes:
        is_done: (S,) bool; a shard with a record for its rows, and every file there with the size it had.
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


def recorded(directory: RunDirectory, plan: Plan) -> np.ndarray:
    """(S,) bool: the shards that have a done record, which is not looked into: a resumed run begins with these names.

    What lies behind them is looked at when all are there; see `take_stock`.
    """
    found = np.zeros(plan.n_shards, dtype=bool)
    indices = np.array(directory.done_indices(), dtype=np.int64)
    found[indices[indices < plan.n_shards]] = True
    return found


def take_stock(directory: RunDirectory, plan: Plan) -> Standing:
    """Read every done record and compare it with what lies in the store.

    Memory grows by 100 bytes with each shard.
    """
    n, names = plan.n_shards, arrays_of(plan)
    there = shard_sizes(directory.store, plan)
    n_bytes, crc32 = np.zeros_like(there), np.zeros(there.shape, dtype=np.uint32)
    is_done, seconds, deltas = np.zeros(n, dtype=bool), 0.0, None
    found = (record for record in records(directory, n) if describes(record, plan))
    while some := list(itertools.islice(found, RECORDS_AT_A_TIME)):  # one by one, numpy would take half of the time
        indices = np.array([record.shard for record in some])
        sizes = np.array([[record.files[name].n_bytes for name in names] for record in some])
        sums = np.array([[record.files[name].crc32 for name in names] for record in some], dtype=np.uint32)
        is_whole = (sizes == there[indices]).all(axis=1)
        indices, whole = indices[is_whole], list(itertools.compress(some, is_whole))
        n_bytes[indices], crc32[indices], is_done[indices] = sizes[is_whole], sums[is_whole], True
        if whole:
            seconds += sum(record.seconds for record in whole)
            deltas = combine([*([] if deltas is None else [deltas]), *(record.deltas for record in whole)])
    return Standing(is_done, n_bytes, crc32, seconds, deltas)


def is_done(directory: RunDirectory, plan: Plan, shard: Shard) -> bool:
    """Whether one shard is done."""
    record, layout = _readable(directory, shard.index), layout_of(plan)
    return (
        record is not None
        and describes(record, plan)
        and all(
            directory.store.size(shard_key(name, shard.index, layout)) == file.n_bytes
            for name, file in record.files.items()
        )
    )


def describes(record: DoneRecord, plan: Plan) -> bool:
    """Whether a record is of the rows and arrays that the plan has."""
    shard = plan.shard(record.shard)
    return (record.start, record.stop) == (shard.start, shard.stop) and set(record.files) == set(arrays_of(plan))


def records(directory: RunDirectory, n: int) -> Iterator[DoneRecord]:
    """Every done record of the n shards that can be read, by index."""
    indices = [index for index in directory.done_indices() if index < n]
    if isinstance(directory.run, LocalPlace):
        found = (_readable(directory, index) for index in indices)
        yield from (record for record in found if record is not None)
        return
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(indices), RECORDS_AT_A_TIME):
            some = readers.map(partial(_readable, directory), indices[start : start + RECORDS_AT_A_TIME])
            yield from (record for record in some if record is not None)


def _readable(directory: RunDirectory, index: int) -> DoneRecord | None:
    """The done record of a shard; None where there is none, or a damaged one: the shard is done again then."""
    try:
        record = directory.read_record(index)
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or none of ours
        return None
    return record if record is not None and record.shard == index else None
