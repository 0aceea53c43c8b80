"""One reference: the frequencies of A, C, G and T at every position."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config.settings import setting
from pipeline.inputs.facts import InputFacts
from pipeline.references.fixed import Fixed


@dataclass
class Background(Fixed):
    """One reference: the frequencies of A, C, G and T at every position."""

    name: str = "background"
    frequencies: list[float] = setting(
        "of A, C, G, T; empty: those of the input's known bases", list, fingerprint="resolved", is_plain=True
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        given = self.frequencies
        if given and not (len(given) == 4 and min(given) >= 0 and abs(sum(given) - 1) < 1e-6):
            yield f"references.frequencies={given}; expected four shares, of A, C, G and T, that sum to 1"

    def column(self, facts: InputFacts) -> list[float]:
        measured = [count / sum(facts.base_counts) for count in facts.base_counts]
        return [float(frequency) for frequency in self.frequencies or measured]
