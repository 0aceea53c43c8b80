"""What the observing pass records for the replaying one."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dlshap_core.rules.rows import PassesDiffer


class Overwritten(Exception):
    """The model overwrote a tensor that was kept without a copy."""


@dataclass(frozen=True)
class Kept:
    """Tensors of the observing pass, and how often each had been written to when it was recorded."""

    tensors: list[Tensor]
    versions: list[int]


@dataclass
class Tape:
    """What the observing pass recorded, in call order; a replaying pass must consume all of it in the same order.

    Attributes:
        serves_again: another replaying pass follows, so that nothing is let go.
    """

    entries: list[tuple[str, Any]] = field(default_factory=list)
    position: int = 0
    breaks_ties: bool = False  # the last bits of equal inputs tell which wins: both passes must compute them alike
    serves_again: bool = False

    def add(self, name: str, payload: Any) -> None:
        """Record what an operation of this name needs."""
        self.entries.append((name, payload))

    def take(self, name: str) -> Any:
        """The next record, which must be of this name."""
        if self.position == len(self.entries):
            raise PassesDiffer(f"the references go through one more operation, {name!r}, than the sequence")
        recorded, payload = self.entries[self.position]
        if not self.serves_again:
            self.entries[self.position] = recorded, None  # whoever takes it decides how long it is kept
        self.position += 1
        if recorded != name:
            raise PassesDiffer(
                f"ruled operation {self.position} is {recorded!r} for the sequence and {name!r} for the references"
            )
        return payload

    def check_consumed(self) -> None:
        """Raise PassesDiffer if records are left."""
        if self.position < len(self.entries):
            name, _ = self.entries[self.position]
            raise PassesDiffer(f"the sequence goes through one more operation, {name!r}, than the references")
