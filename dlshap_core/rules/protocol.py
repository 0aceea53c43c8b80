"""What a rule may ask of the pass in which it is applied; `passes.recorder` has the pass itself.

Shape legend: S sequences, R references of each.
"""

from typing import Any, NoReturn, Protocol, Self

from torch import Tensor

from dlshap_core.kernels.memory_format import FormatChoice
from dlshap_core.rules.call import Call
from dlshap_core.rules.rows import RowPairing


class Pass(Protocol):
    """A pass over the model: observing (the sequences) or replaying (their references).

    Within `with forward:` the operations that a rule does itself are seen and ruled in turn.

    Attributes:
        replaying: False for the sequences, True for the references.
        rows: how the rows of the two passes pair.
        formats: of the activations in memory.
        is_complete: whether every rule used makes contributions sum to the difference of predictions, by design.
    """

    replaying: bool
    rows: RowPairing
    formats: FormatChoice
    is_complete: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *raised: Any) -> None: ...

    def record(self, call: Call, tensors: list[Tensor] | None = None, breaks_ties: bool = False) -> None:
        """Observing: keep the varying inputs of a call (or the tensors given) for the other pass; `breaks_ties` where
        the last bits of equal inputs tell which of them wins."""

    def recorded(self, name: str, n: int) -> list[Tensor]:
        """Replaying: the n tensors recorded at a call of this name, with the rows of the sequences."""

    def observed(self, call: Call, tensors: list[Tensor] | None = None) -> list[Tensor]:
        """Replaying: those recorded at this call, repeated to the rows of its inputs (or of the tensors given)."""

    def observed_pair(self, call: Call, expand: bool) -> tuple[Tensor, Tensor]:
        """Replaying: observed and reference input of a call of one input, as they broadcast, or both of the
        reference's shape."""

    def check_branch(self, name: str, value: Any, args: Any, by_row: list[Any] | None = None) -> None:
        """A Python value read from the input decides the model's path: it must be the same for all."""

    def by_row(self, call: Call) -> list[Any] | None:
        """What a question about a whole batch gives for each row alone; None where the first axis is not the rows."""

    def note_integration(self, name: str, n_nodes: int, error: float) -> None:
        """Tell the audit how many nodes an integrated operation needed."""

    def refuse(self, name: str, reason: str) -> NoReturn:
        """Stop: this operation cannot be attributed."""
