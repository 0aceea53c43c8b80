"""The attributions of some rows: of every fold of the model, on one strand or both.

Shape legend: N rows, F folds, T targets, R references, L positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlshap_core.engine import Attribution, attribute, numbers
from dlshap_core.engine import predict as of_fold
from dlshap_core.errors import DecisionError
from dlshap_core.one_hot import one_hot
from dlshap_core.passes.decisions import Decisions
from dlshap_core.sequences import reverse_complement_bases
from pipeline.execution.determinism import repeatable
from pipeline.execution.device import noticed_if_broken
from pipeline.execution.host import give_back_freed_memory
from pipeline.execution.null_difference import null_difference
from pipeline.execution.spot_check import FoldStrand, SpotCheck
from pipeline.execution.spread import Spread, pieces
from pipeline.models.allocations import try_first
from pipeline.planning.extra_inputs import ExtraInputs, as_tensors, other_strand
from pipeline.planning.plan import Plan
from pipeline.references.base import ShardReferences

Folds = Sequence[nn.Module]


@dataclass(frozen=True)
class Mean:
    """Attributions, averaged over strands where both were asked for.

    Attributes:
        hypothetical: (N, T, 4, L), in float64 where the run computes in it, else float32; so are the others.
        prediction: (N, T).
        reference_prediction: (N, T, R).
        convergence_delta: (N, T, R); of a mean, the mean.
    """

    hypothetical: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor


@dataclass(frozen=True)
class Attributed:
    """The attributions of some rows.

    Attributes:
        mean: over the folds.
        folds: each fold's; only the mean's where the plan keeps no more.
        pairs: convergence deltas (N, S, R), predictions (N, S) and those of the references (N, S, R), S being
            all folds, strands and targets: deltas of a mean could cancel.
        over_references: arrays of the store by their names; see `Spread`, and null_difference.py.
    """

    mean: Mean
    folds: list[Mean]
    pairs: tuple[Tensor, Tensor, Tensor]
    over_references: dict[str, Tensor]

    @staticmethod
    def joined(parts: "Sequence[Attributed]") -> "Attributed":
        """Of rows one after the other."""
        if len(parts) == 1:
            return parts[0]
        deltas, predictions, of_references = map(torch.cat, zip(*(part.pairs for part in parts), strict=True))
        return Attributed(
            _joined([part.mean for part in parts]),
            [_joined(fold) for fold in zip(*(part.folds for part in parts), strict=True)],
            (deltas, predictions, of_references),
            {name: torch.cat([part.over_references[name] for part in parts]) for name in parts[0].over_references},
        )


def attribute_rows(
    folds: Folds,
    plan: Plan,
    codes_NL: np.ndarray,
    references: ShardReferences,
    extra_inputs: ExtraInputs = (),
    check: SpotCheck | None = None,
) -> Attributed:
    """Attributions of (N, L) uint8 codes as the plan says; every fold and strand sees the same references.

    `extra_inputs` are the model's, N rows each, the same for a sequence and its references. With `check`, a sequence
    and a reference are predicted alone as well, by every fold and on every strand: a mean would hide some.

    Raises:
        ShardError: such a prediction is another than in its batch.
        UserError: the model makes more of a sequence than its file may have it make.
        DeviceBrokenError: the device computes nothing any more.
    """
    if plan.split and plan.device == "cpu":
        give_back_freed_memory()
    found = []
    for rows in pieces(plan, len(codes_NL)):
        own_check = check.within(rows) if check is not None else None
        some = ShardReferences(references.values[rows]), [values[rows] for values in extra_inputs], own_check
        try:
            with noticed_if_broken(plan.device):
                found.append(_attribute_piece(folds, plan, codes_NL[rows], *some))
        except DecisionError as error:
            error.row = None if error.row is None else error.row + rows.start
            raise
    return Attributed.joined(found)


def _attribute_piece(
    folds: Folds,
    plan: Plan,
    codes_NL: np.ndarray,
    references: ShardReferences,
    extra_inputs: ExtraInputs,
    check: SpotCheck | None,
) -> Attributed:
    """Some rows, all at once."""
    given = as_tensors(extra_inputs)
    on_other_strand = [other_strand(values, plan.length) for values in given]
    kept: list[Mean] = []
    total: Mean | None = None
    pairs: list[tuple[Tensor, ...]] = []
    spread = Spread(plan)
    with repeatable(plan.threads, plan.deterministic):
        for index, module in enumerate(folds):
            try_first(module, one_hot(codes_NL[:1]), [values[:1] for values in given])
            attribute_strand = partial(_attribute, module, plan, check, spread)
            strands = [attribute_strand((index, 0), one_hot(codes_NL), references, given)]
            if plan.reverse_complement:
                x, drawn = reverse_complement_bases(one_hot(codes_NL)), references.reverse_complement()
                other = attribute_strand((index, 1), x, drawn, on_other_strand)
                strands.append(Mean(**{**vars(other), "hypothetical": reverse_complement_bases(other.hypothetical)}))
            pairs += [(of.convergence_delta, of.prediction, of.reference_prediction) for of in strands]
            fold = _mean(_sum(strands), len(strands))
            total = fold if total is None else _sum([total, fold])
            if plan.per_fold:
                kept.append(fold)
        over_references = spread.arrays()
        if plan.null_difference:
            over_references["null_difference"] = _null_difference(
                folds, plan, codes_NL, references, [given, on_other_strand]
            )
    assert total is not None  # there is at least one fold
    deltas, predictions, of_references = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
    return Attributed(_mean(total, len(folds)), kept, (deltas, predictions, of_references), over_references)


def _attribute(
    module: nn.Module,
    plan: Plan,
    check: SpotCheck | None,
    spread: Spread,
    fold_strand: FoldStrand,
    X: Tensor,
    references: ShardReferences,
    extra_inputs: Sequence[Tensor],
) -> Mean:
    asked = None if check is None else check.asks(X, references, extra_inputs, fold_strand)
    of_model: dict[str, Any] = {"targets": plan.outputs, "device": plan.device}
    found: Attribution = attribute(
        module,
        X,
        references,
        args=extra_inputs,
        batch_size=plan.batch_size,
        decisions=None if plan.decisions is None else Decisions(plan.decisions[fold_strand[0]]),
        split=plan.split,
        alone=None if asked is None else asked.x,
        alone_args=() if asked is None else asked.extra_inputs,
        **spread.asked,
        **of_model,
        **numbers(plan.dtype),
    )
    if check is not None and asked is not None:

        def predict_alone(x: Tensor, given: Sequence[Tensor], dtype: str) -> Tensor:
            return of_fold(module, x, args=given, **of_model, **numbers(dtype))

        check.compare(asked, found, X, extra_inputs, fold_strand, predict_alone)
    spread.add(found, is_other_strand=fold_strand[1] > 0)
    names = ("hypothetical", "prediction", "reference_prediction", "convergence_delta")
    return Mean(**{name: getattr(found, name) for name in names})


def _null_difference(
    folds: Folds, plan: Plan, codes_NL: np.ndarray, references: ShardReferences, extra_inputs: Sequence[list[Tensor]]
) -> Tensor:
    """The mean over folds and strands; `extra_inputs` are those on each strand."""
    of_model: dict[str, Any] = {"targets": plan.outputs, "device": plan.device, "batch_size": plan.batch_size}

    def predict(X: Tensor, rows: np.ndarray) -> Tensor:
        strands = [X, reverse_complement_bases(X)][: 2 if plan.reverse_complement else 1]
        found = [
            of_fold(module, x, args=[values[rows] for values in given], **of_model, **numbers(plan.dtype)).double()
            for module in folds
            for x, given in zip(strands, extra_inputs, strict=False)
        ]
        return torch.stack(found).mean(0)

    return null_difference(codes_NL, references.values, len(plan.targets), plan.batch_size, predict)


def _joined(parts: Sequence[Mean]) -> Mean:
    return Mean(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def _sum(parts: Sequence[Mean]) -> Mean:
    """In order, so that the last bits are always the same."""
    total = vars(parts[0])
    for part in parts[1:]:
        total = {name: total[name] + value for name, value in vars(part).items()}
    return Mean(**total)


def _mean(total: Mean, n: int) -> Mean:
    return total if n == 1 else Mean(**{name: value / n for name, value in vars(total).items()})
