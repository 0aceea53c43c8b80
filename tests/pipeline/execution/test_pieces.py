"""A shard in pieces, which bound the memory of the spread: the bits of all at once."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dlshap_core.errors import DecisionError
from dlshap_core.references import shuffle_codes
from pipeline.execution import ensemble, spread
from pipeline.execution.ensemble import Attributed, attribute_rows
from pipeline.execution.spot_check import SpotCheck, SpotChecks
from pipeline.messages.errors import ShardError
from pipeline.models.example import ExampleNet
from pipeline.planning.plan import Plan
from pipeline.references.base import ShardReferences

N, R, LENGTH = 10, 3, 40
PLAN = Plan(
    n_rows=N, length=LENGTH, targets=[0], references={"name": "dinucleotide_shuffle"}, n_references=R, seed=0,
    batch_size=4 * R - 1, rows_per_shard=N, spread=True,
    dtype="float32", threads=1, deterministic=True, device="cpu", device_kind="", completeness=True,
    warning_threshold=1e-3, fingerprint={},
)  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], int]] = {  # what differs in the plan, rows of a piece
    "folds": ({"folds": ["a", "b"], "per_fold": True}, 3),
    "strands": ({"reverse_complement": True, "batch_size": 2}, 1),
    "variants": ({"rows_per_group": 2}, 6),
}
CODES = np.random.default_rng(0).integers(0, 4, (N, LENGTH), dtype=np.uint8)
REFERENCES = ShardReferences(np.repeat(shuffle_codes(CODES[::2], range(R)), 2, axis=0))


def attributed(plan: Plan, check: SpotCheck | None = None) -> Attributed:
    torch.manual_seed(0)
    folds = [ExampleNet(n_filters=4, n_hidden=4).eval() for _ in plan.folds]
    return attribute_rows(folds, plan, CODES, REFERENCES, (), check)


def tensors(found: Attributed) -> Iterator[Tensor]:
    for mean in (found.mean, *found.folds):
        yield from (getattr(mean, each.name) for each in fields(mean))
    yield from (*found.pairs, *found.over_references.values())


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_bits_of_all_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, step = KINDS[kind]
    plan = replace(PLAN, **changes)
    assert list(spread.pieces(plan, N)) == [slice(0, N)]
    whole, held, real = attributed(plan), [], ensemble.attribute

    def watching(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        held.append(len(found.observed))
        return found

    monkeypatch.setattr(ensemble, "attribute", watching)
    monkeypatch.setattr(spread, "MOST_HELD", 1)
    found = attributed(plan, SpotCheck(N - 1, 1, str, plan.dtype, SpotChecks()))
    assert max(held) == step
    assert len(found.over_references) == (2 if kind == "variants" else 1)
    for one, other in zip(tensors(whole), tensors(found), strict=True):
        assert one.shape[0] in (N, N // 2)
        assert one.numpy().tobytes() == other.numpy().tobytes()


def test_as_many_rows_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(PLAN, rows_per_group=2, targets=[0, 1], dtype="float64")
    monkeypatch.setattr(spread, "MOST_HELD", 8 * 2 * R * LENGTH * 13)
    assert list(spread.pieces(plan, 20)) == [slice(0, 12), slice(12, 20)]
    assert list(spread.pieces(replace(plan, spread=False), 20)) == [slice(0, 20)]
    assert list(spread.pieces(replace(plan, rows_per_group=1), 20)) == [slice(0, 20)]


def test_rows_of_errors_are_those_of_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, real = replace(PLAN, rows_per_group=2), ensemble.attribute
    monkeypatch.setattr(spread, "MOST_HELD", 1)

    def mixed(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        return replace(found, prediction=found.prediction + 1)

    def decides(*args: Any, **options: Any) -> Any:
        if len(args[1]) == N - 6:
            raise DecisionError("otherwise", 1)
        return real(*args, **options)

    monkeypatch.setattr(ensemble, "attribute", mixed)
    with pytest.raises(ShardError, match=r"^row 9: its prediction is"):
        attributed(plan, SpotCheck(9, 1, "row {}".format, plan.dtype, SpotChecks()))
    monkeypatch.setattr(ensemble, "attribute", decides)
    with pytest.raises(DecisionError, match=r"^sequence 7: otherwise"):
        attributed(plan)
