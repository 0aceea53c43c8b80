"""The probe: predictions and attributions of a few rows, kept in the plan and computed again by all who go on.

It sees what no hash does: a variable of the environment, a data file, a patched function, another library, a machine
that computes wrongly. Its rows are the first and the last group of the run, each with its first references, on every
fold and strand that the run attributes.
"""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlshap_core.errors import is_out_of_memory
from pipeline.execution.device import device_kind
from pipeline.execution.ensemble import Folds, Mean, attribute_rows
from pipeline.messages.errors import DeviceBrokenError, RunError, ShardError, UserError
from pipeline.messages.secrets import one_line
from pipeline.planning.extra_inputs import ExtraInputs, is_extra_input
from pipeline.planning.number_types import NUMBER_TYPES
from pipeline.planning.plan import Plan
from pipeline.references.base import Draw, ShardReferences
from pipeline.store.codec import ShardCodec
from pipeline.store.schema import input_arrays, layout_of
from pipeline.store.template import StagedStore

N_REFERENCES = 2  # of each row
MAX_VALUES = 4096  # of each array that the plan keeps; the hash is over all of them
LAST_BITS = 1e-4  # of the largest value: the error calls a smaller difference one of last bits
NAMES = ("prediction", "reference_prediction", "hypothetical")


class ProbeDamaged(UserError):
    """The rows of a probe cannot be read from the store."""


class ProbeFailed(ShardError):
    """The model fails on the first row, which it took when the run was prepared, or memory is short."""


class ValuesDiffer(RunError):
    """The model gives other values than when the run was prepared."""


@dataclass(frozen=True)
class ProbeRows:
    """A group of rows of the input.

    Attributes:
        start: the first one's number in the store.
        codes: (n, L) uint8.
        extra_inputs: of the model, n rows each.
    """

    start: int
    codes: np.ndarray
    extra_inputs: ExtraInputs = ()


def take(folds: Folds, plan: Plan, draw: Draw, rows: Sequence[ProbeRows], kind: str) -> dict[str, Any]:
    """The probe of a run, plain values.

    Args:
        folds, plan: of the run; plan.device is where to compute.
        draw: gives the references of some rows.
        rows: the first and the last group.
        kind: of the device; see device.py.
    """
    parts = [_compute(folds, plan, draw, rows[0])]
    for group in rows[1:]:
        try:
            parts.append(_compute(folds, plan, draw, group))
        except Exception as error:  # a row that the model fails on is left to its shard, which names it
            if isinstance(error, DeviceBrokenError) or is_out_of_memory(error):
                raise
    found = {name: np.concatenate([getattr(part, name).numpy() for part in parts]) for name in NAMES}
    values = {name: [float(value) for value in _spread(array)] for name, array in found.items()}
    starts = [group.start for group in rows[: len(parts)]]
    return {"device": kind, "rows": starts, "sha256": _hash(found), "values": values}


def difference(stored: Mapping[str, Any], here: Mapping[str, Any], plan: Plan) -> str | None:
    """The error where a probe is not the stored one; None where it is.

    On a device of the same kind every bit must be the same, unless the run gave that up (cluster.mixed_devices=allow,
    engine.deterministic=false); otherwise values may differ by a tolerance.
    """
    is_mixed = plan.fingerprint.get("machine.device") == "any"
    is_exact = plan.deterministic and not is_mixed and stored["device"] == here["device"]
    if stored["sha256"] == here["sha256"]:
        return None
    name, error = _largest_difference(stored["values"], here["values"], plan.dtype)
    if not is_exact and error <= NUMBER_TYPES[plan.dtype].tolerance:
        return None
    rows = " and ".join(map(str, stored["rows"]))
    what = f"on rows {rows} of the input its {name} differs by {error:.1e} of the largest value"
    if error <= LAST_BITS:
        return (
            f"the model gives other last bits here than where the run was prepared ({what}): another processor or "
            f"library. Use machines of one kind, or cluster.mixed_devices=allow from the start"
        )
    return (
        f"the model gives other values here than when the run was prepared ({what}), though weights, source files and "
        f"settings are the same: has an environment variable, a data file, a patched function or a library changed? "
        f"Restore it, or give another store.path"
    )


def _compute(folds: Folds, plan: Plan, draw: Draw, group: ProbeRows) -> Mean:
    n_references = min(N_REFERENCES, plan.n_references)
    few = replace(plan, per_fold=False, spread=False, null_difference=False, n_references=n_references)
    references = ShardReferences(draw(group.codes, group.start).values[:, : few.n_references])
    return attribute_rows(folds, few, group.codes, references, group.extra_inputs).mean


def _hash(found: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in found.items():
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _spread(array: np.ndarray) -> np.ndarray:
    """At most MAX_VALUES of the values, evenly spread."""
    return array.ravel()[np.linspace(0, array.size - 1, min(MAX_VALUES, array.size)).astype(int)]


def _largest_difference(
    stored: Mapping[str, Sequence[float]], here: Mapping[str, Sequence[float]], dtype: str
) -> tuple[str, float]:
    """The array that differs most, and by how much of its largest value."""
    predictions = np.array([*stored["prediction"], *stored["reference_prediction"]])
    errors = {
        name: relative_error(np.array(values), np.array(here[name]), predictions, dtype)
        for name, values in stored.items()
    }
    name = max(errors, key=lambda name: errors[name])
    return name, errors[name]


def relative_error(stored: np.ndarray, found: np.ndarray, predictions: np.ndarray, dtype: str) -> float:
    """The largest difference, by the largest stored value; infinite where shapes differ, or one alone is no number.

    Attributions are differences of predictions: where they are small beside them, by the rounding of predictions.
    """
    if stored.shape != found.shape:
        return np.inf
    precision, finite = np.finfo(np.float64 if dtype == "float64" else np.float32), np.isfinite(stored)
    if not np.array_equal(stored[~finite], found[~finite], equal_nan=True):
        return np.inf
    rounding = 100 * float(precision.eps) * _largest(predictions)
    scale = max(_largest(stored), rounding, float(precision.tiny))
    error = float(np.abs(stored[finite].astype(np.float64) - found[finite]).max(initial=0)) / scale
    return error if np.isfinite(error) else np.inf


def _largest(values: np.ndarray) -> float:
    """The largest of the numbers among values, by size."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def require_same_values(codec: ShardCodec, plan: Plan, folds: Folds, draw: Draw, device: str) -> dict[str, Any]:
    """The probe as this process computes it, on rows of the store, which must be the plan's.

    Args:
        codec: of the store.
        plan: of the run.
        folds, draw: as of `take`.
        device: where to compute.

    Raises:
        OSError, ProbeDamaged: the rows cannot be read.
        DeviceBrokenError: the device computes nothing any more.
        ProbeFailed: the model fails, or memory is short.
        ValuesDiffer: it gives other values.
    """
    try:
        rows = _rows_of(codec, plan)
    except ValueError as error:
        raise ProbeDamaged(f"{error}; `dlshap verify --repair` and the same command make it again") from error
    try:
        here = take(folds, replace(plan, device=device), draw, rows, device_kind(device))
    except DeviceBrokenError:
        raise
    except Exception as error:
        raise ProbeFailed(_failure(error, plan)) from error
    if (problem := difference(plan.probe, here, plan)) is not None:
        raise ValuesDiffer(problem)
    return here


def _failure(error: Exception, plan: Plan) -> str:
    text = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
    if is_out_of_memory(error):
        return f"{text}. Not even {N_REFERENCES} pairs fit into the memory of {plan.device}"
    return f"the model fails here on row 0 of the input, which it took when the run was prepared: {text}"


def _rows_of(codec: ShardCodec, plan: Plan) -> list[ProbeRows]:
    found, layout = [], layout_of(plan)
    for start in plan.probe["rows"]:
        shard = plan.shard(start // plan.rows_per_shard)
        first = start - shard.start
        whole = (codec.read(name, shard, layout) for name in input_arrays(plan))
        codes, *extra_inputs = (values[first : first + plan.rows_per_group] for values in whole)
        found.append(ProbeRows(start, codes, extra_inputs))
    return found


class Edges:
    """Hands rows on to a store in the making, and keeps the first and the last group of them."""

    def __init__(self, store: StagedStore, rows_per_group: int) -> None:
        self.store, self._size, self._n = store, rows_per_group, 0
        self._first: list[dict[str, Any]] = []
        self._last: deque[dict[str, Any]] = deque(maxlen=rows_per_group)

    def append(self, **row: Any) -> None:
        """Keep the row if it is one of them, and hand it on."""
        self.store.append(**row)
        self._n += 1
        if len(self._first) < self._size:
            self._first.append(row)
        self._last.append(row)

    def rows(self) -> list[ProbeRows]:
        """Those groups, or the one that there is."""
        groups = {0: self._first, self._n - self._size: list(self._last)}
        return [self._group(start, rows) for start, rows in groups.items()]

    def _group(self, start: int, rows: list[dict[str, Any]]) -> ProbeRows:
        extra_inputs = [np.stack([row[name] for row in rows]) for name in rows[0] if is_extra_input(name)]
        return ProbeRows(start, np.stack([row["codes"] for row in rows]), extra_inputs)
