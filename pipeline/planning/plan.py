"""The plan: all that a worker must know to compute any shard, resolved once and written beside the store."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import UserError
from pipeline.rounding import MANTISSA_BITS
from pipeline.shards import Shard, n_shards, shard_at


@dataclass(frozen=True)
class Plan:
    """A run with nothing left to decide.

    Attributes:
        n_rows: sequences.
        length: bases in each.
        targets: indices of the model's outputs.
        references: what they are; see pipeline/references.
        n_references: of each sequence.
        seed: reference k is drawn with seed + k.
        batch_size: sequence-reference pairs in a batch.
        rows_per_shard: sequences in a shard.
        dtype: of the computation.
        threads: CPU threads of the computation.
        deterministic: whether operations that are not deterministic are refused.
        device: cpu, cuda or cuda:<number>.
        device_kind: of the device that the run was planned on; see hardware.py.
        judged: whether the convergence deltas should be zero (some heads do not sum to the difference by design).
        warning_threshold: a convergence delta with a larger absolute value is counted.
        fingerprint: what the values depend on.
        folds: names of the model's folds, of which the mean is attributed.
        per_fold: whether the values of each fold are kept too.
        rows_per_group: rows that follow each other and share their references: 2 for the alleles of a variant, else 1.
        reverse_complement: whether both strands are attributed, and the mean is kept.
        args: shape and type of each further input of the model; see args.py.
        precision_bits: mantissa bits that are stored of attributions.
    """

    n_rows: int
    length: int
    targets: list[int]
    references: dict[str, Any]
    n_references: int
    seed: int
    batch_size: int
    rows_per_shard: int
    dtype: str
    threads: int
    deterministic: bool
    device: str
    device_kind: str
    judged: bool
    warning_threshold: float
    fingerprint: dict[str, Any]
    folds: list[str] = field(default_factory=lambda: ["0"])
    per_fold: bool = False
    reverse_complement: bool = False
    rows_per_group: int = 1
    args: list[dict[str, Any]] = field(default_factory=list)
    precision_bits: int = MANTISSA_BITS

    @property
    def n_shards(self) -> int:
        return n_shards(self.n_rows, self.rows_per_shard)

    def shard(self, index: int) -> Shard:
        """The rows of a shard."""
        return shard_at(index, self.n_rows, self.rows_per_shard)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str | bytes) -> "Plan":
        """Raises UserError when the text is not a plan of this version."""
        try:
            return Plan(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the plan of this run cannot be read ({error}); was it written by another version?"
            ) from None
