"""The standard deviation of attributions over the references of a sequence.

With several folds or strands the value of a reference is its mean over these, as attributions are; the spread of the
folds is another question.

Shape legend: N rows, V variants, T targets, R references, L positions.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dlshap_core.engine import Attribution
from pipeline.planning.plan import Plan
from pipeline.store.schema import ALLELES_PER_VARIANT

MOST_HELD = 1 << 28  # bytes of the values of all references, unless those of the rows of one batch are more


def pieces(plan: Plan, n_rows: int) -> Iterator[slice]:
    """Rows of a shard that are attributed by themselves, so that few values of references are held at once: whole
    batches and whole variants, so that the bits are those of all at once."""
    if not _holds_all(plan):
        yield slice(0, n_rows)
        return
    held = (8 if plan.dtype == "float64" else 4) * len(plan.targets) * plan.n_references * plan.length
    held *= 1 if _n_passes(plan) == 1 else 2
    unit = math.lcm(max(1, plan.batch_size // plan.n_references), plan.rows_per_group)
    step = max(1, MOST_HELD // (held * unit)) * unit
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _holds_all(plan: Plan) -> bool:
    """Whether the spread does not follow from a single pass."""
    return plan.spread and (_n_passes(plan) > 1 or plan.rows_per_group == ALLELES_PER_VARIANT)


def _n_passes(plan: Plan) -> int:
    return len(plan.folds) * (2 if plan.reverse_complement else 1)


class Spread:
    """Gathers the spread of some rows over the passes of a plan, one for each fold and strand.

    Where it does not follow from a single pass, the values of all references are held meanwhile: 4 N T R L bytes, and
    as much again with several passes; see `pieces`.
    """

    def __init__(self, plan: Plan) -> None:
        self._n_passes = _n_passes(plan)
        self._has_variants = plan.rows_per_group == ALLELES_PER_VARIANT
        holds_all = _holds_all(plan)
        self.asked: dict[str, Any] = {"per_reference": holds_all, "spread": plan.spread and not holds_all}
        self._deviation: Tensor | None = None
        self._total: Tensor | None = None

    def add(self, found: Attribution, is_other_strand: bool) -> None:
        """Take a pass over all rows."""
        self._deviation = found.attribution_sd
        if found.observed is not None:
            observed = found.observed.flip(-1) if is_other_strand else found.observed
            self._total = observed if self._total is None else self._total.add_(observed)

    def arrays(self) -> dict[str, Tensor]:
        """(N, T, L) `attribution_sd`, and of variants (V, T, L) `attribution_difference_sd`; none if not asked for."""
        if self._total is None:
            return {} if self._deviation is None else {"attribution_sd": self._deviation}
        found = {"attribution_sd": self._deviation_of(list(self._total))}
        if self._has_variants:
            differences = [alt - ref for ref, alt in zip(self._total[::2], self._total[1::2], strict=True)]
            found["attribution_difference_sd"] = self._deviation_of(differences)
        return found

    def _deviation_of(self, totals: list[Tensor]) -> Tensor:
        """Row by row, so that little is held in float64: of (T, R, L) each."""
        return torch.stack([(row.double() / self._n_passes).std(1).to(row.dtype) for row in totals])
