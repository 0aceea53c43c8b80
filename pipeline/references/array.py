"""References that the user made: an array in a npy or npz file, or in Zarr, read a shard at a time (npz: at once).

Accepted, for N rows of L positions: codes (N, R, L) or one-hot (N, R, 4, L), or (R, L) or (R, 4, L) for every row.
Codes are 0..3 = A, C, G, T and 4 = N. A one-hot array may hold any finite values, such as frequencies.
"""

import hashlib
import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from dlshap_core.sequences import UNKNOWN
from pipeline.config import limits
from pipeline.config.settings import absolute_path, expanded, setting
from pipeline.inputs.facts import InputFacts
from pipeline.messages.errors import UserError
from pipeline.messages.secrets import one_line
from pipeline.messages.words import counted
from pipeline.planning.plan import Plan
from pipeline.references.base import Draw, ResolvedReferences, ShardReferences
from pipeline.references.kind import Pool, ReferenceKind
from pipeline.store.reader import open_array

BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class Axes:
    """What the axes of an array mean.

    Attributes:
        by_row: whether each row has its own references.
        has_bases: whether the last but one axis is that of the bases; otherwise values are codes.
        n: references of each row.
    """

    by_row: bool
    has_bases: bool
    n: int


def open_file(path: str) -> Any:
    """The array in a file or folder, sliced like one of numpy's.

    Raises:
        UserError: it is not there, cannot be read, or holds several arrays.
    """
    place, where = expanded(path), f"references.path={path}"
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise UserError(f"{where} is no regular file; expected an array in npy, npz or Zarr")
    try:
        if place.is_dir():
            return open_array(place)
        if zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as archive:
                n_bytes = sum(each.file_size for each in archive.infolist())
            limits.require_held(n_bytes, limits.bytes_on_disk(place), where)
        else:
            limits.require_streamed(place.stat().st_size, place)
        found = np.load(place, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file (looked for {place.absolute()})") from None
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = one_line(error)
        raise UserError(f"{where} cannot be read as an array in npy, npz or Zarr: {reason}") from None
    if isinstance(found, np.ndarray):
        return found
    if len(found.files) != 1:
        raise UserError(f"{where} holds {len(found.files)} arrays ({', '.join(found.files[:5])}); expected one")
    return found[found.files[0]]


@dataclass
class Array(ReferenceKind):
    """References that the user made."""

    counts: ClassVar[str] = "as many references as its array holds"

    name: str = "array"
    n_shuffles: int | None = None
    path: str = setting(
        "npy, npz or Zarr: codes (N, R, L) or one-hot (N, R, 4, L); without N, the same references for all sequences",
        fingerprint="resolved",
        is_file=True,
        is_plain=True,
    )

    def require_files(self) -> None:
        open_file(self.path)

    def resolve(self, facts: InputFacts) -> ResolvedReferences:
        """Check the whole array against the input, and hash it. Raises UserError where they do not fit."""
        array, where = open_file(self.path), f"references.path={self.path}"
        limits.require_block(_item_bytes(array), f"{where}: each item of its first axis")
        layout = _layout(array, where, facts)
        digest, is_hard = hashlib.sha256(f"{array.shape} {array.dtype.str}\n".encode()), True
        for start, block in _blocks(array):
            _check(block, start, layout, where)
            is_hard = is_hard and (not layout.has_bases or _is_one_hot(block))
            digest.update(block.tobytes())
        plan = {"name": self.name, "path": absolute_path(self.path), "is_hard": is_hard, "layout": asdict(layout)}
        kind = ("one-hot" if is_hard else "shares of the bases") if layout.has_bases else "codes"
        whose = "each row's own" if layout.by_row else "the same for all rows"
        line = f"{where}: shape {tuple(array.shape)} read as {kind}, {counted(layout.n, 'reference')}, {whose}"
        return ResolvedReferences(layout.n, plan, {"array": digest.hexdigest()}, notes=(line,))

    @classmethod
    def load(cls, plan: Plan, pool: Pool) -> Draw:
        """Reads what belongs to a shard, as long as the file is as it was."""
        path = plan.references["path"]
        array, before, layout = open_file(path), _state(path), Axes(**plan.references["layout"])
        is_hard = plan.references["is_hard"]

        def draw(codes_NL: np.ndarray, first_row: int) -> ShardReferences:
            n_rows = len(codes_NL)
            values = np.asarray(array[first_row : first_row + n_rows] if layout.by_row else array[:][None])
            if _state(path) != before:
                raise UserError(f"references.path={path} was written to during the run; give the store another path")
            if not is_hard:
                values = np.array(values, dtype=np.float32)
            else:
                values = _to_codes(values) if layout.has_bases else values.astype(np.uint8)
            return ShardReferences(np.broadcast_to(values, (n_rows, *values.shape[1:])))

        return draw


def _state(path: str) -> tuple[int, ...]:
    """What changes when a file is written to or replaced (of a folder, when something in it is)."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _layout(array: Any, where: str, facts: InputFacts) -> Axes:
    shape, n_rows, length = tuple(array.shape), facts.n_rows, facts.length
    if array.dtype.kind in "biuf" and 0 not in shape and shape[-1:] == (length,):
        match shape[:-1]:
            case (rows, n, 4) if rows == n_rows:
                return Axes(True, True, n)
            case (n, 4) if n != n_rows or _are_shares(np.asarray(array[:1])):
                return Axes(False, True, n)
            case (rows, n) if rows == n_rows:
                return Axes(True, False, n)
            case (n,):
                return Axes(False, False, n)
    raise UserError(
        f"{where} holds an array of shape {shape} and type {array.dtype}; the input has {n_rows} usable rows of "
        f"{length} bases: expected codes ({n_rows}, R, {length}) or one-hot ({n_rows}, R, 4, {length}), "
        f"or (R, {length}) or (R, 4, {length}) for all rows"
    )


def _blocks(array: Any) -> Iterator[tuple[int, np.ndarray]]:
    """The array in parts along its first axis, each with the number of its first."""
    step = max(1, BLOCK_BYTES // _item_bytes(array))
    for start in range(0, array.shape[0], step):
        block = np.ascontiguousarray(array[start : start + step])
        yield start, block.view(np.uint8) if block.dtype == bool else block


def _item_bytes(array: Any) -> int:
    return int(math.prod(array.shape[1:]) * array.dtype.itemsize)


def _check(block: np.ndarray, start: int, layout: Axes, where: str) -> None:
    if layout.has_bases:
        is_bad, expected = ~np.isfinite(block), "expected finite values"
    else:
        is_bad = (block < 0) | (block > UNKNOWN) | (block % 1 != 0)
        expected = "expected codes: 0..3 for A, C, G, T, and 4 for N"
    if is_bad.any():
        place = tuple(int(index) for index in np.argwhere(is_bad)[0])
        raise UserError(f"{where} holds {block[place]} at {(start + place[0], *place[1:])}; {expected}")


def _is_one_hot(block: np.ndarray) -> bool:
    return bool(((block == 0) | (block == 1)).all() and (block.sum(axis=-2) <= 1).all())


def _are_shares(block: np.ndarray) -> bool:
    """Whether columns of four may be one-hot or frequencies; the codes of four sequences would sum to more."""
    return bool((block >= 0).all() and (block.sum(axis=-2, dtype=np.float64) < 1.001).all())


def _to_codes(one_hot: np.ndarray) -> np.ndarray:
    """(..., 4, L) zeros and ones to (..., L) codes; an all-zero column is an unknown base."""
    return np.where(one_hot.any(axis=-2), one_hot.argmax(axis=-2), UNKNOWN).astype(np.uint8)
