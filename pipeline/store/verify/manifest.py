"""What the files of a store should be, and who says so.

A finished store says it itself (`shard_crc32`, `shard_bytes`, `file_crc32`, `file_bytes`, and in the group's own file
a record of those and a checksum of its own). Where that record is damaged too, or the store is not finished, the
protocol files beside it say the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from pipeline.messages.errors import UserError
from pipeline.planning.plain_values import require
from pipeline.planning.plan import Plan
from pipeline.store.attributes import plan_of, read_attributes, root_damage
from pipeline.store.backends.base import Backend
from pipeline.store.backends.tree import MOST_BYTES, TooLarge
from pipeline.store.codec import read_array
from pipeline.store.done_shards import done_records, matches_plan
from pipeline.store.json_files import parse_object
from pipeline.store.records import FileRecord
from pipeline.store.run_directory import PLAN, RunDirectory
from pipeline.store.schema import LAYOUT, MANIFEST_ARRAYS, ROOT, arrays_of
from pipeline.store.verify.findings import Findings, Problem


class _ChunkShape(TypedDict):
    chunk_shape: list[int]


class _Grid(TypedDict):
    configuration: _ChunkShape


class _Array(TypedDict):
    shape: list[int]
    chunk_grid: _Grid


class _Arrays(TypedDict):
    metadata: dict[str, _Array]


class _Root(TypedDict):
    consolidated_metadata: _Arrays


@dataclass(frozen=True)
class Manifest:
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
        return any(key.startswith(f"{MANIFEST_ARRAYS[0]}/") for key in self.small)


def read_manifest(directory: RunDirectory, findings: Findings) -> Manifest | None:
    """What the files should be; None where that is not known any more, which is then noted.

    Raises:
        UserError: no store exists, or one that is not complete and whose protocol files are gone.
    """
    root = _root(directory, findings)
    attributes = {} if root is None else root["attributes"]
    findings.complete = bool(attributes.get("complete"))
    planned = _planned(directory, attributes, findings)
    if findings.complete:
        assert root is not None  # it says that it is complete
        plan, layout = plan_of(attributes), root["consolidated_metadata"]["metadata"]
        found = _manifest_of_store(directory.store, plan, layout, attributes["files"], findings)
        if found is not None:
            if planned is not None:
                _compare_records(directory, found, findings)
            return found
        if planned is None:
            findings.notes.append(
                f"the store's record of its own files is damaged and {directory.run.url} is gone: the other files are "
                f"compared with the checksums within them, which do not show files that have changed places"
            )
            findings.is_recorded = False
            return _manifest_of_nothing(plan, layout)
    if planned is None:
        if root is not None:
            raise UserError(
                f"{directory.url} is not complete, and {directory.run.url} is gone or not whole: what is done is not "
                f"known. The command of its run goes on where that can be; otherwise remove the store and run again"
            )
        findings.notes.append(
            f"what the other files should be is not known any more: {directory.run.url} is gone. Remove the store, and "
            f"run again"
        )
        return None
    if findings.complete or root is None:
        findings.notes.append(
            f"the store's record of its own files is damaged; {directory.run.url} is believed instead"
        )
    elif plan_of(attributes) != planned:
        findings.problems.append(Problem(ROOT, f"holds another plan than {directory.run.url}"))
    return _manifest_of_records(directory, planned, directory.prepared_files(), findings)


def _planned(directory: RunDirectory, attributes: Mapping[str, Any], findings: Findings) -> Plan | None:
    """The plan beside the store; None where it is gone, or cannot be read and a complete store can do without.

    Where it cannot be read and the store is not complete, the one that the store's own attributes hold.
    """
    try:
        return directory.read_plan() if directory.prepared else None
    except UserError as error:
        if findings.complete:
            findings.notes.append(str(error))
            return None
        if not attributes:
            raise
        plan = plan_of(attributes)
        findings.problems.append(Problem(PLAN, f"in {directory.run.url} is damaged or of another version"))
        return plan


def _root(directory: RunDirectory, findings: Findings) -> dict[str, Any] | None:
    """The group's own file; None where it cannot be believed, which is a problem."""
    data = b""
    try:
        data = directory.store.read(ROOT)
        what = root_damage(data)
    except FileNotFoundError:
        what = "is missing"
    except OSError as error:
        what = f"cannot be read: {error}"
    if what is None:
        what = _wrong_layout(parse_object(data))
    if what is None:
        findings.n_files, findings.n_bytes = 1, len(data)
        return parse_object(data)
    _require_store(directory)
    findings.problems.append(Problem(ROOT, what))
    return None


def _wrong_layout(root: Mapping[str, Any]) -> str | None:
    """What is wrong with the copies of the arrays' metadata in the group's own file of a complete store."""
    try:
        if root["attributes"]["complete"]:
            require(root, _Root, "it")
            FileRecord.by_key(root["attributes"]["files"])
            for name, array in root["consolidated_metadata"]["metadata"].items():
                shape, chunks = array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]
                if not re.fullmatch(r"\w+", name, re.ASCII) or len(shape) != len(chunks) or min([1, *chunks]) < 1:
                    raise ValueError(f"it has an array {name!r} of shape {shape} in chunks of {chunks}")
    except ValueError as error:
        return f"holds what dlshap does not write: {error}"
    return None


def _require_store(directory: RunDirectory) -> None:
    """Something without a readable group file is a store all the same if a run says so, or its arrays exist."""
    if directory.prepared or all(directory.store.size(f"{name}/{ROOT}") is not None for name in LAYOUT):
        return
    if read_attributes(directory.store) is None:
        raise UserError(f"{directory.url} does not exist")


def _manifest_of_store(
    backend: Backend, plan: Plan, layout: Mapping[str, Any], manifest: Mapping[str, Any], findings: Findings
) -> Manifest | None:
    """What a complete store says of its own files; None where that is damaged."""
    small = FileRecord.by_key(manifest)
    problems = [
        Problem(key, what) for key, record in small.items() if (what := compare(backend, key, record)[0]) is not None
    ]
    if problems:
        findings.problems += problems
        return None
    try:
        columns = [read_array(backend, name).tolist() for name in ("file", "file_bytes", "file_crc32")]
        n_bytes, crc32 = read_array(backend, "shard_bytes"), read_array(backend, "shard_crc32")
        small |= FileRecord.by_key({key: numbers for key, *numbers in zip(*columns, strict=True)})
        shape = (plan.n_shards, len(arrays_of(plan)))
        if not n_bytes.shape == crc32.shape == shape or n_bytes.dtype.kind + crc32.dtype.kind != "iu":
            raise ValueError(f"shard_bytes and shard_crc32 are no whole numbers of shape {shape}, as the plan says")
    except ValueError as error:  # a stray file among the chunks
        findings.notes.append(str(error))
        return None
    return Manifest(plan, small, n_bytes, crc32, np.ones(plan.n_shards, dtype=bool), layout)


def _manifest_of_records(
    directory: RunDirectory, plan: Plan, small: Mapping[str, FileRecord], findings: Findings
) -> Manifest:
    """What the protocol files say of a store; records that say nothing are problems."""
    n_bytes = np.zeros((plan.n_shards, len(arrays_of(plan))), dtype=np.int64)
    crc32, is_done = np.zeros(n_bytes.shape, dtype=np.uint32), np.zeros(plan.n_shards, dtype=bool)
    indices = [index for index in directory.done_indices() if index < plan.n_shards]
    for record in done_records(directory, plan.n_shards):
        if matches_plan(record, plan):
            is_done[record.shard] = True
            n_bytes[record.shard] = [record.files[name].n_bytes for name in arrays_of(plan)]
            crc32[record.shard] = [record.files[name].crc32 for name in arrays_of(plan)]
    for index in (index for index in indices if not is_done[index]):
        shard = plan.shard(index)
        what = f"in {directory.run.url} is damaged, cannot be read, or is of other rows"
        findings.problems.append(Problem(f"done/{index:08d}.json", what, index, (shard.start, shard.stop)))
    return Manifest(plan, small, n_bytes, crc32, is_done)


def _manifest_of_nothing(plan: Plan, layout: Mapping[str, Any]) -> Manifest:
    """Of shards that are all done, whose files nothing describes but the checksums within them."""
    n_bytes = np.full((plan.n_shards, len(arrays_of(plan))), -1, dtype=np.int64)
    is_done = np.ones(plan.n_shards, dtype=bool)
    return Manifest(plan, {}, n_bytes, np.zeros(n_bytes.shape, dtype=np.uint32), is_done, layout)


def _compare_records(directory: RunDirectory, manifest: Manifest, findings: Findings) -> None:
    """The done records of a complete store, where they still exist, say the same as the store."""
    stated = _manifest_of_records(directory, manifest.plan, manifest.small, findings)
    differs = (stated.crc32 != manifest.crc32) | (stated.n_bytes != manifest.n_bytes)
    for index in np.flatnonzero(differs.any(axis=1) & stated.is_done).tolist():
        shard = manifest.plan.shard(index)
        what = f"has other checksums in the store than in its done record in {directory.run.url}"
        findings.problems.append(Problem("shard_crc32/c.0.0", what, index, (shard.start, shard.stop)))


def compare(
    backend: Backend, key: str, record: FileRecord, most: int = MOST_BYTES
) -> tuple[str | None, FileRecord | None]:
    """What is wrong with a file, if anything, and what it is; None for one of more than `most` bytes."""
    try:
        found = FileRecord.of(backend.read(key, most))
    except FileNotFoundError:
        return "is missing", None
    except TooLarge as error:
        return f"is too long: {error.n_bytes} bytes instead of {record.n_bytes}", None
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
