"""Runs batches of (sequence, reference) pairs, as often as it takes to match the rows of the two passes.

Shape legend: S sequences and K references of each in a batch, A alphabet, L length.
"""

from torch import Tensor

from dlshap_core.errors import DecisionError, UnsupportedModelError, is_out_of_memory
from dlshap_core.kernels.memory_format import FormatMatters
from dlshap_core.one_hot import one_hot
from dlshap_core.passes.blocks import CannotSplit
from dlshap_core.passes.checks import Checks, Incomplete
from dlshap_core.passes.model_passes import ModelPasses, SavingMatters
from dlshap_core.passes.pairs import Batch, Observed, PairRunner
from dlshap_core.passes.tape import Overwritten, Tape
from dlshap_core.rules.rows import PassesDiffer, RowPairing


class BatchRunner:
    """Runs the batches of one call, and checks them.

    Args:
        passes: over the borrowed model.

    Attributes:
        checks: of these batches.
    """

    def __init__(self, passes: ModelPasses) -> None:
        self._passes = passes
        self._pairs = PairRunner(passes)
        self.checks = Checks(self._pairs)
        self._has_equal_rows = False
        self._observed: Observed | None = None  # of the last batch, if the next one goes on with its sequence

    def run(self, X: Tensor, references: Tensor, rows: slice, more_follow: bool = False) -> Batch:
        """Multipliers of every pair of sequences (S, A, L) with their references, (S, K, A, L) or codes (S, K, L);
        `more_follow` where the next batch has further references of the same sequence."""
        device, dtype = self._passes.device, self._passes.dtype
        sequences = X.detach().to(device, non_blocking=True).to(dtype)
        references = references.detach().to(device, non_blocking=True)
        if references.ndim == 3:
            references = one_hot(references, dtype, n_letters=X.shape[1])
        references = references.to(dtype)
        observed, self._observed = self._observed, None
        try:
            return self._run_matched(sequences, references, rows, more_follow, observed)
        except (FormatMatters, UnsupportedModelError, RuntimeError) as error:
            if not self._passes.formats.is_changed or is_out_of_memory(error):
                raise
        self._passes.leave_formats()
        self._has_equal_rows = False  # this, and what was checked, was found out in the other format
        self.checks.restart()
        return self._run_matched(sequences, references, rows, more_follow)

    def _run_matched(
        self, sequences: Tensor, references: Tensor, rows: slice, more_follow: bool, observed: Observed | None = None
    ) -> Batch:
        """The batch, after as many tries as it takes to match the rows of the two passes."""
        n_references = references.shape[1]
        while True:
            n_repeats = n_references if self._has_equal_rows else 1
            try:
                is_first = not self.checks.has_passed
                batch = self._pairs.run(sequences, references, rows, n_repeats, is_first, more_follow, observed)
                self.checks.check(batch, sequences, rows, n_repeats)
                self._observed = batch.observed
                return batch
            except Overwritten as error:
                if self._pairs.is_careful:
                    raise UnsupportedModelError(str(error)) from error
                self._pairs.is_careful = True
            except SavingMatters:
                self._passes.saves_nothing = False
            except CannotSplit as error:
                self._passes.blocks.leave(error.name)
            except DecisionError as error:
                raise self._with_row(error, sequences, rows) from error
            except (PassesDiffer, Incomplete) as error:
                if n_repeats == n_references:
                    raise _unsupported(error) from error
                # Rows cannot be matched across passes of different sizes: from now on both get the same rows.
                self._has_equal_rows = True
            observed = None  # of a pass in another way

    def _with_row(self, error: DecisionError, sequences: Tensor, rows: slice) -> DecisionError:
        """The same, with the number of the sequence in this call; where the error does not know it, each is run
        alone."""
        row = error.row
        for i in range(len(sequences) if row is None else 0):
            alone = slice(rows.start + i, rows.start + i + 1)
            try:
                self._passes.observe(
                    sequences[i : i + 1], alone, 1, Tape(), RowPairing(1, 1), not self.checks.has_passed
                )
            except DecisionError:
                row = i
                break
        return DecisionError(error.text, None if row is None else rows.start + row)


def _unsupported(error: PassesDiffer | Incomplete) -> UnsupportedModelError:
    if isinstance(error, Incomplete):
        return UnsupportedModelError(str(error))
    return UnsupportedModelError(f"the model does not do the same on a sequence and on its reference: {error}")
