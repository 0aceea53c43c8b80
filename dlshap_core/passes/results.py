"""What comes of the batches, collected on the CPU.

Shape legend: N sequences, R references of each, T targets, A alphabet, L length, S sequences and K references in a
batch.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
        alone: (M, T), y at the further sequences that were asked for, each in a batch of its own.
    """

    hypothetical: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor
    multipliers: Tensor | None = None
    alone: Tensor | None = None


@dataclass(frozen=True)
class PairBlock:
    """The pairs of one batch: every reference in `ks` of every sequence in `rows`."""

    rows: slice
    ks: slice


@dataclass(frozen=True)
class _Part:
    """What is kept of a batch: sums over its references (S, T, A, L), and the rest as in `Batch`."""

    total: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor
    multipliers: Tensor | None

    def copied(self, copy: Callable[[Tensor], Tensor]) -> "_Part":
        """A copy of each."""
        return replace(self, **{name: copy(x) for name, x in vars(self).items() if x is not None})


class Results:
    """Takes batches in any order and puts them in their place.

    Batches of a GPU are copied while the next ones are computed: nothing waits for the device but what is two batches
    old.

    Args:
        X: (N, A, L), for its shape.
        n_references: of each sequence.
        n_bases: channels of the alphabet.
        keeps_multipliers: whether to collect the multipliers of every pair.
        device: where batches are computed.
        progress: called with the number of pairs and the convergence deltas (S, T, K) of each batch.
    """

    def __init__(
        self,
        X: Tensor,
        n_references: int,
        n_bases: int,
        keeps_multipliers: bool,
        device: torch.device,
        progress: Callable[[int, Tensor], None] | None,
    ) -> None:
        self._X = X
        self._n_bases = n_bases
        self._n_references = n_references
        self._keeps_multipliers = keeps_multipliers
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
        return Attribution(hypothetical, self._prediction, self._reference_prediction, self._delta, self._multipliers)

    def _part(self, batch: Batch) -> _Part:
        of_bases = batch.multipliers[:, :, :, : self._n_bases]
        references = batch.references[:, :, : self._n_bases].unsqueeze(1)
        total = of_bases.sum(2) - (of_bases * references).sum((2, 3)).unsqueeze(2)
        if self._n_bases < batch.multipliers.shape[3]:
            contributions = batch.contributions[:, :, :, self._n_bases :].sum(2)
            total = torch.cat([total, contributions], dim=2)
        multipliers = batch.multipliers if self._keeps_multipliers else None
        delta = batch.convergence_delta.to(batch.prediction.dtype)
        return _Part(total, batch.prediction, batch.reference_prediction, delta, multipliers)

    def _to_cpu(self, part: _Part) -> tuple[_Part, torch.cuda.Event | None]:
        """On the CPU, and for a GPU what tells when it is there."""
        if self._device.type != "cuda":
            return part.copied(Tensor.cpu), None

        def copied(x: Tensor) -> Tensor:  # on the CPU, whatever the default device
            return torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True).copy_(x, non_blocking=True)

        copy = part.copied(copied)
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
            self._sum.new_zeros((*pairs, *self._X.shape[1:]), dtype=self._dtype) if self._keeps_multipliers else None
        )
