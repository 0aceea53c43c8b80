"""What is asked of batches: that sequences stay apart, that contributions add up, that the model forgets its calls.

Most of it is asked of the first batch, and of the first of each other size; a later batch costs nothing more.

Shape legend: S sequences and K references of each in a batch, T targets, A alphabet, L length.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dlshap_core.errors import UnsupportedModelError, is_out_of_memory
from dlshap_core.passes.mixing import MIXES, require_rows_apart
from dlshap_core.passes.pairs import Batch, PairRunner
from dlshap_core.passes.tape import Overwritten
from dlshap_core.passes.tolerance import HALVES, Miss, Tolerance, worst_miss
from dlshap_core.rules.rows import PassesDiffer

_REPEATS = 1e-4  # relative to the largest prediction: of the same sequence, computed in the same way
_ROUNDING_OF_FEW = 1e-3  # of a miss, in fewer pairs at once: rounding is not so much less there
_ROUNDING_LEFT = 0.1  # of a miss, in float64: what is rounding nearly goes away there


class Incomplete(Exception):
    """Contributions do not sum to the difference of predictions."""


class Checks:
    """Of the batches of one call.

    Args:
        pairs: what runs the batches.
    """

    def __init__(self, pairs: PairRunner) -> None:
        self._pairs = pairs
        self._passes = pairs.passes
        self._sizes: set[tuple[int, int]] = set()  # of batches found good: sequences, references of each
        self._first: tuple[Tensor, slice, Tensor] | None = None  # a sequence, its row, and its prediction alone

    @property
    def has_passed(self) -> bool:
        """Whether a batch was found good."""
        return bool(self._sizes)

    def restart(self) -> None:
        """Ask everything again."""
        self._sizes.clear()

    def check(self, batch: Batch, sequences: Tensor, rows: slice, n_repeats: int) -> None:
        """Ask what is to be asked of a batch.

        Args:
            batch: its results.
            sequences, rows, n_repeats: as they were given to `PairRunner.run`.

        Raises:
            Incomplete, UnsupportedModelError: see each check.
        """
        size = (batch.references.shape[0], batch.references.shape[1])
        is_new = size not in self._sizes and bool(torch.stack([y.isfinite().all() for y in batch.outputs]).all())
        is_first = is_new and not self.has_passed
        if is_first:
            require_rows_apart(self._passes, sequences, batch.references, rows, self._pairs.is_careful)
        if is_new:
            alone = self._check_alone(sequences, batch.outputs[0], rows, batch)
            self._check_alone(batch.references.flatten(0, 1), batch.outputs[1], rows, batch)
            self._first = self._first or (sequences[-1:], slice(rows.stop - 1, rows.stop), alone)
        is_watched = self.has_passed and (self._passes.custom_function is not None or self._computes_in_half())
        if batch.is_complete and (is_first or is_watched):
            self._check_sums(batch, sequences, rows, n_repeats)
        if is_new:
            self._sizes.add(size)

    def check_unchanged(self) -> None:
        """After the last batch: the model must predict what it did at the first.

        It does not where it counts its calls, or keeps something from one for the next that cannot be put back.

        Raises:
            UnsupportedModelError: it does not.
        """
        if self._first is None:
            return
        x, row, before = self._first
        again = self._passes.plain_targets(x, row, 1)
        scale = before.abs().max()
        if not bool(((again - before).abs() <= _REPEATS * scale).all()):
            raise UnsupportedModelError(
                f"sequence {row.start} alone is predicted {again[0, 0].item():.7g} after the other sequences and "
                f"{before[0, 0].item():.7g} before them: the model keeps something from one call for the next"
            )

    def _check_alone(self, x: Tensor, y: Tensor, rows: slice, batch: Batch) -> Tensor:
        """The last row of one pass, run by itself and unobserved, must give the same prediction as in its batch.

        It does not where a model mixes the rows of a batch, draws numbers that cannot be seen, or where an operation is
        computed otherwise than by the model itself.

        Args:
            x: (S, A, L) or (S K, A, L), what went through the pass.
            y: (S, outputs) or (S K, outputs), what it returned.
            rows: of the sequences.
            batch: both passes, for the size of differences.

        Returns:
            (1, T), the prediction alone.

        Raises:
            UnsupportedModelError: it does not.
        """
        last = slice(rows.stop - 1, rows.stop)
        n_repeats = len(x) // (rows.stop - rows.start)

        def change(alone: Tensor, together: Tensor) -> Miss:
            return worst_miss((alone - together[-1:])[..., None], batch.prediction, batch.reference_prediction)

        def in_float64(exact: PairRunner) -> Miss:
            exactly, passes = x.double(), exact.passes
            alone = passes.plain_targets(exactly[-1:], last, 1)
            return change(alone, passes.observed_targets(exactly, rows, n_repeats))

        alone = self._passes.plain_targets(x[-1:], last, 1)
        what = f"the prediction of a sequence alone differs from that in a batch of {len(y)}"
        self._require(change(alone, self._passes.targets.select(y)), what, MIXES, in_float64, UnsupportedModelError)
        return alone

    def _check_sums(self, batch: Batch, sequences: Tensor, rows: slice, n_repeats: int) -> None:
        """In the first batch, and in all where a custom function or half precision is involved: contributions must add
        up.

        Every operation seen has an exact rule, so where they do not, something went past the function mode.

        Raises:
            Incomplete, UnsupportedModelError: they do not.
        """
        if self._passes.is_rough:
            return
        miss = worst_miss(batch.convergence_delta, batch.prediction, batch.reference_prediction)
        suspect = "scripted functions, other threads, torch.func or constructors of tensors, say"
        if self._passes.custom_function is not None:
            suspect = f"the custom autograd function {self._passes.custom_function!r}"
        advice = f"the model computes something that cannot be seen ({suspect}); write it with plain torch operations"

        def of_few(pairs: PairRunner) -> Miss:
            """Of the worst pair and a few beside it, their rows laid out in the same way."""
            first, start = (
                max(min(at, n - k), 0)
                for at, n, k in zip((miss.row, miss.reference), batch.references.shape[:2], (2, 4), strict=True)
            )
            dtype = pairs.passes.dtype
            some = batch.references[first : first + 2, start : start + 4].to(dtype)
            part = slice(rows.start + first, rows.start + first + some.shape[0])
            repeats = 1 if n_repeats == 1 else some.shape[1]
            again = pairs.run(sequences[first : first + 2].to(dtype), some, part, repeats)
            return worst_miss(again.convergence_delta, again.prediction, again.reference_prediction)

        what = "contributions miss the difference of predictions"
        # Rounding misses about as much in any batch; in this one rows may have come into another order.
        if not miss.is_within(self._tolerance()) and of_few(self._pairs).error < _ROUNDING_OF_FEW * miss.error:
            raise Incomplete(f"{what} by {miss}: {advice}")
        self._require(miss, what, advice, of_few, Incomplete)

    def _require(
        self,
        miss: Miss,
        what: str,
        advice: str,
        in_float64: Callable[[PairRunner], Miss],
        error: type[Incomplete | UnsupportedModelError],
    ) -> None:
        """A miss must be within the tolerance, or be rounding.

        Args:
            miss: the worst one.
            what, advice: of the message.
            in_float64: the same miss, computed again in float64.
            error: to raise.

        Raises:
            Incomplete, UnsupportedModelError: it is not; the latter where the model computes in half precision by
                itself.
        """
        passes = self._passes
        if miss.is_within(self._tolerance()):
            return
        if passes.lowered is not None and self._computes_in_half():
            modules = dict(passes.model.named_modules())
            raise UnsupportedModelError(passes.lowered.complaint(f"{what} by {miss}", passes.dtype, modules))
        if passes.is_rough or passes.dtype == torch.float64 or not self._is_rounding(miss, in_float64):
            raise error(f"{what} by {miss}: {advice}")

    def _is_rounding(self, miss: Miss, in_float64: Callable[[PairRunner], Miss]) -> bool:
        """Whether what misses is rounding: in float64 there is little of it."""
        is_small = miss.is_within(self._tolerance().unsure())
        try:
            with self._pairs.in_float64() as exact:
                left = in_float64(exact)
        except (Incomplete, PassesDiffer, UnsupportedModelError, Overwritten):
            return False
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return is_small  # it cannot be computed in float64
        # Part of it may be in float32, whatever is asked for.
        return left.error <= _ROUNDING_LEFT * miss.error or (exact.passes.lowered is not None and is_small)

    def _tolerance(self) -> Tolerance:
        """As wide as the numbers that were asked for."""
        passes = self._passes
        if passes.is_rough:
            return Tolerance.of(passes.computed_in if passes.uses_autocast else torch.bfloat16)
        if passes.lowered is None or passes.dtype in HALVES:
            return Tolerance.of(passes.dtype)
        # A model in float64 may do its softmax in float32, and no less.
        return Tolerance.of(torch.float32).strict() if self._computes_in_half() else Tolerance.of(torch.float32)

    def _computes_in_half(self) -> bool:
        """Whether the model computes in half precision by itself, in numbers that nobody asked for."""
        passes = self._passes
        asked = passes.is_rough or passes.dtype in HALVES
        return not asked and passes.lowered is not None and passes.lowered.dtype in HALVES
