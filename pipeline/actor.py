"""One shard: its references, its attributions, its part of the store, its done record.

`Worker.do` is the whole of the work, the same in a Ray actor, in this process, and in a process of its own.
"""

import contextlib
import importlib.metadata
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlshap_core.attributions import observed
from dlshap_core.sequences import one_hot
from pipeline import confined
from pipeline.blame import explain
from pipeline.commits import DoneRecord, Failure, RunDirectory, whoami
from pipeline.config import model_from_dict
from pipeline.deltas import summarise
from pipeline.ensemble import Attributed, Mean, attribute_rows
from pipeline.errors import RunError, ShardError, UserError
from pipeline.hardware import device_kind
from pipeline.models import load_model
from pipeline.models.folds import fold_paths
from pipeline.plan import Plan
from pipeline.references import Draw, ShardReferences, open_references
from pipeline.resume import is_done
from pipeline.shards import Shard
from pipeline.store import (
    ALLELES,
    OF_VARIANTS,
    POOL,
    ROOT,
    ShardCodec,
    file_record,
    given,
    layout_of,
    read_array,
    read_names,
    shard_key,
    write_shard,
)

N_NAMED = 3  # sequences that an error names
MAX_UNEXPLAINED = 2  # processes that may vanish while they work on a shard before it gets one of its own


@dataclass(frozen=True)
class Work:
    """What a worker is given, all of it plain values.

    Attributes:
        store: url of the store.
        options: of its place.
        plan: of the run.
        model: the model's configuration.
        search: folders to look for the user's own modules in, after all others.
        mixed_devices: whether a device of another kind than the plan's may compute.
    """

    store: str
    options: dict[str, str]
    plan: Plan
    model: dict[str, Any]
    search: list[str]
    mixed_devices: bool


@dataclass(frozen=True)
class Outcome:
    """What came of one shard.

    Attributes:
        shard: its index.
        n_rows: sequences in it.
        error: one line; "" where the shard is committed.
        fatal: whether the error is of the place or the machine rather than of the shard, so that others will meet it.
    """

    shard: int
    n_rows: int
    error: str = ""
    fatal: bool = False


class Worker:
    """Holds the model and the references, loaded when the first shard comes, and works on one shard at a time."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._directory = RunDirectory(work.store, work.options)
        self._codec = ShardCodec(self._directory.store)
        self._loaded: tuple[tuple[nn.Module, ...], Draw] | None = None

    def do(self, shard: Shard) -> Outcome:
        """Compute and commit one shard, unless it is done; every error becomes an outcome.

        A shard that took processes with it before is done in a process of its own, so that it is known whether it is
        the shard that ends them or something from outside.
        """
        try:
            if is_done(self._directory, self._work.plan, shard):
                return Outcome(shard.index, len(shard))
            if self._directory.n_attempts(shard) >= MAX_UNEXPLAINED:
                return self._confine(shard)
            return self.attribute(shard)
        except Exception as error:
            return self._fatal(shard, error)

    def attribute(self, shard: Shard) -> Outcome:
        """Compute and commit one shard in this process.

        Raises:
            OSError: the place of the store failed.
            RunError, UserError: this machine or its files cannot do the work.
        """
        attempt = self._directory.begin(shard)
        try:
            folds, draw = self._load()
            try:
                attribute_shard(self._directory, self._codec, self._work.plan, shard, folds, draw)
            except ShardError as error:
                log = self._directory.log(shard, "".join(traceback.format_exception(error)))
                return self.give_up(shard, f"{error}; in full in {log}", log)
            return Outcome(shard.index, len(shard))
        finally:
            self._directory.end(attempt)

    def give_up(self, shard: Shard, text: str, log: str = "") -> Outcome:
        """Record that a shard failed, with the names of its sequences."""
        rows = range(shard.start, shard.stop)[:N_NAMED]
        names = ", ".join(repr(name) for name in read_names(self._directory.store, rows))
        more = f" and {len(shard) - N_NAMED} more" if len(shard) > N_NAMED else ""
        error = f"{shard}, sequences {names}{more}, failed: {text}"
        self._directory.fail(Failure(shard.index, shard.start, shard.stop, error, log))
        return Outcome(shard.index, len(shard), error)

    def _confine(self, shard: Shard) -> Outcome:
        ended = confined.attribute(self._work, shard)
        if isinstance(ended, Outcome):
            return ended
        return self.give_up(shard, f"it ends the process that works on it ({'; '.join(ended)}); is memory short?")

    def _fatal(self, shard: Shard, error: Exception) -> Outcome:
        """Unless someone else has committed the shard meanwhile, and tidied up."""
        with contextlib.suppress(OSError, ValueError):  # the first error is the one to tell
            if is_done(self._directory, self._work.plan, shard):
                return Outcome(shard.index, len(shard))
        kind = "" if isinstance(error, (OSError, RunError, UserError)) else f"{type(error).__name__}: "
        text = f"{shard} could not be worked on by {whoami()}: {kind}{' '.join(str(error).split())}"
        return Outcome(shard.index, len(shard), text, fatal=True)

    def _load(self) -> tuple[tuple[nn.Module, ...], Draw]:
        if self._loaded is None:
            work, plan = self._work, self._work.plan
            _search(work)
            kind = device_kind(plan.device)
            if kind != plan.device_kind and not work.mixed_devices:
                raise RunError(_other_kind(kind, plan))
            loaded = load_model(model_from_dict(work.model))
            if loaded.weights_hash != plan.fingerprint["model.weights"]:
                raise RunError("the checkpoint's weights are not those that the run was planned with")
            draw = open_references(plan, lambda: read_array(self._directory.store, POOL))
            self._loaded = loaded.folds, draw
        return self._loaded


def attribute_shard(
    directory: RunDirectory, codec: ShardCodec, plan: Plan, shard: Shard, folds: Sequence[nn.Module], draw: Draw
) -> DoneRecord:
    """Compute one shard, write it, commit it.

    Args:
        directory, codec: of a prepared store.
        plan: of the run.
        shard: whose rows.
        folds: of the model; (N, 4, L), and further inputs if any -> (N, T) each.
        draw: gives the references of a shard.

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
    try:
        result = attribute_rows(folds, plan, codes_NL, references, args)
    except Exception as error:
        rows = range(shard.start, shard.stop)
        names = [f"row {row}, {name!r}" for row, name in zip(rows, read_names(directory.store, rows), strict=True)]
        raise ShardError(explain(error, folds, plan, codes_NL, references, names, args)) from error
    values = shard_values(codes_NL, references, result, plan.rows_per_group)
    files = {name: file_record(content) for name, content in data.items()}
    files |= write_shard(directory.store, codec, shard, values)
    record = DoneRecord(
        shard=shard.index,
        start=shard.start,
        stop=shard.stop,
        files=files,
        seconds=time.perf_counter() - started,
        deltas=summarise(result.deltas.numpy(), shard.start, plan.warning_threshold),
        worker=whoami(),
    )
    directory.commit(record)
    return record


def shard_values(
    codes_NL: np.ndarray, references: ShardReferences, result: Attributed, rows_per_group: int
) -> dict[str, np.ndarray]:
    """What the store holds of a shard, but for what the input gives; see store.ARRAYS."""
    x_N14L = one_hot(codes_NL).unsqueeze(1)
    values = {**_of(result.mean, x_N14L), "reference_checksum": references.checksums()}
    if result.folds:
        folds = [_of(fold, x_N14L) for fold in result.folds]
        values |= {f"{name}_by_fold": np.stack([fold[name] for fold in folds], axis=1) for name in folds[0]}
    if rows_per_group == ALLELES:
        names = [name.removesuffix("_difference") for name in OF_VARIANTS]
        values |= {f"{name}_difference": values[name][1::2] - values[name][::2] for name in names}
    return values


def _of(mean: Mean, x_N14L: Tensor) -> dict[str, np.ndarray]:
    arrays = {"attribution": observed(mean.hypothetical, x_N14L), **vars(mean)}
    return {name: value.numpy() for name, value in arrays.items()}


def _search(work: Work) -> None:
    """Look for the user's own modules in their folders too, after all others."""
    sys.path.extend(folder for folder in work.search if folder not in sys.path)


def _other_kind(kind: str, plan: Plan) -> str:
    return (
        f"this worker computes on {kind} and the run was planned on {plan.device_kind}; they may differ in the last "
        f"bits: use nodes of one kind, or cluster.mixed_devices=allow from the start"
    )


def check_node(work: Work) -> list[str]:
    """What keeps this machine from working on a run, one phrase each; nothing where all is well."""
    problems, plan = [], work.plan
    for library in ("dlshap", "torch"):
        here = importlib.metadata.version(library) if library == "dlshap" else torch.__version__
        planned = plan.fingerprint["machine.engine" if library == "dlshap" else "machine.torch"]
        if here != planned:
            problems.append(f"it has {library} {here} where the run was planned with {planned}")
    if plan.device == "cpu" and device_kind("cpu") != plan.device_kind and not work.mixed_devices:
        problems.append(_other_kind(device_kind("cpu"), plan))
    directory, probe = RunDirectory(work.store, work.options), f"partial/check-{uuid.uuid4().hex}"
    try:
        directory.store.read(ROOT)
        directory.run.write(probe, b"")
        directory.run.delete(probe)
    except FileNotFoundError:
        problems.append(f"the store {work.store} is not there; put it where every node finds it")
    except OSError as error:
        problems.append(f"the store {work.store} cannot be used: {error}")
    _search(work)
    of_model = [path for key in ("checkpoint", "bias") for path in fold_paths(work.model.get(key), f"model.{key}")]
    files = [path for path in [*of_model, plan.references.get("path")] if path]
    problems += [f"{path} is not there" for path in files if not Path(path).exists()]
    if not problems:
        try:
            load_model(model_from_dict(work.model))
        except UserError as error:
            problems.append(str(error))
    return problems
