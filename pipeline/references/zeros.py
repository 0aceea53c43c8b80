"""One reference: no base at any position."""

from dataclasses import dataclass

from pipeline.inputs.facts import InputFacts
from pipeline.references.fixed import Fixed


@dataclass
class Zeros(Fixed):
    """One reference: no base at any position."""

    name: str = "zeros"

    def column(self, facts: InputFacts) -> list[float]:
        return [0.0] * 4
