"""How the rows of the two passes belong together.

Shape legend: S sequences, R references of each.
"""

from dataclasses import dataclass

from torch import Tensor


class PassesDiffer(Exception):
    """The two passes did not do the same, or their rows cannot be matched; what happened is in the message."""


@dataclass(frozen=True)
class RowPairing:
    """How rows of the observing pass pair with rows of the replaying one: S sequences, each with R references.

    The observing pass may hold further rows behind the sequences, `n_padding` of them, which are dropped.
    """

    n_sequences: int
    n_references: int
    n_padding: int = 0
    goes_back_once: bool = True  # for a single target; for several it pays to keep multipliers
    is_careful: bool = False  # copy what is kept for the way back, as the model overwrites its activations

    @property
    def is_one_pair(self) -> bool:
        """Whether nothing but one sequence and one reference go through the passes, as where memory is dear."""
        return self.n_sequences * self.n_references == 1

    def axis(self, observed: Tensor, reference: Tensor) -> int | None:
        """The axis of the rows, or None where both have the same rows (R = 1).

        It is the one axis with S elements in one pass and S x R in the other. Rows merged with another axis, or none at
        all, cannot be told by their sizes: then the passes are run with equal rows instead.
        """
        if self.n_references == 1 and observed.shape == reference.shape:
            return None
        if observed.ndim == reference.ndim:
            differing = [d for d in range(observed.ndim) if observed.shape[d] != reference.shape[d]]
            expected = (self.n_sequences + self.n_padding, self.n_sequences * self.n_references)
            if len(differing) == 1 and (observed.shape[differing[0]], reference.shape[differing[0]]) == expected:
                return differing[0]
        raise PassesDiffer(
            f"an activation has shape {tuple(observed.shape)} for {self.n_sequences} sequences and "
            f"{tuple(reference.shape)} for {self.n_sequences * self.n_references} references"
        )

    def expand(self, observed: Tensor, reference: Tensor) -> Tensor:
        """The observed activation repeated to the rows of the reference's."""
        axis = self.axis(observed, reference)
        if axis is None:
            return observed
        return observed.narrow(axis, 0, self.n_sequences).repeat_interleave(self.n_references, axis)

    def paired(self, observed: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Views of both that broadcast: (..., S, 1, ...) and (..., S, R, ...)."""
        axis = self.axis(observed, reference)
        if axis is None:
            return observed, reference
        observed = observed.narrow(axis, 0, self.n_sequences).unsqueeze(axis + 1)
        return observed, reference.unflatten(axis, (self.n_sequences, self.n_references))

    def keep(self, x: Tensor, is_overwritten: bool = False) -> Tensor:
        """A tensor to be kept for the way back, which the operation itself may overwrite."""
        return x.clone() if is_overwritten or self.is_careful else x
