"""Why a shard failed: what is tried again finds the memory of the failed batch free."""

from __future__ import annotations

import traceback
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.execution import diagnose
from pipeline.planning.plan import Plan
from pipeline.references.base import ShardReferences

PLAN = Plan(8, 5, [0], {}, 1, 0, 8, 8, "float32", 1, True, "cpu", "any", True, 1e-3, {})


class Batch:
    """Stands for the tensors of a batch."""


class Memory:
    """A device with room for so many pairs in all batches that are alive."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held: weakref.WeakKeyDictionary[Batch, int] = weakref.WeakKeyDictionary()
        self.held_before: list[int] = []  # by others, at each try

    def attribute(self, folds: Any, plan: Plan, *_: Any) -> None:
        self.held_before.append(sum(self.held.values()))
        batch = Batch()
        self.held[batch] = plan.batch_size
        inner = self._inside(batch)
        next(inner)  # as the engine's: a generator that is not at its end
        try:
            self._forward()
        except torch.OutOfMemoryError as error:
            raise RuntimeError("the model failed") from error

    def _inside(self, batch: Batch) -> Any:
        yield batch
        yield batch

    def _forward(self) -> None:
        batches = list(self.held)
        if sum(self.held.values()) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(batches)} batches")


def failed(memory: Memory) -> Exception:
    with pytest.raises(RuntimeError, match="the model failed") as caught:
        memory.attribute([], PLAN)
    return caught.value


def told(error: Exception) -> str:
    references: ShardReferences = None  # type: ignore[assignment] - the memory does not look at them
    return diagnose.diagnose(error, [], PLAN, np.zeros((8, 5), np.uint8), references, [f"s{row}" for row in range(8)])


@pytest.mark.parametrize(("room", "advised"), [(4, 4), (3, 2)])
def test_the_failed_batch_is_free_when_another_size_is_tried(
    monkeypatch: pytest.MonkeyPatch, room: int, advised: int
) -> None:
    memory = Memory(room)
    monkeypatch.setattr(diagnose, "attribute_rows", memory.attribute)
    error = failed(memory)
    text = told(error)
    assert memory.held_before == [0] * len(memory.held_before), "nothing of an earlier batch is alive"
    assert f"engine.batch_size={advised} " in text
    assert "in _forward" in "".join(traceback.format_exception(error)), "the log still says where"


def test_no_room_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(0)
    monkeypatch.setattr(diagnose, "attribute_rows", memory.attribute)
    assert "Not even one pair fits" in told(failed(memory))


def test_a_shard_that_runs_out_of_memory_is_told_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By way of what works on a shard, in which the error is being handled."""
    from pipeline.execution import shard
    from pipeline.messages.errors import ShardError

    memory = Memory(4)
    for module in (diagnose, shard):
        monkeypatch.setattr(module, "attribute_rows", memory.attribute)
    monkeypatch.setattr(shard, "names_of_rows", lambda store, rows: [f"s{row}" for row in rows])
    directory: Any = type("Directory", (), {"store": None})
    references: Any = None
    with pytest.raises(ShardError, match=r"engine\.batch_size=4 "):
        shard._compute(directory, PLAN, PLAN.shard(0), [], np.zeros((8, 5), np.uint8), references, (), None)
    assert set(memory.held_before) == {0}
