"""Multipliers of the pairs of one batch: two passes, and the gradient between.

Shape legend: S sequences and K references of each in a batch, B = S K rows, T targets, A alphabet, L length.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlshap_core.passes.decisions import Decided
from dlshap_core.passes.model_passes import WRITES_INTO_PIECES, ModelPasses
from dlshap_core.passes.tape import Overwritten, Tape
from dlshap_core.passes.targets import Contrast, value_of
from dlshap_core.rules.rows import RowPairing

_OVERWRITTEN = ("modified by an inplace operation", WRITES_INTO_PIECES)  # the latter of a block, computed again


@dataclass(frozen=True)
class Observed:
    """The first pass of a batch.

    Attributes:
        n_rows: of each sequence, with padding.
        tape: what it recorded.
        y: (S n_rows, outputs).
        decided: see `Decisions`.
    """

    n_rows: int
    tape: Tape
    y: Tensor
    decided: Decided


@dataclass
class Batch:
    """Results of one block.

    Attributes:
        sequences: (S, A, L).
        references: (S, K, A, L).
        multipliers, contributions: (S, T, K, A, L).
        prediction: (S, T), y at the sequences.
        reference_prediction: (S, T, K), y at the references.
        convergence_delta: (S, T, K), in float64.
        outputs: of the model in the two passes, of all its targets: (S, outputs) and (B, outputs).
        is_complete: whether contributions sum to the difference of predictions, by design.
        observed: the first pass, where it serves the next batch, too.
    """

    sequences: Tensor
    references: Tensor
    multipliers: Tensor
    contributions: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor
    outputs: tuple[Tensor, Tensor]
    is_complete: bool
    observed: Observed | None


class PairRunner:
    """Runs blocks of pairs through a borrowed model.

    Attributes:
        passes: over the model.
        is_careful: whether what is kept for the way back is copied, as the model overwrites its activations.
    """

    def __init__(self, passes: ModelPasses, is_careful: bool = False, breaks_ties: bool = False) -> None:
        self.passes = passes
        self.is_careful = is_careful
        self._breaks_ties = breaks_ties

    @contextlib.contextmanager
    def in_float64(self) -> Iterator["PairRunner"]:
        """The same, in float64."""
        with self.passes.in_float64() as passes:
            yield PairRunner(passes, self.is_careful, self._breaks_ties)

    def run(
        self,
        sequences: Tensor,
        references: Tensor,
        rows: slice,
        n_repeats: int,
        is_first: bool = True,
        more_follow: bool = False,
        observed: Observed | None = None,
    ) -> Batch:
        """Both passes.

        Args:
            sequences: (S, A, L).
            references: (S, K, A, L).
            rows: of the sequences, among those of the extra inputs.
            n_repeats: how often each sequence goes through the first pass: 1, or once for each reference.
            is_first: see `ModelPasses`.
            more_follow: the next batch has further references of the sequence, and may have its first pass; not beside
                a single reference, where that would be much memory.
            observed: the first pass of the batch before, where this one goes on with the same sequence.
        """
        passes = self.passes
        n_sequences, n_references = references.shape[:2]
        # A batch of one row is computed by other kernels, with other last bits, than any larger one.
        is_alone = n_sequences == n_repeats == 1
        needs_company = is_alone and self._breaks_ties
        if needs_company and n_references == 2:
            n_repeats = 2  # one row of padding would make both passes equal in size, and rows are told by size
        n_padding = 1 if needs_company and n_references > 2 else 0
        layout = RowPairing(
            n_sequences * n_repeats, n_references // n_repeats, n_padding, passes.targets.is_one, self.is_careful
        )
        n_rows = n_repeats + n_padding
        if observed is None or observed.n_rows != n_rows:
            tape = Tape()
            y, decided = passes.observe(sequences, rows, n_rows, tape, layout, is_first)
            if is_alone and n_references > 1 and not self._breaks_ties and tape.breaks_ties:
                self._breaks_ties = True
                return self.run(sequences, references, rows, 1, is_first, more_follow)
            observed = Observed(n_rows, tape, y, decided)
        tape = observed.tape
        tape.position, tape.serves_again = 0, more_follow and n_repeats == 1 and n_references > 1
        of_sequences = observed.y[::n_rows]
        prediction = passes.targets.select(of_sequences).to(passes.dtype)

        leaf = references.flatten(0, 1).clone().requires_grad_()  # the caller's own may be an inference tensor
        y, is_complete = passes.replay(leaf, rows, n_references, tape, layout, is_first)
        multipliers = (
            _gradients(y, leaf, passes.targets.found(y)).unflatten(1, (n_sequences, n_references)).transpose(0, 1)
        )
        is_complete &= passes.blocks.is_complete
        passes.custom_function = passes.custom_function or passes.blocks.custom_function
        y = y.detach()
        reference_prediction = passes.targets.select(y).to(passes.dtype)
        reference_prediction = reference_prediction.unflatten(0, (n_sequences, n_references)).transpose(1, 2)
        contributions = multipliers * (sequences[:, None] - references).unsqueeze(1)
        # Summed in float64: the delta should show the rules' error, not that of adding up.
        explained = contributions.sum((-2, -1), dtype=torch.float64)
        delta = explained - (prediction[..., None].double() - reference_prediction.double())
        passes.decisions.keep(observed.decided)
        found = (multipliers, contributions, prediction, reference_prediction, delta)
        outputs, kept = (of_sequences, y), observed if tape.serves_again else None
        return Batch(sequences, references, *found, outputs=outputs, is_complete=is_complete, observed=kept)


def _gradients(y: Tensor, leaf: Tensor, targets: Sequence[int | Contrast]) -> Tensor:
    """(T, B, A, L): the gradient of each target at the references; zero where the output does not depend on them."""
    gradients = []
    for position, target in enumerate(targets):
        gradient = None
        if y.requires_grad:
            keeps_graph = position < len(targets) - 1
            try:
                value = value_of(y, target).sum()
                (gradient,) = torch.autograd.grad(value, leaf, retain_graph=keeps_graph, allow_unused=True)
            except RuntimeError as error:
                if not any(said in str(error) for said in _OVERWRITTEN):
                    raise
                raise Overwritten(
                    f"the model overwrites in place a tensor that is needed to go back through it: {error}"
                ) from error
        gradients.append(torch.zeros_like(leaf) if gradient is None else gradient)
    return torch.stack(gradients)
