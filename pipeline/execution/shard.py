"""One shard: its references, its attributions, its part of the store, its done record.

Reading, drawing and writing are done by whatever thread asks; what needs the device waits its turn (see flight.py).
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor, nn

from dlshap_core.attributions import observed
from dlshap_core.sequences import one_hot
from pipeline.args import Args
from pipeline.blame import explain
from pipeline.commits import DoneRecord, RunDirectory, whoami
from pipeline.deltas import summarise
from pipeline.ensemble import Attributed, Mean, attribute_rows
from pipeline.errors import ShardError
from pipeline.flight import OneAtATime
from pipeline.plan import Plan
from pipeline.references import Draw, ShardReferences
from pipeline.rounding import round_bits
from pipeline.shards import Shard
from pipeline.store import (
    ALLELES,
    OF_VARIANTS,
    ROUNDED,
    ShardCodec,
    file_record,
    given,
    layout_of,
    read_names,
    shard_key,
    write_shard,
)


def attribute_shard(
    directory: RunDirectory,
    codec: ShardCodec,
    plan: Plan,
    shard: Shard,
    folds: Sequence[nn.Module],
    draw: Draw,
    device: OneAtATime,
) -> DoneRecord:
    """Compute one shard, write it, commit it.

    Args:
        directory, codec: of a prepared store.
        plan: of the run.
        shard: whose rows.
        folds: of the model; (N, 4, L), and further inputs if any -> (N, T) each.
        draw: gives the references of a shard.
        device: runs what needs the device.

    Returns:
        The record that was committed.

    Raises:
        ShardError: the sequences or the model failed.
        OSError: the place of the store failed.
    """
    started = time.perf_counter()
    layout = layout_of(plan)
    data = {name: directory.store.read(shard_key(name, shard.index, layout)) for name in given(plan)}
    try:
        codes_NL, *args = (codec.decode(name, shard, content) for name, content in data.items())
    except ValueError as error:
        raise ShardError(f"{error}; `dlshap verify --repair` and the same command make it anew") from error
    try:
        references = draw(codes_NL, shard.start)
    except Exception as error:
        raise ShardError(f"its references cannot be drawn: {type(error).__name__}: {error}") from error
    asked = time.perf_counter()
    compute = partial(_compute, directory, plan, shard, folds, codes_NL, references, args)
    turn, result = device(lambda: (time.perf_counter(), compute()))
    values = shard_values(codes_NL, references, result, plan)
    files = {name: file_record(content) for name, content in data.items()}
    files |= write_shard(directory.store, codec, shard, values)
    record = DoneRecord(
        shard=shard.index,
        start=shard.start,
        stop=shard.stop,
        files=files,
        seconds=time.perf_counter() - started - (turn - asked),
        deltas=summarise(result.deltas.numpy(), shard.start, plan.warning_threshold),
        worker=whoami(),
    )
    directory.commit(record)
    return record


def _compute(
    directory: RunDirectory,
    plan: Plan,
    shard: Shard,
    folds: Sequence[nn.Module],
    codes_NL: np.ndarray,
    references: ShardReferences,
    args: Args,
) -> Attributed:
    """All that needs the device.

    Raises:
        ShardError: the model failed; which sequence it was is tried out on the device too.
    """
    try:
        return attribute_rows(folds, plan, codes_NL, references, args)
    except Exception as error:
        rows = range(shard.start, shard.stop)
        names = [f"row {row}, {name!r}" for row, name in zip(rows, read_names(directory.store, rows), strict=True)]
        raise ShardError(explain(error, folds, plan, codes_NL, references, names, args)) from error


def shard_values(
    codes_NL: np.ndarray, references: ShardReferences, result: Attributed, plan: Plan
) -> dict[str, np.ndarray]:
    """What the store holds of a shard beside what the input gives; see store.ARRAYS. Attributions are rounded last."""
    x_N14L = one_hot(codes_NL).unsqueeze(1)
    values = {**_of(result.mean, x_N14L), "reference_checksum": references.checksums()}
    if result.folds:
        folds = [_of(fold, x_N14L) for fold in result.folds]
        values |= {f"{name}_by_fold": np.stack([fold[name] for fold in folds], axis=1) for name in folds[0]}
    if plan.rows_per_group == ALLELES:
        names = [name.removesuffix("_difference") for name in OF_VARIANTS]
        values |= {f"{name}_difference": values[name][1::2] - values[name][::2] for name in names}
    bits = plan.precision_bits
    return {name: round_bits(array, bits) if name in ROUNDED else array for name, array in values.items()}


def _of(mean: Mean, x_N14L: Tensor) -> dict[str, np.ndarray]:
    arrays = {"attribution": observed(mean.hypothetical, x_N14L), **vars(mean)}
    return {name: value.numpy() for name, value in arrays.items()}
