"""Reading every byte of a store again, and comparing it with what was committed.

A finished store says itself what each of its files should be (`shard_crc32`, `shard_bytes`, `file_crc32`,
`file_bytes`, and a checksum of the group's own file). Where that record is damaged too, or the store is not finished,
the protocol files beside it say the same.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.commits import FileRecord, RunDirectory
from pipeline.errors import UserError
from pipeline.places import LocalPlace, Place
from pipeline.plan import Plan
from pipeline.reader import plan_of
from pipeline.references import open_references
from pipeline.resume import describes, records
from pipeline.shards import Shard
from pipeline.store import (
    COMPUTED,
    LAYOUT,
    MADE_AT_THE_END,
    POOL,
    ROOT,
    TABLE,
    ShardCodec,
    file_record,
    read_array,
    read_attributes,
    read_names,
    root_checksum,
    shapes,
    shard_key,
    shard_sizes,
)

READERS = {True: 4, False: 32}  # files read at a time, on a disk and on an object store
FILES_AT_A_TIME = 256
N_SAMPLED = 100  # rows whose references are drawn again


@dataclass(frozen=True)
class Problem:
    """A file that is not what it was, or a value that does not follow from it.

    Attributes:
        key: of the file.
        what: what is wrong, in words.
        shard: index, where the file belongs to one.
        rows: [start, stop) of it.
    """

    key: str
    what: str
    shard: int | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        array = self.key.rpartition("/")[0] or "the group"
        where = (
            array if self.rows is None else f"{array}, shard {self.shard} (rows {self.rows[0]} to {self.rows[1] - 1})"
        )
        return f"{where}: {self.key} {self.what}"


@dataclass
class Verdict:
    """What reading a store again has shown.

    Attributes:
        store: its url.
        complete: whether it says that it is.
        n_files, n_bytes: read.
        n_shards, n_done: of the run.
        n_sampled: rows whose references were drawn again.
        problems: what is wrong.
        strays: files that are not the store's.
        notes: what could not be looked at, and why.
    """

    store: str
    complete: bool = False
    n_files: int = 0
    n_bytes: int = 0
    n_shards: int = 0
    n_done: int = 0
    n_sampled: int = 0
    problems: list[Problem] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.problems

    def text(self, repaired: str | None = None) -> str:
        """For people; `repaired` says what was done about it."""
        lines = [f"damaged: {problem}" for problem in self.problems]
        lines += [f"stray: {key} is not a file of the store" for key in self.strays]
        lines += [f"note: {note}" for note in self.notes]
        n = len(self.problems)
        state = "" if self.complete else f", not complete: {self.n_done} of {self.n_shards} shards are done"
        lines.append(
            f"{self.store}: {self.n_files} files, {self.n_bytes / 1e6:.1f} MB read, references of {self.n_sampled} "
            f"rows drawn again: {'1 problem' if n == 1 else f'{n} problems' if n else 'all as committed'}{state}"
        )
        if n:
            advice = f"`dlshap verify --repair {self.store}` gives up what is damaged, for its run to make anew"
            lines.append(repaired or advice)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        problems = [{"file": p.key, "what": p.what, "shard": p.shard, "rows": p.rows} for p in self.problems]
        return {**vars(self), "problems": problems, "sound": self.sound}


@dataclass(frozen=True)
class Expected:
    """What the files of a store should be.

    Attributes:
        plan: of the run.
        small: a record of each file that belongs to no shard, but for the group's own.
        n_bytes, crc32: (shards, arrays of `LAYOUT`); size -1 where nobody says: Zarr's own checksums must do.
        is_done: (shards,) bool.
    """

    plan: Plan
    small: Mapping[str, FileRecord]
    n_bytes: np.ndarray
    crc32: np.ndarray
    is_done: np.ndarray

    @property
    def is_recorded(self) -> bool:
        """Whether the store has a record of its own files that can be believed."""
        return any(key.startswith(f"{MADE_AT_THE_END[0]}/") for key in self.small)


def verify(
    directory: RunDirectory, n_sampled: int = N_SAMPLED, progress: Callable[[int], None] = lambda n_files: None
) -> Verdict:
    """Read every byte of a store.

    Args:
        directory: of the run that fills or filled the store.
        n_sampled: rows whose references are drawn again and compared with their checksums.
        progress: told of every so many files.

    Raises:
        UserError: no store lies there, or neither the store nor its protocol files say what should be there.
    """
    verdict = Verdict(directory.url)
    attributes = _root(directory, verdict)
    verdict.complete = bool(attributes.get("complete"))
    expected = _expected(directory, attributes, verdict)
    plan = expected.plan
    verdict.n_shards, verdict.n_done = plan.n_shards, int(expected.is_done.sum())
    verdict.problems += _read_all(directory.store, expected, verdict, progress)
    damaged = {problem.key for problem in verdict.problems}
    verdict.problems += _other_shapes(directory.store, plan, damaged)
    verdict.strays, unfinished = _others(directory.store, expected)
    if unfinished:
        verdict.notes.append(f"{unfinished} files belong to shards that are not committed yet")
    _draw_again(directory, expected, damaged, n_sampled, verdict)
    return verdict


def wrong_sizes(place: Place, plan: Plan) -> list[str]:
    """Files of the shards of a complete store that are not there, or of another size than when it was completed."""
    try:
        wrong = shard_sizes(place, plan.n_shards) != read_array(place, "shard_bytes")
    except ValueError as error:
        return [str(error)]
    names = list(LAYOUT)
    return [shard_key(names[column], int(index)) for index, column in np.argwhere(wrong)]


# --- what should be there -------------------------------------------------------------------------------------------


def _root(directory: RunDirectory, verdict: Verdict) -> dict[str, Any]:
    """Attributes of the group; {} where they cannot be believed, which is a problem."""
    try:
        data = directory.store.read(ROOT)
    except FileNotFoundError:
        if not directory.prepared and read_attributes(directory.store) is None:
            raise UserError(f"{directory.url} does not exist") from None
        verdict.problems.append(Problem(ROOT, "is missing"))
        return {}
    try:
        attributes = json.loads(data)["attributes"]
        complete = attributes["complete"]
    except (ValueError, KeyError, TypeError):
        if directory.read_plan() is None:
            raise UserError(
                f"{directory.url}/{ROOT} is no dlshap store's, or damaged, and {directory.run.url} does not say what "
                f"it was"
            ) from None
        verdict.problems.append(Problem(ROOT, "is empty" if not data else "cannot be read"))
        return {}
    stated, actual = root_checksum(data)
    if complete is not False and stated != actual:
        verdict.problems.append(Problem(ROOT, f"is damaged: it states {stated or 'no checksum'} and has {actual}"))
        return attributes if directory.read_plan() is None else {}
    verdict.n_files, verdict.n_bytes = 1, len(data)
    return dict(attributes)


def _expected(directory: RunDirectory, attributes: Mapping[str, Any], verdict: Verdict) -> Expected:
    if attributes.get("complete"):
        plan = plan_of(attributes)
        found = _stated_by_store(directory.store, plan, attributes["files"], verdict)
        if found is not None:
            if directory.prepared:
                _compare_records(directory, found, verdict)
            return found
    planned = directory.read_plan() if directory.prepared else None
    if planned is not None:
        if attributes.get("complete") or not attributes:
            verdict.notes.append(
                f"the store's record of its own files is damaged; {directory.run.url} is believed instead"
            )
        return _stated_by_records(directory, planned)
    if not attributes:
        raise UserError(f"what {directory.url} should hold is not known any more: remove it, and run again")
    verdict.notes.append(
        f"the store's record of its own files is damaged and {directory.run.url} is gone: the other files are compared "
        f"with the checksums within them, which do not show files that have changed places"
    )
    return _stated_by_nobody(plan_of(attributes))


def _stated_by_store(place: Place, plan: Plan, manifest: Mapping[str, Any], verdict: Verdict) -> Expected | None:
    """What a complete store says of its own files; None where that is damaged."""
    small = {key: FileRecord(*values) for key, values in manifest.items()}
    problems = [problem for key, record in small.items() if (problem := _look(place, key, record)) is not None]
    if problems:
        verdict.problems += problems
        return None
    columns = [read_array(place, name).tolist() for name in ("file", "file_bytes", "file_crc32")]
    small |= {key: FileRecord(n_bytes, crc32) for key, n_bytes, crc32 in zip(*columns, strict=True)}
    n_bytes, crc32 = read_array(place, "shard_bytes"), read_array(place, "shard_crc32")
    return Expected(plan, small, n_bytes, crc32, np.ones(plan.n_shards, dtype=bool))


def _stated_by_records(directory: RunDirectory, plan: Plan) -> Expected:
    """What the protocol files say of a store."""
    n_bytes = np.zeros((plan.n_shards, len(LAYOUT)), dtype=np.int64)
    crc32, is_done = np.zeros(n_bytes.shape, dtype=np.uint32), np.zeros(plan.n_shards, dtype=bool)
    for record in records(directory, plan.n_shards):
        if describes(record, plan.shard(record.shard)):
            is_done[record.shard] = True
            n_bytes[record.shard] = [record.files[name].n_bytes for name in LAYOUT]
            crc32[record.shard] = [record.files[name].crc32 for name in LAYOUT]
    return Expected(plan, directory.prepared_files(), n_bytes, crc32, is_done)


def _stated_by_nobody(plan: Plan) -> Expected:
    n_bytes = np.full((plan.n_shards, len(LAYOUT)), -1, dtype=np.int64)
    return Expected(plan, {}, n_bytes, np.zeros(n_bytes.shape, dtype=np.uint32), np.ones(plan.n_shards, dtype=bool))


def _compare_records(directory: RunDirectory, expected: Expected, verdict: Verdict) -> None:
    """The done records of a complete store, where they are still there, say the same as the store."""
    stated = _stated_by_records(directory, expected.plan)
    differs = (stated.crc32 != expected.crc32) | (stated.n_bytes != expected.n_bytes)
    for index in np.flatnonzero(differs.any(axis=1) & stated.is_done).tolist():
        shard = expected.plan.shard(index)
        what = f"has other checksums in the store than in its done record in {directory.run.url}"
        verdict.problems.append(Problem("shard_crc32/c.0.0", what, index, (shard.start, shard.stop)))


# --- what is there --------------------------------------------------------------------------------------------------


def _look(place: Place, key: str, record: FileRecord) -> Problem | None:
    """Read one file and compare it."""
    what, _ = _compare(place, key, record)
    return None if what is None else Problem(key, what)


def _compare(place: Place, key: str, record: FileRecord) -> tuple[str | None, FileRecord | None]:
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


def _read_all(place: Place, expected: Expected, verdict: Verdict, progress: Callable[[int], None]) -> Iterator[Problem]:
    """Every file that should be there."""
    known = {problem.key for problem in verdict.problems}
    codec = ShardCodec(place)
    if not expected.small:
        yield from _undecodable(place)

    def look(task: tuple[str, FileRecord, int | None]) -> tuple[Problem | None, FileRecord | None]:
        key, record, index = task
        what, found = _compare(place, key, record)
        if what is None or key in known:
            return None, found
        if record.n_bytes < 0 and found is not None and index is not None:
            what = _own_checksums(place, codec, key, expected.plan.shard(index))
            if what is None:
                return None, found
        if index is None:
            return Problem(key, what), found
        shard = expected.plan.shard(index)
        return Problem(key, _moved(found, expected) or what, index, (shard.start, shard.stop)), found

    with ThreadPoolExecutor(READERS[isinstance(place, LocalPlace)]) as readers:
        tasks = _tasks(expected)
        while some := list(itertools.islice(tasks, FILES_AT_A_TIME)):
            for problem, found in readers.map(look, some):
                verdict.n_files += found is not None
                verdict.n_bytes += found.n_bytes if found is not None else 0
                if problem is not None:
                    yield problem
            progress(len(some))


def _tasks(expected: Expected) -> Iterator[tuple[str, FileRecord, int | None]]:
    for key, record in expected.small.items():
        yield key, record, None
    for index in np.flatnonzero(expected.is_done).tolist():
        for column, name in enumerate(LAYOUT):
            record = FileRecord(int(expected.n_bytes[index, column]), int(expected.crc32[index, column]))
            yield shard_key(name, index), record, index


def _own_checksums(place: Place, codec: ShardCodec, key: str, shard: Shard) -> str | None:
    """What is wrong with the file of a shard of which nobody says what it should be."""
    try:
        codec.decode(key.partition("/")[0], shard, place.read(key))
    except (ValueError, OSError) as error:
        return f"cannot be decoded: {error}"
    return None


def _undecodable(place: Place) -> Iterator[Problem]:
    """Columns and labels that cannot be read."""
    for name in (*TABLE, "target", "base"):
        try:
            read_array(place, name)
        except (ValueError, OSError) as error:
            yield Problem(f"{name}/{ROOT}", f"or its values cannot be read: {error}")


def _moved(found: FileRecord | None, expected: Expected) -> str | None:
    """Whether a file holds what belongs into another."""
    if found is None or found.n_bytes == 0:
        return None
    same = np.argwhere((expected.crc32 == found.crc32) & (expected.n_bytes == found.n_bytes))
    return f"holds the bytes of {shard_key(list(LAYOUT)[same[0, 1]], int(same[0, 0]))}" if len(same) else None


def _other_shapes(place: Place, plan: Plan, damaged: Iterable[str]) -> Iterator[Problem]:
    """Arrays that are laid out otherwise than the plan says."""
    for name, shape in shapes(plan).items():
        key = f"{name}/{ROOT}"
        if key in damaged:
            continue
        try:
            metadata = json.loads(place.read(key))
            found = tuple(metadata["shape"]), tuple(metadata["dimension_names"]), metadata["data_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Problem(key, f"cannot be read: {error}")
            continue
        if found != (shape, *LAYOUT[name]):
            yield Problem(key, f"lays it out as {found} where the plan has {(shape, *LAYOUT[name])}")


def _others(place: Place, expected: Expected) -> tuple[list[str], int]:
    """Files that are not the store's, and how many belong to shards that are not committed."""
    strays, n_unfinished = [], 0
    unrecorded: tuple[str, ...] = () if expected.is_recorded else MADE_AT_THE_END
    if not expected.small:
        unrecorded += (*LAYOUT, *TABLE, "target", "base", POOL)
    for entry in place.files():
        array, _, rest = entry.key.partition("/")
        first = rest.removeprefix("c.").partition(".")[0]
        index = int(first) if first.isdigit() else -1
        if array in LAYOUT and 0 <= index < expected.plan.n_shards and entry.key == shard_key(array, index):
            n_unfinished += not expected.is_done[index] and array in COMPUTED
        elif entry.key != ROOT and entry.key not in expected.small and array not in unrecorded:
            strays.append(entry.key)
    return sorted(strays), n_unfinished


def _draw_again(
    directory: RunDirectory, expected: Expected, damaged: set[str], n_sampled: int, verdict: Verdict
) -> None:
    """Draw the references of some rows again, and compare their checksums."""
    plan, place = expected.plan, directory.store
    files = ("codes", "reference_checksum")
    usable = [
        index
        for index in np.flatnonzero(expected.is_done).tolist()
        if not {shard_key(name, index) for name in files} & damaged
    ]
    layouts = {f"{name}/{ROOT}" for name in (*files, POOL)} & damaged
    if layouts or not usable or any(key.startswith(f"{POOL}/") for key in damaged):
        verdict.notes.append("references are not drawn again: what they are drawn from is damaged or not there yet")
        return
    try:
        draw = open_references(plan, lambda: read_array(place, POOL))
    except UserError as error:
        verdict.notes.append(f"references are not drawn again: {error}")
        return
    generator, codec = np.random.default_rng(0), ShardCodec(place)
    n_shards = min(len(usable), max(1, n_sampled // 10)) if n_sampled else 0
    for index in sorted(generator.choice(usable, n_shards, replace=False).tolist()):
        shard = plan.shard(index)
        codes, checksums = (codec.decode(name, shard, place.read(shard_key(name, index))) for name in files)
        n_rows = min(len(shard), -(-n_sampled // n_shards))
        for row in sorted(generator.choice(len(shard), n_rows, replace=False).tolist()):
            verdict.n_sampled += 1
            if draw(codes[row : row + 1], shard.start + row).checksums()[0] != checksums[row]:
                name = read_names(place, [shard.start + row])[0]
                what = f"is not that of the references drawn now for row {shard.start + row}, {name!r}"
                verdict.problems.append(
                    Problem(shard_key("reference_checksum", index), what, index, (shard.start, shard.stop))
                )
