"""Reading: a finished store, and arrays of others' making."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.errors import NodeTypeValidationError
from zarr.storage import ObjectStore

from pipeline.commits import RunDirectory
from pipeline.errors import UserError
from pipeline.lookup import Region, rows_named, rows_overlapping
from pipeline.places import LocalPlace, ObjectPlace, Place
from pipeline.plan import Plan
from pipeline.store import TABLE, arrays_of, layout_of, read_attributes

if TYPE_CHECKING:
    import xarray

    from pipeline.training import AttributionDataset

BLOCK_BYTES = 32 << 20  # of a block of rows, all arrays of it together; never less than one inner chunk


@dataclass(frozen=True)
class Block:
    """Some rows of a store: their (B,) int64 indices, and (B, ...) values of each array that was asked for."""

    rows: np.ndarray
    values: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]


@dataclass(frozen=True)
class Store:
    """A store to read. `store["hypothetical"][10:20]` reads rows into numpy; the shapes are those of `store.LAYOUT`."""

    url: str
    group: zarr.Group
    n_done: int
    done: Sequence[int] | None = None  # indices of the shards that are there, None for all

    def __getitem__(self, name: str) -> zarr.Array:
        """One array, read lazily."""
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array

    def __len__(self) -> int:
        return int(self["codes"].shape[0])

    @property
    def attrs(self) -> dict[str, Any]:
        """What the store says of itself: config, fingerprint, versions, hardware, model, run, ..."""
        return self.group.attrs.asdict()

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return bool(self.attrs["complete"])

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The row table: source_row, name, chrom, start, end, strand, each (N,)."""
        return {name: np.asarray(self[name][:]) for name in TABLE}

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
        """(N,) bool: the rows whose codes are the reverse complement of their locus.

        Those are the ones on the minus strand with dataset.strand=apply, and FASTA records called chr1:100-200(-), as
        `bedtools getfasta -s` names what it has turned.
        """
        dataset = self.attrs.get("dataset", {})
        turned = dataset.get("strand") == "apply" or dataset.get("kind") == "fasta"
        return (self.rows["strand"] == "-") & (self.rows["start"] >= 0) & turned

    # --- which rows -------------------------------------------------------------------------------------------------

    @property
    def present(self) -> np.ndarray:
        """(N,) bool: the rows whose values are there; all of them once the store is complete."""
        there = np.full(len(self), self.done is None)
        for index in self.done or ():
            shard = self.plan.shard(index)
            there[shard.start : shard.stop] = True
        return there

    def rows_named(self, *names: str) -> np.ndarray:
        """The rows that have one of the names, ascending. Raises UserError naming what no row is called."""
        return rows_named(self.rows["name"], names)

    def rows_at(self, chrom: str, start: int, end: int) -> np.ndarray:
        """The rows whose window is exactly [start, end), 0-based, ascending; none if there are none."""
        rows = self.rows
        return np.flatnonzero((rows["chrom"] == chrom) & (rows["start"] == start) & (rows["end"] == end))

    def rows_overlapping(self, *regions: str | Region) -> np.ndarray:
        """The rows whose window shares a base with one of the regions ("chr1:100-200", 0-based half-open), ascending.

        Raises:
            UserError: a region cannot be read, no row lies on its chromosome, or the input had no loci.
        """
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
        return [str(label) for label in np.asarray(self["target"][:])]

    def blocks(
        self,
        names: Sequence[str],
        rows: np.ndarray | None = None,
        target: int | None = None,
        window: slice | None = None,
    ) -> Iterator[Block]:
        """Arrays row by row, a bounded number of rows at a time; nothing is read that no row asked for lies near.

        Args:
            names: of arrays that have a row for each sequence: those of `store.LAYOUT`, and of the model's further
                inputs (`arg_0`, ...).
            rows: (M,) ascending indices; all rows if not given.
            target: index on the target axis, which is then left out; all targets if not given.
            window: positions; all if not given.

        Raises:
            UserError: a file is damaged.
        """
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        kept = {name: _kept(self._layout[name][0][1:], target, window) for name in names}
        chunk = int(self["codes"].chunks[0])
        for start, stop in _runs(chosen // chunk, max(1, BLOCK_BYTES // (chunk * self._row_bytes(names, target)))):
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
        wanted, place = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if not len(wanted):
            return {name: np.asarray(self[name][:0]) for name in names}
        found = list(self.blocks(names, wanted, target))
        return {name: np.concatenate([block[name] for block in found])[place] for name in names}

    def _read(self, name: str, part: tuple[Any, ...]) -> np.ndarray:
        """Part of an array. Raises UserError where its bytes are damaged."""
        try:
            return np.asarray(self[name][part])
        except (ValueError, RuntimeError) as error:  # of the codecs, whose checksums do not fit
            raise UserError(
                f"{self.url}: {name} is damaged in rows {part[0].start} to {part[0].stop - 1}; "
                f"`dlshap verify {self.url}` names what is, with --repair its run makes that anew"
            ) from error

    def _row_bytes(self, names: Sequence[str], target: int | None) -> int:
        """Bytes of one row of all of these arrays together."""
        total = 0
        for name in names:
            n_values = int(np.prod(self[name].shape[1:]))
            dims, dtype = self._layout[name]
            if target is not None and "target" in dims:
                n_values //= len(self.targets)
            total += n_values * np.dtype(dtype).itemsize
        return max(1, total)

    # --- other libraries --------------------------------------------------------------------------------------------

    def to_xarray(self) -> "xarray.Dataset":
        """The store as an xarray Dataset that reads what is asked of it; the row table is coordinates of `sequence`.

        Raises:
            ModuleNotFoundError: xarray is not installed (`pip install 'dlshap[exports]'`).
        """
        import xarray

        dataset = xarray.open_zarr(self.group.store, consolidated=False, chunks=None)
        return dataset[[*arrays_of(self.plan), *TABLE]].set_coords([*TABLE])

    def to_torch(
        self, rows: np.ndarray | None = None, target: int | None = None, window: int | None = None
    ) -> "AttributionDataset":
        """A torch Dataset of the rows, for training on attributions; see `pipeline.training`."""
        from pipeline.training import AttributionDataset

        return AttributionDataset(self, rows, target, window)

    def digest(self) -> str:
        """SHA-256 over the values of every array: equal for equal values, however they came about."""
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
    """[start, stop) of runs of rows whose chunks follow each other without a gap, of at most `most` chunks.

    Args:
        chunks: (M,) the chunk that each row lies in, ascending.
        most: chunks in a run.
    """
    numbers, starts = np.unique(chunks, return_index=True)
    begin = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or at - begin == most or numbers[at] != numbers[at - 1] + 1:
            yield int(starts[begin]), int(starts[at]) if at < len(numbers) else len(chunks)
            begin = at


def plan_of(attributes: Mapping[str, Any]) -> Plan:
    """The plan that a store's attributes hold."""
    return Plan(**attributes["plan"], fingerprint=attributes["fingerprint"])


def open_store(path: str | Path, allow_incomplete: bool = False, options: Mapping[str, str] | None = None) -> Store:
    """Open a store for reading.

    Args:
        path: of the store, or its url on an object store.
        allow_incomplete: open a store whose run has not finished; rows that are not there yet read as NaN.
        options: of the object store, such as endpoint and region.

    Raises:
        UserError: nothing or something else lies there, or the store is not complete.
    """
    directory = RunDirectory(str(path), options)
    attributes = read_attributes(directory.store)
    if attributes is None:
        raise UserError(f"{directory.url} does not exist")
    total = plan_of(attributes).n_shards
    done = None if attributes["complete"] else directory.done_indices()
    n_done = total if done is None else len(done)
    if not attributes["complete"] and not allow_incomplete:
        raise UserError(
            f"{directory.url} is not complete: {n_done} of {total} shards are there; finish it with the command that "
            f"began it, or open it with allow_incomplete=True"
        )
    group = zarr.open_group(_zarr_store(directory.store), mode="r", zarr_format=3)
    return Store(directory.url, group, n_done, done)


def _zarr_store(place: Place) -> Any:
    """The place as Zarr's own."""
    if isinstance(place, LocalPlace):
        return place.path
    assert isinstance(place, ObjectPlace)
    return ObjectStore(place.store, read_only=True)


def open_array(path: Path) -> zarr.Array:
    """An array in a Zarr folder of either format.

    Raises:
        ValueError: it is no Zarr array.
    """
    try:
        return zarr.open_array(path, mode="r")
    except (FileNotFoundError, NodeTypeValidationError) as error:
        raise ValueError(f"no Zarr array lies there ({type(error).__name__})") from error
