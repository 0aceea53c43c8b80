"""What a model decides from values of its input in Python: `if`, `assert`, `while`, or how many places fulfil a test.

Attributions hold where the model takes the same way for every sequence and every reference. So decisions are recorded
by the line that takes them: those of the first batch, or those that an earlier call kept, are expected of every batch.
"""

from collections.abc import Mapping
from typing import Any

from dlshap_core.errors import DecisionError

_WAY_OUT = "write it so that each sequence is treated alike, with torch.where() for instance"

# By the line: what was decided there, in order (a loop decides several times).
Decided = dict[str, list[Any]]


class Decisions:
    """What is expected.

    Args:
        expected: what another call decided, with the same model; None takes the first batch for it.
    """

    def __init__(self, expected: Mapping[str, list[Any]] | None = None) -> None:
        self.expected: Decided = {line: list(values) for line, values in (expected or {}).items()}
        self._is_open = expected is None

    def keep(self, decided: Decided) -> None:
        """Expect from now on what a batch decided that was found good."""
        if self._is_open:
            for line, values in decided.items():
                self.expected.setdefault(line, values)

    def check_rows(self, by_row: list[Any], line: str, where: str) -> None:
        """What the rows of a batch, each asked alone, decide at a line, where the model asks for the whole batch.

        Raises:
            DecisionError: they differ; it names the first that is not as expected, or else the first of the fewest.
        """
        values = sorted(set(by_row), key=by_row.count)
        if len(values) < 2:
            return
        expected = [value for value in values if self.expected.get(line) and value in self.expected[line]]
        many = expected[0] if len(expected) == 1 else values[-1]
        few = next(value for value in values if value != many)
        raise DecisionError(
            f"{where} decides for a whole batch, and its sequences differ: it is {_text(few)} for this one and "
            f"{_text(many)} for others: {_WAY_OUT}",
            by_row.index(few),
        )

    def check(self, decided: Decided, line: str, where: str) -> None:
        """The last decision taken at a line, against what is expected of it.

        Raises:
            DecisionError: it is another.
        """
        value, place = decided[line][-1], len(decided[line]) - 1
        if line not in self.expected:
            if self._is_open:
                return
            raise DecisionError(
                f"{where} decides {_text(value)} where the sequence that the model was tried on was not asked: "
                f"{_WAY_OUT}"
            )
        expected = self.expected[line]
        if place < len(expected) and expected[place] == value:
            return
        if any(other != value for other in expected):
            before = _text(expected[min(place, len(expected) - 1)])
            raise DecisionError(f"{where} decides {_text(value)}, and {before} for the sequences before: {_WAY_OUT}")


def _text(value: Any) -> str:
    return f"{value:g} places a sequence" if isinstance(value, float) else str(value)
