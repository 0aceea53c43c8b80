"""One shard: its references, its attributions, its part of the store, its done record.

`attribute_shard` is the whole of the work, the same in a Ray actor and in this process.
"""

import os
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dlshap_core.attributions import observed
from dlshap_core.engine import Attribution, attribute
from dlshap_core.sequences import one_hot
from pipeline.commits import DoneRecord, RunDirectory
from pipeline.config import model_from_dict
from pipeline.deltas import summarise
from pipeline.errors import RunError, ShardError
from pipeline.hardware import device_kind, repeatable
from pipeline.models import load_model
from pipeline.plan import Plan
from pipeline.references import Draw, ShardReferences, open_references
from pipeline.shards import Shard
from pipeline.store import read_codes, read_names, write_shard

N_NAMED = 3  # sequences that an error names


@dataclass(frozen=True)
class Work:
    """What an actor is given, all of it plain values.

    Attributes:
        store_path: absolute.
        plan: of the run.
        model: the model's configuration.
        search: folders to look for the user's own modules in, after all others.
        mixed_devices: whether a device of another kind than the plan's may compute.
    """

    store_path: str
    plan: Plan
    model: dict[str, Any]
    search: list[str]
    mixed_devices: bool


def attribute_shard(store_path: Path, plan: Plan, shard: Shard, model: nn.Module, draw: Draw) -> DoneRecord:
    """Compute one shard, write it, commit it.

    Args:
        store_path: of a prepared store.
        plan: of the run.
        shard: whose rows.
        model: (N, 4, L) -> (N, T).
        draw: gives the references of a shard.

    Returns:
        The record that was committed.
    """
    started = time.perf_counter()
    codes_NL = read_codes(store_path, shard)
    references = draw(codes_NL, shard.start)
    with repeatable(plan.threads, plan.deterministic):
        result = attribute(
            model,
            one_hot(codes_NL),
            references,
            targets=plan.targets,
            batch_size=plan.batch_size,
            device=plan.device,
            dtype=getattr(torch, plan.dtype),
        )
    files = write_shard(store_path, shard, _values(codes_NL, references, result))
    record = DoneRecord(
        shard=shard.index,
        start=shard.start,
        stop=shard.stop,
        files=files,
        seconds=time.perf_counter() - started,
        deltas=summarise(result.convergence_delta.numpy(), shard.start, plan.warning_threshold),
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )
    RunDirectory(store_path).commit(record)
    return record


def _values(codes_NL: np.ndarray, references: ShardReferences, result: Attribution) -> dict[str, np.ndarray]:
    """What the store holds of a shard; see store.LAYOUT."""
    observed_NTL = observed(result.hypothetical, one_hot(codes_NL).unsqueeze(1))
    return {
        "attribution": observed_NTL.numpy(),
        "hypothetical": result.hypothetical.numpy(),
        "prediction": result.prediction.numpy(),
        "reference_prediction": result.reference_prediction.numpy(),
        "convergence_delta": result.convergence_delta.numpy(),
        "reference_checksum": references.checksums(),
    }


class Worker:
    """Holds the model and the references, loaded when the first shard comes, and works on one shard at a time."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loaded: tuple[nn.Module, Draw] | None = None

    def do(self, shard: Shard) -> DoneRecord:
        """Compute and commit one shard.

        Raises:
            ShardError: whatever went wrong, in one line with the shard, its rows and its sequences; in full in a log.
        """
        try:
            return attribute_shard(Path(self._work.store_path), self._work.plan, shard, *self._load())
        except Exception as error:
            raise self._explain(shard, error) from error

    def _load(self) -> tuple[nn.Module, Draw]:
        if self._loaded is None:
            sys.path.extend(folder for folder in self._work.search if folder not in sys.path)
            plan = self._work.plan
            kind = device_kind(plan.device)
            if kind != plan.device_kind and not self._work.mixed_devices:
                raise RunError(
                    f"this worker computes on {kind} and the run was planned on {plan.device_kind}; they may differ "
                    f"in the last bits: use nodes of one kind, or cluster.mixed_devices=allow from the start"
                )
            loaded = load_model(model_from_dict(self._work.model))
            if loaded.weights_hash != plan.fingerprint["model.weights"]:
                raise RunError("the checkpoint's weights are not those that the run was planned with")
            draw = open_references(plan, RunDirectory(Path(self._work.store_path)).path)
            self._loaded = loaded.module, draw
        return self._loaded

    def _explain(self, shard: Shard, error: Exception) -> ShardError:
        path = Path(self._work.store_path)
        names = ", ".join(repr(name) for name in read_names(path, range(shard.start, shard.stop)[:N_NAMED]))
        more = f" and {len(shard) - N_NAMED} more" if len(shard) > N_NAMED else ""
        log = RunDirectory(path).log(shard, "".join(traceback.format_exception(error)))
        text = " ".join(str(error).split()) or type(error).__name__
        return ShardError(f"{shard}, sequences {names}{more}, failed: {type(error).__name__}: {text}; in full in {log}")


class ShardActor:
    """The face of `Worker` for Ray Data: shard descriptors in, records out, errors as values.

    An exception would reach the driver wrapped in several layers of Ray's; a value arrives as it is.
    """

    def __init__(self, work: Work) -> None:
        self._worker = Worker(work)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Work on the shards described by columns index, start, stop."""
        rows, errors = [], []
        for index, start, stop in zip(batch["index"], batch["start"], batch["stop"], strict=True):
            shard = Shard(int(index), int(start), int(stop))
            try:
                self._worker.do(shard)
                errors.append("")
            except ShardError as error:
                errors.append(str(error))
            rows.append(len(shard))
        return {"rows": rows, "error": errors}
