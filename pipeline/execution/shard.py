"""One shard: its references, its attributions, its part of the store, its done record.

Reading, drawing and writing are done by whatever thread asks; what needs the device waits its turn (see
device_queue.py).
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlshap_core.attributions import observed
from dlshap_core.one_hot import one_hot
from pipeline.execution.device_queue import DeviceAccess
from pipeline.execution.diagnose import diagnose
from pipeline.execution.ensemble import Attributed, Mean, attribute_rows
from pipeline.execution.spot_check import SpotCheck, SpotChecks
from pipeline.messages.errors import DeviceBrokenError, ShardError
from pipeline.messages.visible import shown
from pipeline.planning.bit_rounding import round_bits
from pipeline.planning.convergence import Thresholds, summarise
from pipeline.planning.extra_inputs import ExtraInputs
from pipeline.planning.plan import Plan
from pipeline.planning.shards import Shard
from pipeline.references.base import Draw, ShardReferences
from pipeline.store.codec import ShardCodec, names_of_rows, write_shard
from pipeline.store.records import PHASES, DoneRecord, FileRecord, whoami
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import (
    ALLELES_PER_VARIANT,
    ROUNDED,
    VARIANT_ARRAYS,
    input_arrays,
    kept_bits,
    layout_of,
    most_bytes,
    shard_key,
)


def attribute_shard(
    directory: RunDirectory,
    codec: ShardCodec,
    plan: Plan,
    shard: Shard,
    folds: Sequence[nn.Module],
    draw: Draw,
    device: DeviceAccess,
    spot_checks: SpotChecks | None = None,
) -> DoneRecord:
    """Compute one shard, write it, commit it.

    Args:
        directory, codec: of a prepared store.
        plan: of the run.
        shard: whose rows.
        folds: of the model; (N, 4, L), and extra inputs if any -> (N, T) each.
        draw: gives the references of a shard.
        device: runs what needs the device.
        spot_checks: those of the shards before.

    Returns:
        The record that was committed.

    Raises:
        ShardError: the sequences or the model failed.
        DeviceBrokenError: the device did.
        OSError: the backend of the store failed.
    """
    started = time.perf_counter()
    layout = layout_of(plan)
    keys, most = {name: shard_key(name, shard.index, layout) for name in input_arrays(plan)}, most_bytes(plan)
    data = {name: directory.store.read(key, most) for name, key in keys.items()}
    try:
        codes_NL, *extra_inputs = (codec.decode(name, shard, content) for name, content in data.items())
    except ValueError as error:
        raise ShardError(f"{error}; `dlshap verify --repair` and the same command make it again") from error
    try:
        references = draw(codes_NL, shard.start)
    except Exception as error:
        raise ShardError(f"its references cannot be drawn: {type(error).__name__}: {error}") from error
    asked = time.perf_counter()
    check = _spot_check(directory, plan, shard, spot_checks or SpotChecks()) if plan.spot_check else None
    compute = partial(_compute, directory, plan, shard, folds, codes_NL, references, extra_inputs, check)
    turn, result, released = device(lambda: (time.perf_counter(), compute(), time.perf_counter()))
    values = shard_values(codes_NL, references, result, plan)
    files = {name: FileRecord.of(content) for name, content in data.items()}
    files |= write_shard(directory.store, codec, shard, values)
    ended = time.perf_counter()
    record = DoneRecord(
        shard=shard.index,
        start=shard.start,
        stop=shard.stop,
        files=files,
        seconds=ended - started - (turn - asked),
        deltas=_summary(result, plan, shard),
        worker=whoami(),
        phases=dict(zip(PHASES, (asked - started, turn - asked, released - turn, ended - released), strict=True)),
    )
    directory.commit(record)
    return record


def _summary(result: Attributed, plan: Plan, shard: Shard) -> dict[str, Any]:
    deltas, predictions, of_references = (part.numpy() for part in result.pairs)
    return summarise(deltas, predictions, of_references, shard.start, Thresholds.of(plan))


def _compute(
    directory: RunDirectory,
    plan: Plan,
    shard: Shard,
    folds: Sequence[nn.Module],
    codes_NL: np.ndarray,
    references: ShardReferences,
    extra_inputs: ExtraInputs,
    check: SpotCheck | None,
) -> Attributed:
    """All that needs the device.

    Raises:
        ShardError: the model failed; which sequence it was is tried out on the device too.
        DeviceBrokenError: the device computes nothing any more.
    """
    try:
        return attribute_rows(folds, plan, codes_NL, references, extra_inputs, check)
    except (ShardError, DeviceBrokenError):
        raise
    except Exception as error:
        names = _names(directory, range(shard.start, shard.stop))
        raise ShardError(diagnose(error, folds, plan, codes_NL, references, names, extra_inputs)) from error


def _names(directory: RunDirectory, rows: range) -> list[str]:
    """What errors call the rows of the store."""
    return [f"row {row}, {shown(name)}" for row, name in zip(rows, names_of_rows(directory.store, rows), strict=True)]


def _spot_check(directory: RunDirectory, plan: Plan, shard: Shard, kept: SpotChecks) -> SpotCheck:
    def name_of(row: int) -> str:
        return _names(directory, range(shard.start + row, shard.start + row + 1))[0]

    return SpotCheck.of_shard(shard, plan.n_references, name_of, plan.dtype, kept)


def shard_values(
    codes_NL: np.ndarray, references: ShardReferences, result: Attributed, plan: Plan
) -> dict[str, np.ndarray]:
    """What the store holds of a shard beside what the input gives (see store/schema.py), attributions rounded last."""
    x_N14L = one_hot(codes_NL).unsqueeze(1)
    values = {
        **_of(result.mean, x_N14L),
        **_numpy(result.over_references),
        "reference_checksum": references.checksums(),
    }
    if result.folds:
        folds = [_of(fold, x_N14L) for fold in result.folds]
        values |= {f"{name}_by_fold": np.stack([fold[name] for fold in folds], axis=1) for name in folds[0]}
    if plan.rows_per_group == ALLELES_PER_VARIANT:
        names = [name.removesuffix("_difference") for name in VARIANT_ARRAYS]
        values |= {f"{name}_difference": values[name][1::2] - values[name][::2] for name in names}
    return {
        name: round_bits(array, kept_bits(name, plan)) if name in ROUNDED else array for name, array in values.items()
    }


def _of(mean: Mean, x_N14L: Tensor) -> dict[str, np.ndarray]:
    return _numpy({"attribution": observed(mean.hypothetical, x_N14L), **vars(mean)})


def _numpy(arrays: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.to(torch.float32).numpy() for name, value in arrays.items()}
