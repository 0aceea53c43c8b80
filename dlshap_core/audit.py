"""Audit: how every operation of a model is treated, and how well contributions add up, before a run spends anything."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlshap_core.engine import TensorReferences, attribute
from dlshap_core.errors import UnsupportedModelError
from dlshap_core.one_hot import one_hot, to_codes
from dlshap_core.passes.recorder import Seen
from dlshap_core.passes.targets import Target
from dlshap_core.shuffles import shuffle_codes


@dataclass(frozen=True)
class AuditedOperation:
    """One kind of operation in one module: the module's path and class, the operation, its treatment, how often."""

    module: str
    operation: str
    treatment: str
    count: int


@dataclass(frozen=True)
class Audit:
    """What `audit` returns.

    Attributes:
        operations: what was met in one forward pass, the linear operations too.
        refused: what cannot be attributed; empty for a model that can be run.
        convergence_error: the largest `|sum m (x - r) - (y(x) - y(r))|` over the largest `|y(x) - y(r)|` of the pairs;
            None if something was refused.
        n_pairs: how many pairs were tried.
    """

    operations: tuple[AuditedOperation, ...]
    refused: tuple[str, ...]
    convergence_error: float | None
    n_pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [("module", "operation", "treatment", "count")]
        rows += [(x.module, x.operation, x.treatment, str(x.count)) for x in self.operations]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"refused: {reason}" for reason in self.refused]
        if self.convergence_error is not None:
            lines.append(
                f"convergence error over {self.n_pairs} pairs: {self.convergence_error:.1e} of the largest difference"
            )
        return "\n".join(lines)


def audit(
    model: nn.Module,
    X: Tensor,
    references: Tensor | None = None,
    *,
    args: Sequence[Tensor] | None = None,
    targets: Sequence[Target] | str = (0,),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    random_state: int = 0,
    split: Sequence[str] = (),
) -> Audit:
    """List how each operation of a model is treated, and try a few pairs.

    Args:
        model: as in `attribute`.
        X: (N, A, L) one-hot; the first two sequences are used.
        references: (N, R, A, L); None draws two dinucleotide shuffles of each sequence.
        args, targets, device, dtype: as in `attribute`.
        random_state: seed of the shuffles.
        split: as in `attribute`.

    Returns:
        The audit; a model with refused operations does not raise, but says so in `refused`.
    """
    X = X[:2]
    if references is None:
        codes = shuffle_codes(to_codes(X).cpu().numpy(), range(random_state, random_state + 2), X.shape[1] + 1)
        references = one_hot(codes, X.dtype, n_letters=X.shape[1])
    source = TensorReferences(references[:2, :2])
    n_pairs = X.shape[0] * source.n
    seen = Seen()
    try:
        result = attribute(
            model,
            X,
            source,
            args=args,
            targets=targets,
            batch_size=n_pairs,
            device=device,
            dtype=dtype,
            seen=seen,
            split=split,
        )
    except Exception as failure:
        if isinstance(failure, UnsupportedModelError):
            seen.refusals.append(str(failure))
        elif not seen.refusals:  # past a refusal the model may fail in any way
            raise
        return Audit(_operations(seen), tuple(dict.fromkeys(seen.refusals)), None, n_pairs)
    difference = (result.prediction[..., None] - result.reference_prediction).abs().max().item()
    largest_delta = result.convergence_delta.abs().max().item()
    error = largest_delta / max(difference, torch.finfo(torch.float32).tiny)
    return Audit(_operations(seen), (), error, n_pairs)


def _operations(seen: Seen) -> tuple[AuditedOperation, ...]:
    return tuple(AuditedOperation(*key, count) for key, count in seen.operations.items())
