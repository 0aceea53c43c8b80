"""What comes of the batches, collected on the CPU.

Shape legend: N sequences, R references of each, T targets, A alphabet, L length, S sequences and K references in a
batch.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlshap_core.passes.moments import Moments, moments
from dlshap_core.passes.pairs import Batch

_IN_FLIGHT = 2  # batches of a GPU that may be computed before the results of one are waited for


@dataclass(frozen=True)
class Attribution:
    """What `attribute` returns; all on the CPU, in the engine's dtype (float32 for half precision).

    Attributes:
        hypothetical: (N, T, A, L), the attribution each base would have at each position, averaged over references:
            m[c] - sum_c' r[c'] m[c']. Multiply by the one-hot sequence for the observed base's attribution.
        prediction: (N, T), y at the sequences.
        reference_prediction: (N, T, R), y at the references.
        convergence_delta: (N, T, R), sum m (x - r) - (y(x) - y(r)); zero but for rounding where every rule is exact.
        multipliers: (N, T, R, A, L), with raw_outputs=True only.
        observed: (N, T, R, L), the observed base's attribution against each reference, with per_reference=True only.
        attribution_sd: (N, T, L), its standard deviation over the references (with R - 1), with spread=True only.
        alone: (M, T), y at the further sequences that were asked for, each in a batch of its own.
    """

    hypothetical: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor
    multipliers: Tensor | None = None
    observed: Tensor | None = None
    attribution_sd: Tensor | None = None
    alone: Tensor | None = None


@dataclass(frozen=True)
class Kept:
    """What is kept of every batch beside the means."""

    multipliers: bool = False
    observed: bool = False
    spread: bool = False


@dataclass(frozen=True)
class PairBlock:
    """The pairs of one batch: every reference in `ks` of every sequence in `rows`."""

    rows: slice
    ks: slice


@dataclass(frozen=True)
class _Part:
    """What is kept of a batch: sums over its references (S, T, A, L), and the rest as in `Batch` and `Attribution`;
    `moments` (2, S, T, L) of the observed base's attribution."""

    total: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor
    multipliers: Tensor | None
    observed: Tensor | None
    moments: Tensor | None

    def copied(self, copy: Callable[[Tensor], Tensor]) -> "_Part":
        """A copy of each."""
        return replace(self, **{name: copy(x) for name, x in vars(self).items() if x is not None})


def pinned(x: Tensor) -> Tensor:
    """A copy of x, on the CPU, in memory that a GPU copies from by itself; x where the system has no such memory."""
    try:
        return x.contiguous().pin_memory()
    except RuntimeError:
        return x


def _pinned_like(x: Tensor) -> Tensor:
    """Room for a copy on the CPU, whatever the default device, pinned where the system has such memory."""
    try:
        return torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
    except RuntimeError:
        return torch.empty(x.shape, dtype=x.dtype, device="cpu")


class Results:
    """Takes batches in any order and puts them in their place.

    Batches of a GPU are copied while the next ones are computed: nothing waits for the device but what is two batches
    old.

    Args:
        X: (N, A, L), for its shape.
        n_references: of each sequence.
        n_bases: channels of the alphabet.
        kept: what to collect beside the means.
        device: where batches are computed.
        progress: called with the number of pairs and the convergence deltas (S, T, K) of each batch.
    """

    def __init__(
        self,
        X: Tensor,
        n_references: int,
        n_bases: int,
        kept: Kept,
        device: torch.device,
        progress: Callable[[int, Tensor], None] | None,
    ) -> None:
        self._X = X
        self._n_bases = n_bases
        self._n_references = n_references
        self._kept = kept
        looks = kept.observed or kept.spread
        self._has_base_everywhere = looks and bool((X[:, :n_bases].sum(1) == 1).all())
        self._device = device
        self._progress = progress
        self._in_flight: deque[tuple[PairBlock, _Part, torch.cuda.Event | None]] = deque()
        self._dtype: torch.dtype | None = None

    def add(self, block: PairBlock, batch: Batch) -> None:
        """Take the results of a block."""
        self._in_flight.append((block, *self._to_cpu(self._part(batch))))
        while len(self._in_flight) > (_IN_FLIGHT if self._device.type == "cuda" else 0):
            self._land()

    def finish(self) -> Attribution:
        """The results of all blocks."""
        while self._in_flight:
            self._land()
        assert self._dtype is not None  # there is at least one block
        hypothetical = (self._sum / self._n_references).to(self._dtype)
        sd = None if self._moments is None else self._moments.deviation().to(self._dtype)
        return Attribution(
            hypothetical,
            self._prediction,
            self._reference_prediction,
            self._delta,
            multipliers=self._multipliers,
            observed=self._observed,
            attribution_sd=sd,
        )

    def _part(self, batch: Batch) -> _Part:
        of_bases = batch.multipliers[:, :, :, : self._n_bases]
        references = batch.references[:, :, : self._n_bases].unsqueeze(1)
        total = of_bases.sum(2) - (of_bases * references).sum((2, 3)).unsqueeze(2)
        if self._n_bases < batch.multipliers.shape[3]:
            contributions = batch.contributions[:, :, :, self._n_bases :].sum(2)
            total = torch.cat([total, contributions], dim=2)
        observed = self._observed_of(batch) if self._kept.observed or self._kept.spread else None
        return _Part(
            total,
            batch.prediction,
            batch.reference_prediction,
            batch.convergence_delta.to(batch.prediction.dtype),
            multipliers=batch.multipliers if self._kept.multipliers else None,
            observed=observed if self._kept.observed else None,
            moments=None if observed is None or not self._kept.spread else moments(observed, dim=2),
        )

    def _observed_of(self, batch: Batch) -> Tensor:
        """(S, T, K, L): sum_c x[c] (m[c] - sum_c' r[c'] m[c'])."""
        observed = batch.contributions[:, :, :, : self._n_bases].sum(3)
        if self._has_base_everywhere:
            return observed
        missing = 1 - batch.sequences[:, None, None, : self._n_bases].sum(3)
        references = batch.references[:, None, :, : self._n_bases]
        return observed + missing * (batch.multipliers[:, :, :, : self._n_bases] * references).sum(3)

    def _to_cpu(self, part: _Part) -> tuple[_Part, torch.cuda.Event | None]:
        """On the CPU, and for a GPU what tells when it is there."""
        if self._device.type != "cuda":
            return part.copied(Tensor.cpu), None
        copy = part.copied(lambda x: _pinned_like(x).copy_(x, non_blocking=True))
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(part.total.device))  # which need not be the current device
        return copy, event

    def _land(self) -> None:
        block, part, event = self._in_flight.popleft()
        if event is not None:
            event.synchronize()
        if self._dtype is None:
            self._allocate(part)
        self._sum[block.rows] += part.total
        self._prediction[block.rows] = part.prediction
        self._reference_prediction[block.rows, :, block.ks] = part.reference_prediction
        self._delta[block.rows, :, block.ks] = part.convergence_delta
        if self._multipliers is not None and part.multipliers is not None:
            self._multipliers[block.rows, :, block.ks] = part.multipliers
        if self._observed is not None and part.observed is not None:
            self._observed[block.rows, :, block.ks] = part.observed
        if self._moments is not None and part.moments is not None:
            self._moments.add(block.rows, part.moments, part.reference_prediction.shape[2])
        if self._progress is not None:
            self._progress(part.convergence_delta[:, 0].numel(), part.convergence_delta)

    def _allocate(self, part: _Part) -> None:
        n_sequences, n_targets = self._X.shape[0], part.prediction.shape[1]
        pairs = (n_sequences, n_targets, self._n_references)
        self._dtype = part.prediction.dtype
        # Summed in float64, so that splitting the references of a sequence over batches does not show.
        # On the CPU, whatever the default device.
        self._sum = torch.zeros(n_sequences, n_targets, *self._X.shape[1:], dtype=torch.float64, device="cpu")
        self._prediction = self._sum.new_zeros(pairs[:2], dtype=self._dtype)
        self._reference_prediction = self._sum.new_zeros(pairs, dtype=self._dtype)
        self._delta = self._sum.new_zeros(pairs, dtype=self._dtype)
        self._multipliers = (
            self._sum.new_zeros((*pairs, *self._X.shape[1:]), dtype=self._dtype) if self._kept.multipliers else None
        )
        length = self._X.shape[2]
        self._observed = self._sum.new_zeros((*pairs, length), dtype=self._dtype) if self._kept.observed else None
        self._moments = Moments(n_sequences, n_targets, length) if self._kept.spread else None
