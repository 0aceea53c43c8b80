"""One reference for all sequences, the same column at every position."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from pipeline.inputs.facts import InputFacts
from pipeline.planning.plan import Plan
from pipeline.references.base import Draw, ResolvedReferences, ShardReferences
from pipeline.references.kind import Pool, ReferenceKind


@dataclass
class Fixed(ReferenceKind, ABC):
    """Kinds of which there is one reference."""

    n_shuffles: int | None = None

    @abstractmethod
    def column(self, facts: InputFacts) -> list[float]:
        """What every position holds, of A, C, G and T."""

    def resolve(self, facts: InputFacts) -> ResolvedReferences:
        column = self.column(facts)
        return ResolvedReferences(1, {"name": self.name, "frequencies": column}, {"frequencies": column})

    @classmethod
    def load(cls, plan: Plan, pool: Pool) -> Draw:
        column = np.array(plan.references["frequencies"], dtype=np.float32)
        values = np.tile(column[:, None], (1, 1, 1, plan.length))

        def draw(codes_NL: np.ndarray, first_row: int) -> ShardReferences:
            return ShardReferences(np.broadcast_to(values, (len(codes_NL), *values.shape[1:])))

        return draw
