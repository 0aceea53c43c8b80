"""A worker, which holds the model and works on shards; what it is given, and what it says of each shard.

`Worker.do` is the whole of the work, the same in a Ray actor, in this process, and in a process of its own.
"""

import contextlib
import importlib.metadata
import sys
import threading
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import confined
from pipeline.commits import Failure, RunDirectory, whoami
from pipeline.config import model_from_dict
from pipeline.errors import RunError, ShardError, UserError
from pipeline.flight import OneAtATime, Turns
from pipeline.hardware import device_kind, keep_freed_memory
from pipeline.models import load_model
from pipeline.models.folds import fold_paths
from pipeline.one_shard import attribute_shard
from pipeline.plan import Plan
from pipeline.references import Draw, open_references
from pipeline.resume import is_done
from pipeline.shards import Shard
from pipeline.store import POOL, ROOT, ShardCodec, read_array, read_names

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
    """Holds the model and the references, loaded when the first shard comes.

    Several threads may work on a shard each; what needs the device goes one at a time.

    Args:
        work: what the shards are of.
        device: takes the turns.
    """

    def __init__(self, work: Work, device: OneAtATime | None = None) -> None:
        self._work = work
        self._device = device or Turns()
        self._loading = threading.Lock()
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
                # Alone: two that share the memory could end each other.
                return self._device(lambda: self._confine(shard))
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
            with self._loading:
                folds, draw = self._load()
            try:
                attribute_shard(self._directory, self._codec, self._work.plan, shard, folds, draw, self._device)
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
            keep_freed_memory()
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
