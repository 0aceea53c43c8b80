"""What the files of a store should be, and who says so.

A finished store says it itself (`shard_crc32`, `shard_bytes`, `file_crc32`, `file_bytes`, and in the group's own file
a record of those and a checksum of its own). Where that record is damaged too, or the store is not finished, the
protocol files beside it say the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.commits import FileRecord, RunDirectory
from pipeline.errors import UserError
from pipeline.places import Place
from pipeline.plan import Plan
from pipeline.reader import plan_of
from pipeline.resume import describes, records
from pipeline.store import (
    LAYOUT,
    MADE_AT_THE_END,
    ROOT,
    arrays_of,
    file_record,
    read_array,
    read_attributes,
    root_checksum,
)
from pipeline.verdict import Problem, Verdict


@dataclass(frozen=True)
class Expected:
    """What the files of a store should be.

    Attributes:
        plan: of the run.
        small: a record of each file that belongs to no shard, but for the group's own.
        n_bytes, crc32: (shards, arrays of the plan); size -1 where nobody says: Zarr's own checksums must do.
        is_done: (shards,) bool.
        layout: metadata of each array, where the group's own file repeats them.
    """

    plan: Plan
    small: Mapping[str, FileRecord]
    n_bytes: np.ndarray
    crc32: np.ndarray
    is_done: np.ndarray
    layout: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_recorded(self) -> bool:
        """Whether the store has a record of its own files that can be believed."""
        return any(key.startswith(f"{MADE_AT_THE_END[0]}/") for key in self.small)


def expectations(directory: RunDirectory, verdict: Verdict) -> Expected | None:
    """What the files should be; None where that is not known any more, which the verdict then says.

    Raises:
        UserError: no store lies there, or one that is not complete and whose protocol files are gone.
    """
    root = _root(directory, verdict)
    attributes = {} if root is None else root["attributes"]
    verdict.complete = bool(attributes.get("complete"))
    planned = _planned(directory, verdict)
    if verdict.complete:
        plan, layout = plan_of(attributes), root["consolidated_metadata"]["metadata"] if root else {}
        found = _stated_by_store(directory.store, plan, layout, attributes["files"], verdict)
        if found is not None:
            if planned is not None:
                _compare_records(directory, found, verdict)
            return found
        if planned is None:
            verdict.notes.append(
                f"the store's record of its own files is damaged and {directory.run.url} is gone: the other files are "
                f"compared with the checksums within them, which do not show files that have changed places"
            )
            verdict.is_recorded = False
            return _stated_by_nobody(plan, layout)
    if planned is None:
        if root is not None:
            raise UserError(
                f"{directory.url} is not complete, and {directory.run.url} is gone or not whole: what is done is not "
                f"known. The command of its run goes on where that can be; otherwise remove the store and run again"
            )
        verdict.notes.append(
            f"what the other files should be is not known any more: {directory.run.url} is gone. Remove the store, and "
            f"run again"
        )
        return None
    if verdict.complete or root is None:
        verdict.notes.append(f"the store's record of its own files is damaged; {directory.run.url} is believed instead")
    elif plan_of(attributes) != planned:
        verdict.problems.append(Problem(ROOT, f"holds another plan than {directory.run.url}"))
    return _stated_by_records(directory, planned, directory.prepared_files(), verdict)


def _planned(directory: RunDirectory, verdict: Verdict) -> Plan | None:
    """The plan beside the store; None where it is gone, or cannot be read and a complete store can do without."""
    try:
        return directory.read_plan() if directory.prepared else None
    except UserError as error:
        if not verdict.complete:
            raise
        verdict.notes.append(str(error))
        return None


def _root(directory: RunDirectory, verdict: Verdict) -> dict[str, Any] | None:
    """The group's own file; None where it cannot be believed, which is a problem."""
    what, root = None, None
    try:
        data = directory.store.read(ROOT)
        root = json.loads(data)
        complete = root["attributes"]["complete"]
        stated, actual = root_checksum(data)
        if complete is not False and stated != actual:
            what = f"is damaged: it states {stated or 'no checksum'} and has {actual}"
    except FileNotFoundError:
        what = "is missing"
    except (ValueError, KeyError, TypeError):
        what = "cannot be read" if data else "is empty"
    except OSError as error:
        what = f"cannot be read: {error}"
    if what is None:
        verdict.n_files, verdict.n_bytes = 1, len(data)
        return dict(root) if root is not None else None
    _require_store(directory)
    verdict.problems.append(Problem(ROOT, what))
    return None


def _require_store(directory: RunDirectory) -> None:
    """Something without a readable group file is a store all the same if a run says so, or its arrays are there."""
    if directory.prepared or all(directory.store.size(f"{name}/{ROOT}") is not None for name in LAYOUT):
        return
    if read_attributes(directory.store) is None:
        raise UserError(f"{directory.url} does not exist")


def _stated_by_store(
    place: Place, plan: Plan, layout: Mapping[str, Any], manifest: Mapping[str, Any], verdict: Verdict
) -> Expected | None:
    """What a complete store says of its own files; None where that is damaged."""
    small = {key: FileRecord(*values) for key, values in manifest.items()}
    problems = [
        Problem(key, what) for key, record in small.items() if (what := compare(place, key, record)[0]) is not None
    ]
    if problems:
        verdict.problems += problems
        return None
    try:
        columns = [read_array(place, name).tolist() for name in ("file", "file_bytes", "file_crc32")]
        n_bytes, crc32 = read_array(place, "shard_bytes"), read_array(place, "shard_crc32")
    except ValueError as error:  # something that does not belong there lies in between
        verdict.notes.append(str(error))
        return None
    small |= {key: FileRecord(n_bytes, crc32) for key, n_bytes, crc32 in zip(*columns, strict=True)}
    return Expected(plan, small, n_bytes, crc32, np.ones(plan.n_shards, dtype=bool), layout)


def _stated_by_records(
    directory: RunDirectory, plan: Plan, small: Mapping[str, FileRecord], verdict: Verdict
) -> Expected:
    """What the protocol files say of a store; records that say nothing are problems."""
    n_bytes = np.zeros((plan.n_shards, len(arrays_of(plan))), dtype=np.int64)
    crc32, is_done = np.zeros(n_bytes.shape, dtype=np.uint32), np.zeros(plan.n_shards, dtype=bool)
    indices = [index for index in directory.done_indices() if index < plan.n_shards]
    for record in records(directory, plan.n_shards):
        if describes(record, plan):
            is_done[record.shard] = True
            n_bytes[record.shard] = [record.files[name].n_bytes for name in arrays_of(plan)]
            crc32[record.shard] = [record.files[name].crc32 for name in arrays_of(plan)]
    for index in (index for index in indices if not is_done[index]):
        shard = plan.shard(index)
        what = f"in {directory.run.url} cannot be read, or is of other rows"
        verdict.problems.append(Problem(f"done/{index:08d}.json", what, index, (shard.start, shard.stop)))
    return Expected(plan, small, n_bytes, crc32, is_done)


def _stated_by_nobody(plan: Plan, layout: Mapping[str, Any]) -> Expected:
    n_bytes = np.full((plan.n_shards, len(arrays_of(plan))), -1, dtype=np.int64)
    is_done = np.ones(plan.n_shards, dtype=bool)
    return Expected(plan, {}, n_bytes, np.zeros(n_bytes.shape, dtype=np.uint32), is_done, layout)


def _compare_records(directory: RunDirectory, expected: Expected, verdict: Verdict) -> None:
    """The done records of a complete store, where they are still there, say the same as the store."""
    stated = _stated_by_records(directory, expected.plan, expected.small, verdict)
    differs = (stated.crc32 != expected.crc32) | (stated.n_bytes != expected.n_bytes)
    for index in np.flatnonzero(differs.any(axis=1) & stated.is_done).tolist():
        shard = expected.plan.shard(index)
        what = f"has other checksums in the store than in its done record in {directory.run.url}"
        verdict.problems.append(Problem("shard_crc32/c.0.0", what, index, (shard.start, shard.stop)))


def compare(place: Place, key: str, record: FileRecord) -> tuple[str | None, FileRecord | None]:
    """What is wrong with a file, if anything, and what it is."""
    try:
        found = file_record(place.read(key))
    except FileNotFoundError:
        return "is missing", None
    except OSError as error:
        return f"cannot be read: {error}", None
    if found == record:
        return None, found
    if found.n_bytes == 0:
        return "is empty", found
    if found.n_bytes < record.n_bytes:
        return f"is truncated: {found.n_bytes} of {record.n_bytes} bytes", found
    if found.n_bytes > record.n_bytes:
        return f"is too long: {found.n_bytes} bytes instead of {record.n_bytes}", found
    return "is damaged: its checksum differs", found
