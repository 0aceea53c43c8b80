"""The attributions of some rows: of every fold of the model, on one strand or both.

Shape legend: N rows, F folds, T targets, R references, L positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dlshap_core.engine import Attribution, attribute
from dlshap_core.sequences import one_hot
from pipeline.args import Args, as_tensors, other_strand
from pipeline.hardware import numbers, repeatable
from pipeline.plan import Plan
from pipeline.references import ShardReferences

Folds = Sequence[nn.Module]


@dataclass(frozen=True)
class Mean:
    """Attributions, averaged over strands where both were asked for.

    Attributes:
        hypothetical: (N, T, 4, L) float32.
        prediction: (N, T) float32.
        reference_prediction: (N, T, R) float32.
        convergence_delta: (N, T, R) float32; of a mean, the mean.
    """

    hypothetical: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor


@dataclass(frozen=True)
class Attributed:
    """What comes of some rows.

    Attributes:
        mean: over the folds.
        folds: each fold's; only the mean's where the plan keeps no more.
        deltas: (N, S, R) float32, S being all folds, strands and targets: of a mean they could cancel.
    """

    mean: Mean
    folds: list[Mean]
    deltas: Tensor


def attribute_rows(
    folds: Folds, plan: Plan, codes_NL: np.ndarray, references: ShardReferences, args: Args = ()
) -> Attributed:
    """Attributions of (N, L) uint8 codes as the plan says; every fold and strand sees the same references.

    `args` are the model's further inputs, N rows each, the same for a sequence and its references.
    """
    further = as_tensors(args)
    turned = [other_strand(arg, plan.length) for arg in further]
    kept: list[Mean] = []
    total: Mean | None = None
    deltas: list[Tensor] = []
    with repeatable(plan.threads, plan.deterministic):
        for module in folds:
            strands = [_attribute(module, plan, one_hot(codes_NL), references, further)]
            if plan.reverse_complement:
                other = _attribute(module, plan, _turned(one_hot(codes_NL)), references.turned(), turned)
                strands.append(Mean(**{**vars(other), "hypothetical": _turned(other.hypothetical)}))
            deltas += [strand.convergence_delta for strand in strands]
            fold = _mean(_sum(strands), len(strands))
            total = fold if total is None else _sum([total, fold])
            if plan.per_fold:
                kept.append(fold)
    assert total is not None  # there is at least one fold
    return Attributed(_mean(total, len(folds)), kept, torch.cat(deltas, dim=1))


def _attribute(module: nn.Module, plan: Plan, X: Tensor, references: ShardReferences, args: Sequence[Tensor]) -> Mean:
    found: Attribution = attribute(
        module,
        X,
        references,
        args=args,
        targets=plan.targets,
        batch_size=plan.batch_size,
        device=plan.device,
        **numbers(plan.dtype),
    )
    names = ("hypothetical", "prediction", "reference_prediction", "convergence_delta")
    return Mean(**{name: getattr(found, name) for name in names})


def _sum(parts: Sequence[Mean]) -> Mean:
    """In order, so that the last bits are always the same."""
    total = vars(parts[0])
    for part in parts[1:]:
        total = {name: total[name] + value for name, value in vars(part).items()}
    return Mean(**total)


def _mean(total: Mean, n: int) -> Mean:
    return total if n == 1 else Mean(**{name: value / n for name, value in vars(total).items()})


def _turned(values: Tensor) -> Tensor:
    """The reverse complement along the last two axes: the complement of A, C, G, T is their reverse."""
    return values.flip(-1, -2)
