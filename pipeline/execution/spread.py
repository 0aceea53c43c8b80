"""The standard deviation of attributions over the references of a sequence.

With several folds or strands the value of a reference is its mean over these, as attributions are; the spread of the
folds is another question.

Shape legend: N rows, V variants, T targets, R references, L positions.
"""

from typing import Any

import torch
from torch import Tensor

from dlshap_core.engine import Attribution
from pipeline.planning.plan import Plan
from pipeline.store.schema import ALLELES_PER_VARIANT


class Spread:
    """Gathers the spread of some rows over the passes of a plan, one for each fold and strand.

    Where it does not follow from a single pass, the values of all references are held meanwhile: 4 N T R L bytes, and
    as much again for those of each further pass.
    """

    def __init__(self, plan: Plan) -> None:
        self._n_passes = len(plan.folds) * (2 if plan.reverse_complement else 1)
        self._has_variants = plan.rows_per_group == ALLELES_PER_VARIANT
        holds_all = self._n_passes > 1 or self._has_variants
        self.asked: dict[str, Any] = {
            "per_reference": plan.spread and holds_all,
            "spread": plan.spread and not holds_all,
        }
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
