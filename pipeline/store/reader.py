"""Reading a store, and Zarr arrays that other programs made."""

import hashlib
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.errors import NodeTypeValidationError

from pipeline.config import limits
from pipeline.messages.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.store.attributes import plan_of, read_attributes
from pipeline.store.backends.base import Backend
from pipeline.store.backends.zarr_folder import FolderStore
from pipeline.store.bounded import bounded, few_at_once
from pipeline.store.rows import Region, rows_named, rows_overlapping
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import TABLE, array_shapes, arrays_of, layout_of, most_bytes, require_values
from pipeline.store.unpacking import bound
from pipeline.store.windows import centred
from pipeline.store.zarr_private import numcodecs_of

if TYPE_CHECKING:
    import xarray

    from pipeline.store.torch_dataset import AttributionDataset

CHUNK_RATIO, CHUNK_BYTES = 4, 1 << 16  # what a chunk may unpack to: filters may make its values wider
MOST_CHUNKS = 1 << 16  # of a row or a shard of an array that another program made
BLOCK_BYTES = 32 << 20  # of a block of rows, all arrays of it together; never less than one inner chunk
MOST_OF_A_ROW = 1 << 30  # bytes, all arrays of a block together; one inner chunk may have more rows than fit
MANY_ROWS = 10**5
_TABLE_BYTES = 3 * 8 + 3 * 16  # of a row: numbers and short texts


@dataclass(frozen=True)
class Block:
    """Some rows of a store: their (B,) int64 indices, and (B, ...) values of each array that was asked for."""

    rows: np.ndarray
    values: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]


@dataclass(frozen=True)
class Store:
    """A store to read. `store["hypothetical"][10:20]` reads rows; shapes are in `pipeline.store.schema.LAYOUT`."""

    url: str
    group: zarr.Group
    n_done: int
    done: Sequence[int] | None = None  # indices of the finished shards, None for all
    n_bytes: int = 0  # of the files of the sequences, where there are many rows

    def __getitem__(self, name: str) -> zarr.Array:
        """One array, read lazily."""
        array = self.group[name]
        assert isinstance(array, zarr.Array)  # `open_store` has looked
        return bounded(array, name)

    def __len__(self) -> int:
        return int(self["codes"].shape[0])

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes of the store, such as config, fingerprint, versions, hardware, model and run."""
        return self.group.attrs.asdict()

    @property
    def complete(self) -> bool:
        """Whether every row is finished."""
        return bool(self.attrs["complete"])

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The row table, with (N,) values of each of source_row, name, chrom, start, end and strand."""
        whole = (slice(0, len(self)),)
        return {name: self._texts(name) if kind is str else self._read(name, whole) for name, kind in TABLE.items()}

    @property
    def codes(self) -> zarr.Array:
        """(N, L) uint8."""
        return self["codes"]

    @property
    def attribution(self) -> zarr.Array:
        """(N, T, L) float32."""
        return self["attribution"]

    @property
    def hypothetical(self) -> zarr.Array:
        """(N, T, 4, L) float32."""
        return self["hypothetical"]

    @property
    def prediction(self) -> zarr.Array:
        """(N, T) float32."""
        return self["prediction"]

    @property
    def reference_prediction(self) -> zarr.Array:
        """(N, T, R) float32."""
        return self["reference_prediction"]

    @property
    def convergence_delta(self) -> zarr.Array:
        """(N, T, R) float32."""
        return self["convergence_delta"]

    @property
    def plan(self) -> Plan:
        """What the run that filled the store was to do."""
        return plan_of(self.attrs)

    @cached_property
    def on_minus_strand(self) -> np.ndarray:
        """(N,) bool, true for the rows whose codes are the reverse complement of their locus.

        Those are the ones on the minus strand with dataset.strand=apply, and FASTA records called chr1:100-200(-), as
        `bedtools getfasta -s` names what it has turned.
        """
        dataset = self.attrs.get("dataset", {})
        turned = dataset.get("strand") == "apply" or dataset.get("kind") == "fasta"
        return (self.rows["strand"] == "-") & (self.rows["start"] >= 0) & turned

    # --- which rows -------------------------------------------------------------------------------------------------

    @property
    def present(self) -> np.ndarray:
        """(N,) bool, true for the finished rows; for all of them once the store is complete."""
        found, plan = np.full(len(self), self.done is None), self.plan
        for shard in map(plan.shard, self.done or ()):
            found[shard.start : shard.stop] = True
        return found

    def rows_named(self, *names: str) -> np.ndarray:
        """The rows that have one of the names, ascending. Raises UserError naming what no row is called."""
        return rows_named(self.rows["name"], names)

    def rows_at(self, chrom: str, start: int, end: int) -> np.ndarray:
        """The rows whose window is exactly [start, end), 0-based, ascending; possibly none."""
        rows = self.rows
        return np.flatnonzero((rows["chrom"] == chrom) & (rows["start"] == start) & (rows["end"] == end))

    def rows_overlapping(self, *regions: str | Region) -> np.ndarray:
        """The rows whose window shares a base with a region ("chr1:100-200", 0-based half-open); see `rows.py`."""
        parsed = [Region.parse(region) if isinstance(region, str) else region for region in regions]
        return rows_overlapping(self.rows["chrom"], self.rows["start"], self.rows["end"], parsed)

    # --- reading rows -----------------------------------------------------------------------------------------------

    @cached_property
    def _layout(self) -> dict[str, tuple[tuple[str, ...], str]]:
        """Dimensions and type of each array that has rows."""
        return layout_of(self.plan)

    @cached_property
    def targets(self) -> list[str]:
        """The labels of the target axis: which outputs of the model were attributed."""
        return [str(label) for label in self._read("target", (slice(0, len(self.plan.targets)),))]

    @property
    def target_names(self) -> list[str]:
        """What each target is, in words: log counts, output 3, ..."""
        found = self.attrs.get("target_names", [])
        return found if len(found) == len(self.targets) else [f"target {label}" for label in self.targets]

    def head_of(self, target: int) -> str:
        """The head that a target is of; of a contrast of several heads all of them, with commas."""
        found = self.attrs.get("target_heads", [])
        return str(found[target] if len(found) == len(self.targets) else self.attrs.get("head", "none"))

    def blocks(
        self,
        names: Sequence[str],
        rows: np.ndarray | None = None,
        target: int | None = None,
        window: slice | None = None,
    ) -> Iterator[Block]:
        """Arrays row by row, a bounded number of rows at a time; chunks without a row that was asked for are not read.

        Args:
            names: of arrays with a row for each sequence: `pipeline.store.schema.LAYOUT` and extra inputs, `arg_0`, ...
            rows: (M,) ascending indices; all rows if not given.
            target: index on the target axis, which is then left out; all targets if not given.
            window: positions; all if not given.

        Raises:
            UserError: a file is damaged.
        """
        chosen, n_bytes = (
            np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64),
            self._row_bytes(names, target),
        )
        if n_bytes > MOST_OF_A_ROW:
            raise UserError(
                f"{self.url}: {' and '.join(names)} have {n_bytes / 10**9:.3g} GB in each row; read one target at once"
            )
        kept = {name: _kept(self._layout[name][0][1:], target, window) for name in names}
        chunk = min(int(self["codes"].chunks[0]), max(1, MOST_OF_A_ROW // n_bytes))
        for start, stop in _runs(chosen // chunk, max(1, BLOCK_BYTES // (chunk * n_bytes))):
            some = chosen[start:stop]
            first = int(some[0])
            values = {
                name: self._read(name, (slice(first, int(some[-1]) + 1), *kept[name]))[some - first] for name in names
            }
            yield Block(some, values)

    def take(
        self, names: Sequence[str], rows: Sequence[int] | np.ndarray, target: int | None = None
    ) -> dict[str, np.ndarray]:
        """Arrays of some rows, in any order and as often as they are named: (len(rows), ...) each. See `blocks`."""
        wanted, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if not len(wanted):
            return {name: np.asarray(self[name][:0]) for name in names}
        found = list(self.blocks(names, wanted, target))
        return {name: np.concatenate([block[name] for block in found])[inverse] for name in names}

    def of_variants(self, name: str, variants: slice, target: int) -> np.ndarray:
        """(V, ...): some variants of an array that has these in the place of rows, of one target.

        Raises:
            UserError: a file is damaged.
        """
        return self._read(name, (variants, target))

    def _read(self, name: str, part: tuple[Any, ...]) -> np.ndarray:
        """Part of an array. Raises UserError where its bytes are damaged."""
        try:
            array = self[name]
            with few_at_once(array):
                found = np.asarray(array[part])
            require_values(name, found)
            return found
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of Zarr and the codecs, whose checksums do not fit
            raise UserError(
                f"{self.url}: {name} is damaged in rows {part[0].start} to {part[0].stop - 1}; "
                f"`dlshap verify {shlex.quote(self.url)}` names what is damaged; with --repair it removes that, and "
                "the command that made the store makes it again"
            ) from error

    def _texts(self, name: str) -> np.ndarray:
        """A whole column of texts, chunk by chunk: equal ones take no room in a file."""
        step, n_bytes, found = int(self[name].chunks[0]), 0, []
        for start in range(0, len(self), step):
            found.append(self._read(name, (slice(start, min(start + step, len(self))),)))
            n_bytes += 4 * int(np.strings.str_len(found[-1]).sum())  # at most, of a character
            limits.require_held(n_bytes, self.n_bytes, f"{self.url}: {name}")
        return np.concatenate(found)

    def _row_bytes(self, names: Sequence[str], target: int | None) -> int:
        """Bytes of one row of all of these arrays together."""
        total = 0
        for name in names:
            n_kept = len(self.targets) if target is not None and "target" in self._layout[name][0] else 1
            total += self[name].dtype.itemsize * math.prod(self[name].shape[1:]) // n_kept
        return max(1, total)

    # --- other libraries --------------------------------------------------------------------------------------------

    def to_xarray(self) -> "xarray.Dataset":
        """A lazy xarray Dataset, with the row table as coordinates of `sequence`; needs the extra `dlshap[exports]`."""
        import xarray

        source = xarray.backends.ZarrStore(self.group, mode="r")
        labels = {name for dims, _ in self._layout.values() for name in dims}
        wanted = labels.union(arrays_of(self.plan), TABLE)
        for name, array in source.members.items():
            if name in wanted and isinstance(array, zarr.Array):
                bounded(array, name)  # of the very objects that are read
        dataset = xarray.open_dataset(source, drop_variables=set(source.members) - wanted)
        return dataset.set_coords([*TABLE])

    def to_torch(
        self, rows: np.ndarray | None = None, target: int | None = None, window: int | None = None
    ) -> "AttributionDataset":
        """A torch Dataset of the rows, for training on attributions; see `pipeline.store.torch_dataset`.

        Args:
            rows: (M,) indices, in the order of the dataset; all finished rows if not given.
            target: index on the target axis; all targets if not given.
            window: bases around the centre; the whole sequence if not given.

        Raises:
            UserError: the window is longer than the sequences, a row is not in the store, or there is no such target.
        """
        from pipeline.store.torch_dataset import AttributionDataset

        n_rows, length = self.codes.shape
        chosen = np.flatnonzero(self.present) if rows is None else np.asarray(rows, dtype=np.int64)
        positions = slice(0, length) if window is None else centred(length, window)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < n_rows:
            raise UserError(f"rows {chosen.min()} to {chosen.max()} of a store of {n_rows} rows")
        if target is not None and not 0 <= target < len(self.targets):
            raise UserError(f"target {target} of {len(self.targets)}: an index on the target axis is expected")
        return AttributionDataset(partial(self.take, target=target), chosen, positions)

    def digest(self) -> str:
        """SHA-256 over the values of every array: equal for equal values."""
        total = hashlib.sha256()
        for name in [*arrays_of(self.plan), *TABLE]:
            array, digest = self[name], hashlib.sha256()
            for start in range(0, array.shape[0], (array.shards or array.chunks)[0]):
                values = np.asarray(array[start : start + (array.shards or array.chunks)[0]])
                digest.update("\0".join(values).encode() if TABLE.get(name) is str else values.tobytes())
            total.update(f"{name} {array.shape} {digest.hexdigest()}\n".encode())
        return total.hexdigest()

    def __repr__(self) -> str:
        n_rows, n_targets, _, length = self.hypothetical.shape
        state = "complete" if self.complete else f"not complete, {self.n_done} shards done"
        return f"<dlshap store {self.url}: {n_rows} sequences of {length} bp, {n_targets} targets, {state}>"


def _kept(dims: Sequence[str], target: int | None, window: slice | None) -> tuple[Any, ...]:
    """What is read of the axes behind the first."""
    picks = {"target": slice(None) if target is None else target, "position": slice(None) if window is None else window}
    return tuple(picks.get(dim, slice(None)) for dim in dims)


def _runs(chunks: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of runs of rows whose chunks, (M,) ascending, follow each other without a gap, `most` at most."""
    numbers, starts = np.unique(chunks, return_index=True)
    begin = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or at - begin == most or numbers[at] != numbers[at - 1] + 1:
            yield int(starts[begin]), int(starts[at]) if at < len(numbers) else len(chunks)
            begin = at


def open_store(path: str | Path, allow_incomplete: bool = False, options: Mapping[str, str] | None = None) -> Store:
    """Open a store for reading.

    Args:
        path: or URL on an object store.
        allow_incomplete: open a store whose run has not finished; unfinished rows read as NaN.
        options: of the object store, such as endpoint and region.

    Raises:
        UserError: nothing or something else exists at the path, or the store is not complete.
    """
    directory = RunDirectory(str(path), options)
    attributes = read_attributes(directory.store)
    if attributes is None:
        raise UserError(f"{directory.url} does not exist")
    plan = plan_of(attributes)
    total = plan.n_shards
    done = None if attributes["complete"] else directory.done_indices()
    n_done = total if done is None else len(done)
    if not attributes["complete"] and not allow_incomplete:
        raise UserError(
            f"{directory.url} is not complete: {n_done} of {total} shards are done; finish it with the command that "
            f"began it, or read the finished rows: --allow-incomplete, in Python allow_incomplete=True"
        )
    try:
        group = zarr.open_group(directory.store.zarr_store(most_bytes(plan)), mode="r", zarr_format=3)
        for problem in _wrong_arrays(group, plan, directory.store):
            raise ValueError(problem)
        n_bytes = sum(e.n_bytes for e in directory.store.files("codes/c.")) if plan.n_rows > MANY_ROWS else 0
        limits.require_held(plan.n_rows * _TABLE_BYTES, n_bytes, "its row table")
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever Zarr makes of metadata that is none
        raise UserError(
            f"{directory.url} is damaged: {error}; `dlshap verify {shlex.quote(directory.url)}` names what is damaged; "
            "with --repair it removes that, and the command that made the store makes it again"
        ) from error
    return Store(directory.url, group, n_done, done, n_bytes)


def _wrong_arrays(group: zarr.Group, plan: Plan, backend: Backend) -> Iterator[str]:
    """Arrays that are not laid out as the plan says, or of more rows than there are files for."""
    shapes, layout = array_shapes(plan), layout_of(plan)
    columns = {**dict.fromkeys(TABLE, plan.n_rows), "target": len(plan.targets)}
    for name in (*layout, *columns):
        array, shape = group[name], shapes[name] if name in layout else (columns[name],)
        if not isinstance(array, zarr.Array) or array.shape != shape:
            yield f"{name} is {array}; expected an array of shape {shape}, as the plan says"
            return
        kinds = np.dtype(layout[name][1]).kind if name in layout else "i" if TABLE.get(name) is np.int64 else "OT"
        if array.dtype.kind not in kinds:
            yield f"{name} has values of type {array.dtype}"
        bounded(array, name)
        rows = plan.rows_per_shard * shape[0] // plan.n_rows  # half as many of variants
        if name in layout and array.shards != (rows, *shape[1:]):
            yield f"{name} is in shards of {array.shards}; expected {(rows, *shape[1:])}, as the plan says"
        if name == "source_row" and array.nchunks > sum(1 for _ in backend.files(f"{name}/c.")):
            yield f"{name} is cut short: {array.nchunks} files are expected"


def open_array(path: Path) -> zarr.Array:
    """An array in a Zarr folder of either format; ValueError where there is none, UserError where it is beyond the
    limits."""
    try:
        array = zarr.open_array(FolderStore(path, read_only=True, most=sys.maxsize), mode="r")
    except (FileNotFoundError, NodeTypeValidationError) as error:
        raise ValueError(f"no Zarr array lies there ({type(error).__name__})") from error
    _require_bounded(array, path)
    return array


def _require_bounded(array: zarr.Array, path: Path) -> None:
    item_bytes, where = array.dtype.itemsize, f"{path}, of shape {array.shape}"
    chunk_bytes = math.prod(array.chunks) * item_bytes
    limits.require_block(chunk_bytes, f"{where}: each chunk, of shape {array.chunks},")
    in_row = math.prod(-(-size // chunk) for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True))
    in_shard = math.prod(array.shards or array.chunks) // math.prod(array.chunks)
    if max(in_row, in_shard) > MOST_CHUNKS:
        raise UserError(
            f"{where} is in chunks of shape {array.chunks}, {max(in_row, in_shard)} for a row or a shard; expected at "
            f"most {MOST_CHUNKS}: write it in larger ones"
        )
    limits.require_block(array.chunks[0] * math.prod(array.shape[1:]) * item_bytes, f"{where}: each row of its chunks")
    limits.require_streamed(math.prod(array.shape) * item_bytes, path)
    for codec in numcodecs_of(array):
        bound(codec, CHUNK_RATIO * chunk_bytes + CHUNK_BYTES, where)
