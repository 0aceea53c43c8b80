"""Reading every byte of a store again, and comparing it with what was committed (expected.py says what that is)."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.commits import FileRecord, RunDirectory
from pipeline.errors import UserError
from pipeline.expected import Expected, compare, expectations
from pipeline.places import LocalPlace, Place
from pipeline.plan import Plan
from pipeline.references import open_references
from pipeline.shards import Shard
from pipeline.store import (
    MADE_AT_THE_END,
    POOL,
    ROOT,
    ShardCodec,
    arrays_of,
    computed,
    layout_of,
    read_array,
    read_names,
    shapes,
    shard_key,
    shard_sizes,
)
from pipeline.verdict import Problem, Verdict

READERS = {True: 4, False: 32}  # files read at a time, on a disk and on an object store
FILES_AT_A_TIME = 256
N_SAMPLED = 100  # rows whose references are drawn again
ROWS_OF_A_SHARD = 10  # of them, where there are shards enough


def verify(
    directory: RunDirectory, n_sampled: int = N_SAMPLED, progress: Callable[[int], None] = lambda n_files: None
) -> Verdict:
    """Read every byte of a store.

    Args:
        directory: of the run that fills or filled the store.
        n_sampled: rows whose references are drawn again and compared with their checksums.
        progress: told of every so many files.

    Raises:
        UserError: no store lies there, or one that is not complete and whose protocol files are gone.
    """
    verdict = Verdict(directory.url)
    expected = expectations(directory, verdict)
    if expected is None:
        return verdict
    plan = expected.plan
    verdict.n_shards, verdict.n_done = plan.n_shards, int(expected.is_done.sum())
    verdict.problems += _read_all(directory.store, expected, verdict, progress)
    damaged = {problem.key for problem in verdict.problems}
    verdict.problems += _other_shapes(directory.store, expected, damaged)
    verdict.strays, unfinished = _others(directory.store, expected)
    if unfinished:
        verdict.notes.append(f"{unfinished} files belong to shards that are not committed yet")
    _draw_again(directory, expected, damaged, n_sampled, verdict)
    return verdict


def wrong_sizes(place: Place, plan: Plan) -> list[str]:
    """Files of the shards of a complete store that are not there, or of another size than when it was completed."""
    try:
        wrong = shard_sizes(place, plan) != read_array(place, "shard_bytes")
    except ValueError as error:
        return [str(error)]
    names, layout = arrays_of(plan), layout_of(plan)
    return [shard_key(names[column], int(index), layout) for index, column in np.argwhere(wrong)]


# --- what is there --------------------------------------------------------------------------------------------------


def _read_all(place: Place, expected: Expected, verdict: Verdict, progress: Callable[[int], None]) -> Iterator[Problem]:
    """Every file that should be there."""
    known = {problem.key for problem in verdict.problems}
    codec = ShardCodec(place, expected.layout)
    if not expected.small:
        yield from _undecodable(place, expected)

    def look(task: tuple[str, FileRecord, int | None]) -> tuple[Problem | None, FileRecord | None]:
        key, record, index = task
        what, found = compare(place, key, record)
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
    layout = layout_of(expected.plan)
    for index in np.flatnonzero(expected.is_done).tolist():
        for column, name in enumerate(layout):
            record = FileRecord(int(expected.n_bytes[index, column]), int(expected.crc32[index, column]))
            yield shard_key(name, index, layout), record, index


def _own_checksums(place: Place, codec: ShardCodec, key: str, shard: Shard) -> str | None:
    """What is wrong with the file of a shard of which nobody says what it should be."""
    try:
        codec.decode(key.partition("/")[0], shard, place.read(key))
    except (ValueError, OSError) as error:
        return f"cannot be decoded: {error}"
    return None


def _undecodable(place: Place, expected: Expected) -> Iterator[Problem]:
    """Columns and labels that cannot be read: it is not known which of their files are damaged."""
    layout = expected.layout
    for name in sorted({*layout} - {*arrays_of(expected.plan), *MADE_AT_THE_END}):
        try:
            read_array(place, name)
        except (ValueError, OSError) as error:
            chunks = zip(layout[name]["shape"], layout[name]["chunk_grid"]["configuration"]["chunk_shape"], strict=True)
            grid = itertools.product(*(range(-(-size // chunk)) for size, chunk in chunks))
            for key in (ROOT, *("c." + ".".join(map(str, index)) for index in grid)):
                yield Problem(f"{name}/{key}", f"or another file of the array is damaged: {error}")


def _moved(found: FileRecord | None, expected: Expected) -> str | None:
    """Whether a file holds what belongs into another."""
    if found is None or found.n_bytes == 0:
        return None
    same = np.argwhere((expected.crc32 == found.crc32) & (expected.n_bytes == found.n_bytes))
    if not len(same):
        return None
    index, column = same[0].tolist()
    return f"holds the bytes of {shard_key(arrays_of(expected.plan)[column], index, layout_of(expected.plan))}"


def _other_shapes(place: Place, expected: Expected, damaged: Iterable[str]) -> Iterator[Problem]:
    """Arrays that are laid out otherwise than the plan, or the group's own file, says."""
    arrays = layout_of(expected.plan)
    planned = {name: (shape, *arrays[name]) for name, shape in shapes(expected.plan).items()}
    for name in {**planned, **expected.layout}:
        key = f"{name}/{ROOT}"
        if key in damaged:
            continue
        try:
            metadata = json.loads(place.read(key))
            found = tuple(metadata["shape"]), tuple(metadata["dimension_names"]), metadata["data_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Problem(key, f"cannot be read: {error}")
            continue
        if found != planned.get(name, found):
            yield Problem(key, f"lays it out as {found} where the plan has {planned[name]}")
        elif metadata != expected.layout.get(name, metadata):
            yield Problem(key, f"says something else of it than the group's own {ROOT}")


def _others(place: Place, expected: Expected) -> tuple[list[str], int]:
    """Files that are not the store's, and how many belong to shards that are not committed."""
    strays, n_unfinished, arrays = [], 0, layout_of(expected.plan)
    unrecorded: tuple[str, ...] = () if expected.is_recorded else MADE_AT_THE_END
    if not expected.small:
        unrecorded += tuple(expected.layout)
    for entry in place.files():
        array, _, rest = entry.key.partition("/")
        first = rest.removeprefix("c.").partition(".")[0]
        index = int(first) if first.isdigit() else -1
        if array in arrays and 0 <= index < expected.plan.n_shards and entry.key == shard_key(array, index, arrays):
            n_unfinished += not expected.is_done[index] and array in computed(expected.plan)
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
    codec = ShardCodec(place)
    for index, rows in _sample(plan, usable, n_sampled):
        shard = plan.shard(index)
        codes, checksums = (codec.decode(name, shard, place.read(shard_key(name, index))) for name in files)
        for row in rows:
            verdict.n_sampled += 1
            first = row - row % plan.rows_per_group
            drawn = draw(codes[first : first + plan.rows_per_group], shard.start + first)
            if drawn.checksums()[row - first] != checksums[row]:
                name = read_names(place, [shard.start + row])[0]
                what = f"is not that of the references drawn now for row {shard.start + row}, {name!r}"
                verdict.problems.append(
                    Problem(shard_key("reference_checksum", index), what, index, (shard.start, shard.stop))
                )


def _sample(plan: Plan, shards: Sequence[int], n: int) -> list[tuple[int, list[int]]]:
    """n rows, about ten of a shard: shards and the numbers of the rows within each; the same ones every time."""
    generator, chosen = np.random.default_rng(0), []
    left, shuffled = n, generator.permutation(np.array(shards)).tolist()
    for i, index in enumerate(shuffled):
        size, others = len(plan.shard(index)), len(shuffled) - i - 1
        wanted = max(ROWS_OF_A_SHARD, left - others * plan.rows_per_shard)
        rows = sorted(generator.choice(size, min(size, left, wanted), replace=False).tolist())
        left -= len(rows)
        if not rows:
            break
        chosen.append((index, rows))
    return sorted(chosen)
