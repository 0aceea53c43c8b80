"""Reading: a finished store, and arrays of others' making."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import NodeTypeValidationError
from zarr.storage import ObjectStore

from pipeline.commits import RunDirectory
from pipeline.errors import UserError
from pipeline.places import LocalPlace, ObjectPlace, Place
from pipeline.plan import Plan
from pipeline.store import FORMAT_VERSION, TABLE, arrays_of, read_attributes


@dataclass(frozen=True)
class Store:
    """A store to read. `store["hypothetical"][10:20]` reads rows into numpy; the shapes are those of `LAYOUT`."""

    url: str
    group: zarr.Group
    n_done: int

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
    if attributes["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{directory.url} was written by a newer version (format {attributes['format_version']}); update dlshap"
        )
    total = plan_of(attributes).n_shards
    n_done = total if attributes["complete"] else len(directory.done_indices())
    if not attributes["complete"] and not allow_incomplete:
        raise UserError(
            f"{directory.url} is not complete: {n_done} of {total} shards are there; finish it with the command that "
            f"began it, or open it with allow_incomplete=True"
        )
    group = zarr.open_group(_zarr_store(directory.store), mode="r", zarr_format=3)
    return Store(directory.url, group, n_done)


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
