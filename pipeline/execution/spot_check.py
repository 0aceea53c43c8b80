"""A spot check: one sequence of every shard, and one of its references, are predicted alone as well.

A prediction must not depend on what else is in a batch, nor on what was computed before. What the engine refuses when
it looks at a model covers most ways in which it could; this notices the others, in the values themselves.

Shape legend: N rows of a shard, R references of each, T targets, L positions.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dlshap_core.engine import Attribution
from dlshap_core.one_hot import one_hot
from pipeline.messages.errors import ShardError
from pipeline.planning.number_types import NUMBER_TYPES
from pipeline.planning.shards import Shard
from pipeline.references.base import ShardReferences

_MATTERS = 1e-4  # of the largest difference of predictions that is explained: smaller differences pass
_STEPS = 4  # of rounding, of the largest prediction: always allowed
_TIMES = 8  # a prediction in a batch may be off by so many times the largest rounding error of those alone
_N_MEASURED = 8  # sequences whose rounding error is measured
_COARSE = 5e-3  # of the largest prediction, where it cannot be measured

Predict = Callable[[Tensor, Sequence[Tensor], str], Tensor]
"""Sequences (N, 4, L), extra inputs and a name of numbers to predictions (N, T), each sequence alone."""


@dataclass(frozen=True)
class Asked:
    """What is predicted alone: sequences (M, 4, L) and their extra inputs, M rows each."""

    x: Tensor
    extra_inputs: list[Tensor]


FoldStrand = tuple[int, int]
"""Which fold of the model, and which strand."""


@dataclass
class SpotChecks:
    """Of all shards of a worker.

    Attributes:
        first: by fold and strand, the first sequence that was predicted alone, and its prediction (1, T): whenever it
            is predicted again, it must be the same.
    """

    first: dict[FoldStrand, tuple[Asked, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class SpotCheck:
    """Of one shard.

    Attributes:
        row: of the shard, which is looked at.
        k: which of its references.
        name_of: what errors call a row.
        dtype: of the computation, as in the plan.
        kept: of the worker.
    """

    row: int
    k: int
    name_of: Callable[[int], str]
    dtype: str
    kept: SpotChecks

    @classmethod
    def of_shard(
        cls, shard: Shard, n_references: int, name_of: Callable[[int], str], dtype: str, kept: SpotChecks
    ) -> "SpotCheck":
        """The check of a shard: its row and reference follow from the shard's number alone."""
        drawn = zlib.crc32(f"shard {shard.index}".encode())
        return cls(drawn % len(shard), drawn // len(shard) % n_references, name_of, dtype, kept)

    def within(self, rows: slice) -> "SpotCheck | None":
        """The check of these rows of the shard, where its own is among them."""
        if not rows.start <= self.row < rows.stop:
            return None
        return replace(self, row=self.row - rows.start, name_of=lambda row: self.name_of(row + rows.start))

    def asks(
        self, X: Tensor, references: ShardReferences, extra_inputs: Sequence[Tensor], fold_strand: FoldStrand
    ) -> Asked:
        """What to predict alone: the row, its reference, and what this fold predicted first on this strand."""
        row, k = slice(self.row, self.row + 1), slice(self.k, self.k + 1)
        reference = references(row, k)[0]
        reference = one_hot(reference) if reference.ndim == 2 else reference
        x, given = [X[row], reference], [[values[row], values[row]] for values in extra_inputs]
        if fold_strand in self.kept.first:
            first, _ = self.kept.first[fold_strand]
            x.append(first.x)
            given = [[*two, third] for two, third in zip(given, first.extra_inputs, strict=True)]
        return Asked(torch.cat([part.to(torch.float32) for part in x]), [torch.cat(parts) for parts in given])

    def compare(
        self,
        asked: Asked,
        found: Attribution,
        X: Tensor,
        extra_inputs: Sequence[Tensor],
        fold_strand: FoldStrand,
        predict: Predict,
    ) -> None:
        """Compare what was predicted alone with what was predicted in batches.

        Args:
            asked: what `asks` gave.
            found: of the shard.
            X, extra_inputs: of the shard.
            place: of the fold and the strand.
            predict: for sequences whose rounding errors are measured, where predictions differ.

        Raises:
            ShardError: they differ by more than rounding.
        """
        assert found.alone is not None
        alone = found.alone[:2].double()
        reference_prediction = found.reference_prediction[self.row, :, self.k]
        together = torch.stack([found.prediction[self.row], reference_prediction]).double()
        if not bool((together.isfinite() & alone.isfinite()).all()):
            return  # reported by the run
        everything = torch.cat([found.prediction[..., None], found.reference_prediction], 2)  # (N, T, 1 + R)
        scale = everything.abs().nan_to_num(0, 0, 0).amax((0, 2)).double()
        explained = (everything - everything[..., :1]).abs().nan_to_num(0, 0, 0).amax((0, 2)).double()
        difference = (alone - together).abs()
        if bool((difference > _MATTERS * explained).any()):
            allowed = self._rounding(asked, alone, X, extra_inputs, scale, predict)
            self._require(difference <= allowed, alone, together)
        self._compare_with_first(asked, found.alone, fold_strand)

    def _rounding(
        self, asked: Asked, alone: Tensor, X: Tensor, extra_inputs: Sequence[Tensor], scale: Tensor, predict: Predict
    ) -> Tensor:
        """(T,) how far two predictions may lie apart by rounding, from what it does to sequences alone."""
        least = _STEPS * NUMBER_TYPES[self.dtype].epsilon * scale
        finer = NUMBER_TYPES[self.dtype].finer
        if finer is None:
            return torch.maximum(least, 1e-7 * scale)
        n = min(_N_MEASURED, len(X))
        x = torch.cat([asked.x[:2], X[:n].to(torch.float32)])
        given = [torch.cat([two[:2], arg[:n]]) for two, arg in zip(asked.extra_inputs, extra_inputs, strict=True)]
        try:
            fine = predict(x, given, finer).double()
        except (RuntimeError, ValueError):  # a model that names its own numbers
            return torch.maximum(least, _COARSE * scale)
        coarse = torch.cat([alone, predict(x[2:], [arg[2:] for arg in given], self.dtype).double()])
        return least + _TIMES * (coarse - fine).abs().amax(0)

    def _require(self, passes: Tensor, alone: Tensor, together: Tensor) -> None:
        """Raise ShardError for the first prediction (of the sequence and the reference, T) that does not pass."""
        for which, target in (~passes).nonzero().tolist():
            what = f"reference {self.k} of {self.name_of(self.row)}" if which else self.name_of(self.row)
            raise ShardError(
                f"{what}: its prediction is {alone[which, target]:.7g} alone and {together[which, target]:.7g} in its "
                f"batch: the model mixes the sequences of a batch, or draws random numbers (found by "
                f"engine.spot_check)"
            )

    def _compare_with_first(self, asked: Asked, alone: Tensor, fold_strand: FoldStrand) -> None:
        """Raise ShardError where the model does not predict again what it did."""
        if fold_strand not in self.kept.first:
            self.kept.first[fold_strand] = Asked(asked.x[:1], [arg[:1] for arg in asked.extra_inputs]), alone[:1]
            return
        before, now = self.kept.first[fold_strand][1].double(), alone[2:].double()
        allowed = max(_MATTERS, _STEPS * NUMBER_TYPES[self.dtype].epsilon) * before.abs().max()
        if bool(((now - before).abs() > allowed).any()):
            raise ShardError(
                f"a sequence of an earlier shard whose prediction was {before[0, 0]:.7g} alone is now predicted "
                f"{now[0, 0]:.7g}: the model keeps something from one call for the next, or draws random numbers "
                f"(found by engine.spot_check)"
            )
