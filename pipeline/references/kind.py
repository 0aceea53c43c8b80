"""What a kind of references is: its settings, resolved once on the driver, loaded by the workers, drawn shard by shard.

References follow from the row's sequence, the seed and the reference's number alone; the row's number only selects its
own references from an array.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.config.schema import ReferencesConfig
from pipeline.inputs.facts import InputFacts
from pipeline.planning.plan import Plan
from pipeline.references.base import Draw, ResolvedReferences

Pool = Callable[[], np.ndarray]
"""Reads the (P, L) windows that the store keeps."""


@dataclass
class ReferenceKind(ReferencesConfig, ABC):
    """The settings of one kind; a new kind is a subclass in a module of its own (see config/registry.py)."""

    counts: ClassVar[str] = "one reference"  # how many there are, for people

    @abstractmethod
    def resolve(self, facts: InputFacts) -> ResolvedReferences:
        """Decide all that is to be decided. Raises UserError for files that cannot be used with this input."""

    @classmethod
    @abstractmethod
    def load(cls, plan: Plan, pool: Pool) -> Draw:
        """The references of a run, from its plan. Raises UserError for a file that is gone."""


@dataclass
class Drawn(ReferenceKind, ABC):
    """Kinds of which any number of references can be drawn."""

    is_drawn: ClassVar[bool] = True

    @property
    def n(self) -> int:
        """References of each sequence."""
        assert self.n_shuffles is not None
        return self.n_shuffles
