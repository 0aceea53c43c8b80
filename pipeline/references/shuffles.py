"""Shuffles of each sequence: reference k is drawn with numpy's seed `random_state + k`, whatever the other rows are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.inputs.facts import InputFacts
from pipeline.planning.plan import Plan
from pipeline.references.base import Draw, ResolvedReferences, ShardReferences, shared
from pipeline.references.kind import Drawn, Pool


@dataclass
class Shuffles(Drawn, ABC):
    """Kinds that shuffle each sequence by itself."""

    def resolve(self, facts: InputFacts) -> ResolvedReferences:
        own = self.of_plan()
        return ResolvedReferences(self.n, {"name": self.name, **own}, {"n_shuffles": self.n, **own})

    def of_plan(self) -> dict[str, int]:
        """Numbers that `shuffle` takes, beside the seeds."""
        return {}

    @staticmethod
    @abstractmethod
    def shuffle(codes_NL: np.ndarray, seeds: Sequence[int], **of_plan: int) -> np.ndarray:
        """(N, L) codes, a seed for each of R references -> (N, R, L) codes."""

    @classmethod
    def load(cls, plan: Plan, pool: Pool) -> Draw:
        own = {key: value for key, value in plan.references.items() if key != "name"}
        seeds = [plan.random_state + k for k in range(plan.n_references)]

        def draw(codes_NL: np.ndarray, first_row: int) -> ShardReferences:
            return shared(cls.shuffle(codes_NL[:: plan.rows_per_group], seeds, **own), plan.rows_per_group)

        return draw
