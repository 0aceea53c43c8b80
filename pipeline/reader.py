"""Reading: a finished store, and arrays of others' making."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import NodeTypeValidationError

from pipeline.commits import RunDirectory
from pipeline.errors import UserError
from pipeline.shards import n_shards
from pipeline.store import FORMAT_VERSION, TABLE, member, open_group, read_attributes


@dataclass(frozen=True)
class Store:
    """A store to read. `store["hypothetical"][10:20]` reads rows into numpy; the shapes are those of `LAYOUT`."""

    path: Path
    group: zarr.Group
    n_done: int

    def __getitem__(self, name: str) -> zarr.Array:
        """One array, read lazily."""
        return member(self.group, name)

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

    def __repr__(self) -> str:
        n_rows, n_targets, _, length = self.hypothetical.shape
        state = "complete" if self.complete else f"not complete, {self.n_done} shards done"
        return f"<dlshap store {self.path}: {n_rows} sequences of {length} bp, {n_targets} targets, {state}>"


def open_store(path: str | os.PathLike[str], allow_incomplete: bool = False) -> Store:
    """Open a store for reading.

    Args:
        path: of the store.
        allow_incomplete: open a store whose run has not finished; rows that are not there yet read as NaN.

    Raises:
        UserError: nothing or something else lies there, or the store is not complete.
    """
    place = Path(path)
    attributes = read_attributes(place)
    if attributes is None:
        raise UserError(f"{place} does not exist")
    if attributes["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{place} was written by a newer version (format {attributes['format_version']}); update dlshap"
        )
    group = open_group(place, "r")
    total = n_shards(attributes["plan"]["n_rows"], attributes["plan"]["rows_per_shard"])
    n_done = total if attributes.get("complete") else len(RunDirectory(place).done_indices())
    if not attributes.get("complete") and not allow_incomplete:
        raise UserError(
            f"{place} is not complete: {n_done} of {total} shards are there; finish it with the command that began it, "
            f"or open it with allow_incomplete=True"
        )
    return Store(place, group, n_done)


def open_array(path: Path) -> zarr.Array:
    """An array in a Zarr folder of either format.

    Raises:
        ValueError: it is no Zarr array.
    """
    try:
        return zarr.open_array(path, mode="r")
    except (FileNotFoundError, NodeTypeValidationError) as error:
        raise ValueError(f"no Zarr array lies there ({type(error).__name__})") from error
