"""One reference: 0.25 of each base at every position."""

from dataclasses import dataclass

from pipeline.inputs.facts import InputFacts
from pipeline.references.fixed import Fixed


@dataclass
class Uniform(Fixed):
    """One reference: 0.25 of each base at every position."""

    name: str = "uniform"

    def column(self, facts: InputFacts) -> list[float]:
        return [0.25] * 4
