"""What one pair of a long sequence takes, and whether it fits: known, and said, before anything large is computed."""

import sys
from dataclasses import dataclass, replace

import numpy as np

from dlshap_core.batch_size import USED, free_memory
from dlshap_core.engine import PairMemory, memory_of_pair, numbers
from dlshap_core.errors import is_out_of_memory
from dlshap_core.one_hot import one_hot
from pipeline.config import memory
from pipeline.config.schema import Config
from pipeline.execution.determinism import repeatable
from pipeline.execution.executor import executor_of
from pipeline.messages.errors import UserError
from pipeline.messages.words import size
from pipeline.models.allocations import try_first
from pipeline.models.load import LoadedModel
from pipeline.planning.extra_inputs import ExtraInputs, as_tensors

_BETWEEN = 1.5  # on a CPU, times what tensors take: what the allocator leaves between them
_BATCH, _MUCH = 4 * 10**9, 10**8  # bytes of a batch of shorter sequences on a CPU, and of one of their pairs
LONG = 1 << 13  # bases; a pair of fewer fits wherever the model does


@dataclass(frozen=True)
class PairFit:
    """How a pair is computed.

    Attributes:
        split: names of modules that are computed again, so that it fits; none where that is not needed.
        most: pairs that fit at once.
        notes: lines about it.
        is_tried_alone: whether one pair is enough to try the model with.
    """

    split: tuple[str, ...] = ()
    most: int | None = None
    notes: tuple[str, ...] = ()
    is_tried_alone: bool = False


def fit_of_pair(
    loaded: LoadedModel, codes: np.ndarray, config: Config, device: str, extra_inputs: ExtraInputs
) -> PairFit:
    """Measured with a forward pass on the first sequence.

    Raises:
        UserError: a pair does not fit, or the model makes more of the sequence than its file may have it make.
    """
    try_first(loaded.module, one_hot(codes[None]), as_tensors([value[None] for value in extra_inputs]))
    is_short = len(codes) < LONG and config.engine.checkpoint != "always"
    if is_short and device != "cpu":  # a GPU's memory is measured later
        return PairFit()
    found = _measured(loaded, codes, config, device, extra_inputs)
    if found is None:
        return PairFit()
    if is_short:
        return PairFit(most=max(1, _BATCH // max(found.whole, 1)), is_tried_alone=found.whole > _MUCH)
    if device == "cpu":
        found = replace(found, whole=int(_BETWEEN * found.whole), split=int(_BETWEEN * found.split))
    return chosen(found, config, len(codes), *_free(config, device))


def chosen(found: PairMemory, config: Config, length: int, free: int, where: str) -> PairFit:
    """How to compute a pair that takes so much, with so many bytes free for one worker.

    Raises:
        UserError: it does not fit, whatever is done.
    """
    way, usable = config.engine.checkpoint, int(USED * free)
    takes = f"one pair of {length:,} bases takes about {size(found.whole)} of memory"
    if way != "always" and found.whole <= usable:
        return PairFit((), max(1, usable // max(found.whole, 1)), (f"{takes}; {where}",))
    if not found.names:
        again = "no part of the model can be computed again by itself to need less"
    else:
        again = f"{size(found.split)} where parts of the model are computed again (engine.checkpoint)"
    if way == "always" or (way == "auto" and found.names and found.split <= usable):
        return PairFit(found.names, 1, (f"{takes}, {again}; {where}",))
    if way == "never" and found.names and found.split <= usable:
        fix = "leave out engine.checkpoint=never"
    else:
        fix = (
            "use a machine with more memory, fewer actors (cluster.actors) or shorter sequences; "
            "engine.checkpoint=always tries it all the same"
        )
    raise UserError(f"{takes}, {again}, and {where}: {fix}")


def _measured(
    loaded: LoadedModel, codes: np.ndarray, config: Config, device: str, extra_inputs: ExtraInputs
) -> PairMemory | None:
    """None where the model fails: the audit finds out why."""
    try:
        with repeatable(config.engine.threads, config.engine.deterministic):
            return memory_of_pair(
                loaded.module,
                one_hot(codes[None]),
                args=as_tensors([value[None] for value in extra_inputs]),
                device=device,
                dtype=numbers(config.engine.dtype)["dtype"],
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                f"not even the prediction of one sequence of {len(codes):,} bases fits into the memory of {device}; "
                f"use a machine with more memory, or shorter sequences"
            ) from error
        return None


def _free(config: Config, device: str) -> tuple[int, str]:
    """Bytes that one worker may have, and the same in words."""
    if device.startswith("cuda"):
        if (found := free_memory(device)) is None:
            return sys.maxsize, f"{device} does not say how much is free"
        free = int(found * config.cluster.gpu_share)
        return free, f"{size(free)} are free on {device}"
    workers, free = executor_of(config).n_actors(device) or 1, memory.free()
    each = f", for each of {workers} actors {size(free // workers)}" if workers > 1 else ""
    return free // workers, f"{size(free)} are free{each}"
