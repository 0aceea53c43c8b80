"""A worker, which holds the model and works on shards.

`Worker.process` is the whole of the work, the same in a Ray actor, in this process, and in a process of its own.
"""

import contextlib
import threading
import traceback
from dataclasses import replace

from pipeline.config import limits
from pipeline.config.validate import model_from_dict
from pipeline.execution import isolated
from pipeline.execution.device import device_name, kind_problem
from pipeline.execution.device_queue import DeviceAccess, DeviceLock
from pipeline.execution.ensemble import Folds
from pipeline.execution.gpu_memory import bound, keep_on_device, leave_device
from pipeline.execution.probe import ValuesDiffer, difference, require_same_values
from pipeline.execution.shard import attribute_shard
from pipeline.execution.spot_check import SpotChecks
from pipeline.execution.work import ShardResult, WorkSpec
from pipeline.messages.errors import DeviceBrokenError, RunError, ShardError, UserError
from pipeline.messages.secrets import one_line, without_credentials
from pipeline.messages.visible import shown, visible
from pipeline.models import own_modules
from pipeline.models.load import load_model
from pipeline.planning.shards import Shard
from pipeline.references.base import Draw
from pipeline.references.resolve import load_references
from pipeline.store.codec import ShardCodec, names_of_rows, read_array
from pipeline.store.done_shards import is_done
from pipeline.store.records import PHASES, Failure, whoami
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import POOL

N_NAMED = 3  # sequences that an error names
MAX_UNEXPLAINED = 2  # processes that may vanish while they work on a shard before it gets one of its own


class Worker:
    """Holds the model and the references, loaded when the first shard comes.

    Several threads may work on a shard each; what needs the device goes one at a time.

    Args:
        work: what the shards are of.
        device: gives access to the device.
    """

    def __init__(self, work: WorkSpec, device: DeviceAccess | None = None) -> None:
        self._work = work
        own_modules.search(*work.search)
        self._device = device or DeviceLock()
        self._loading = threading.Lock()
        self._directory = RunDirectory(work.store, work.options, work.lock_timeout_s)
        self._codec = ShardCodec(self._directory.store)
        self._loaded: tuple[Folds, Draw] | None = None
        self._is_probed = False
        self._spot_checks = SpotChecks()

    def process(self, shard: Shard) -> ShardResult:
        """Compute and commit one shard, unless it is done; every error becomes a result.

        A shard that took processes with it before is done in a process of its own, so that it is known whether it is
        the shard that ends them or something from outside.
        """
        try:
            if is_done(self._directory, self._work.plan, shard):
                return ShardResult(shard.index, len(shard), is_found=True)
            if self._directory.n_attempts(shard) >= MAX_UNEXPLAINED:
                # Alone: two that share the memory could end each other.
                return self._device(lambda: self._isolate(shard))
            return self.attribute(shard)
        except DeviceBrokenError as error:
            return replace(self._fatal(shard, error), is_device_broken=True)
        except Exception as error:
            return self._fatal(shard, error)

    def may_begin_again(self, result: ShardResult) -> bool:
        """Whether another process may try the device that failed again, as it has not failed at other shards too.

        As where a process is killed, an attempt is left: a shard that always ends so is told from a device that does.
        """
        shard = self._work.plan.shard(result.shard)
        if self._directory.note_broken(device_name(self._work.plan.device), shard, result.error) > 1:
            return False
        self._directory.begin(shard)
        return True

    def attribute(self, shard: Shard) -> ShardResult:
        """Compute and commit one shard in this process.

        Raises:
            OSError: the backend of the store failed.
            RunError, UserError: this machine or its files cannot do the work.
            DeviceBrokenError: its device computes nothing any more.
        """
        attempt = self._directory.begin(shard)
        try:
            with self._loading:
                folds, draw = self._load()
            try:
                with self._loading:
                    self._require_same_values(folds, draw)
                record = attribute_shard(
                    self._directory,
                    self._codec,
                    self._work.plan,
                    shard,
                    folds,
                    draw,
                    self._device,
                    self._spot_checks,
                )
            except ShardError as error:
                log = self._directory.log(
                    shard, visible(without_credentials("".join(traceback.format_exception(error))), kept="\n\t")
                )
                return self.give_up(shard, f"{one_line(error)}; in full in {log}", log)
            read_s, wait_s, device_s, write_s = (record.phases[phase] for phase in PHASES)
            return ShardResult(
                shard.index,
                len(shard),
                worker=record.worker,
                read_s=read_s,
                wait_s=wait_s,
                device_s=device_s,
                write_s=write_s,
            )
        finally:
            self._directory.end(attempt)

    def give_up(self, shard: Shard, text: str, log: str = "") -> ShardResult:
        """Record that a shard failed, with the names of its sequences."""
        rows = range(shard.start, shard.stop)[:N_NAMED]
        names = ", ".join(map(shown, names_of_rows(self._directory.store, rows)))
        more = f" and {len(shard) - N_NAMED} more" if len(shard) > N_NAMED else ""
        error = f"{shard}, sequences {names}{more}, failed: {text}"
        self._directory.fail(Failure(shard.index, shard.start, shard.stop, error, log))
        return ShardResult(shard.index, len(shard), error)

    def _isolate(self, shard: Shard) -> ShardResult:
        """All of the device's memory is for the other process."""
        folds = self._loaded[0] if self._loaded else ()
        leave_device(folds)
        ended = isolated.attribute(replace(self._work, search=own_modules.folders()), shard)
        keep_on_device(folds, self._work.plan.device)
        if isinstance(ended, ShardResult):
            return ended
        return self.give_up(shard, f"it ends the process that works on it ({ended}); is memory short?")

    def _fatal(self, shard: Shard, error: Exception) -> ShardResult:
        """Unless someone else has committed the shard meanwhile, and tidied up."""
        with contextlib.suppress(OSError, ValueError):  # the first error is the one to tell
            if is_done(self._directory, self._work.plan, shard):
                return ShardResult(shard.index, len(shard), is_found=True)
        kind = "" if isinstance(error, (OSError, RunError, UserError)) else f"{type(error).__name__}: "
        text = f"{shard} could not be worked on by {whoami()}: {kind}{one_line(error)}"
        return ShardResult(shard.index, len(shard), text, fatal=True)

    def _load(self) -> tuple[Folds, Draw]:
        if self._loaded is None:
            work, plan = self._work, self._work.plan
            # Which GPU "cuda" is depends on the thread.
            if (problem := self._device(lambda: kind_problem(plan, work.mixed_devices))) is not None:
                raise RunError(problem)
            self._device(lambda: bound(plan.device, work.gpu_share))
            with limits.using(work.limits):
                loaded = load_model(model_from_dict(work.model))
            if different := loaded.differences(plan.fingerprint):
                raise RunError(f"the model here is not the one that the run was planned with: {'; '.join(different)}")
            with limits.using(work.limits):
                draw = load_references(plan, lambda: read_array(self._directory.store, POOL))
            self._device(lambda: keep_on_device(loaded.folds, plan.device))
            self._loaded = loaded.folds, draw
        return self._loaded

    def _require_same_values(self, folds: Folds, draw: Draw) -> None:
        """The probe of the plan, before the first shard. Where it was taken on another kind of device, as on the head
        of a cluster without a GPU, the workers must agree with the first of them as well.

        Raises:
            ValuesDiffer: they differ.
            ProbeFailed: the model fails, or memory is short.
        """
        if self._is_probed:
            return
        plan = self._work.plan
        here = self._device(lambda: require_same_values(self._codec, plan, folds, draw, plan.device))
        if not self._work.mixed_devices and here["device"] != plan.probe["device"]:
            problem = difference(self._directory.first_probe(here), here, plan)
            if problem is not None:
                raise ValuesDiffer(problem)
        self._is_probed = True
