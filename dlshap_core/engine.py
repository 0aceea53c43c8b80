"""The engine: multipliers of (sequence, reference) pairs by two passes over the model.

For each batch the S sequences go through the model alone, recording what the rules need; then their S x R references go
through with autograd, each ruled operation taking its record as the other end of every difference. The gradient at the
references is the multiplier m of each pair, with sum m (x - r) = y(x) - y(r). Work: S + SR rows forward and SR rows
backward, where a doubled batch takes 2SR and 2SR.

Shape legend: N sequences, R references of each, T targets, A alphabet, L length, S sequences and K references in a
batch.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dlshap_core.capture import Seen
from dlshap_core.runner import Batch, PairRunner, model_dtype, uses_autocast
from dlshap_core.state import borrowed, eager, full_precision, unwrap
from dlshap_core.user_rules import UserRule, user_rules_active


class References(Protocol):
    """Where references come from: `n` of them for each sequence, drawn a block at a time."""

    @property
    def n(self) -> int: ...

    def __call__(self, rows: slice, ks: slice) -> Tensor:
        """References ks of sequences rows: (S, K, A, L) of any dtype, on any device."""
        ...


@dataclass(frozen=True)
class TensorReferences:
    """References given as a tensor (N, R, A, L)."""

    tensor: Tensor

    @property
    def n(self) -> int:
        return self.tensor.shape[1]

    def __call__(self, rows: slice, ks: slice) -> Tensor:
        return self.tensor[rows, ks]


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
    """

    hypothetical: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor
    multipliers: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """The pairs of one batch: every reference in `ks` of every sequence in `rows`."""

    rows: slice
    ks: slice


def plan_blocks(n_sequences: int, n_references: int, batch_size: int) -> list[Block]:
    """Batches of at most `batch_size` pairs: whole sequences where they fit, else even parts of one sequence's
    references."""
    if n_references <= batch_size:
        step = batch_size // n_references
        return [
            Block(slice(start, min(start + step, n_sequences)), slice(0, n_references))
            for start in range(0, n_sequences, step)
        ]
    n_parts = -(-n_references // batch_size)
    edges = [n_references * part // n_parts for part in range(n_parts + 1)]
    return [
        Block(slice(row, row + 1), slice(start, stop))
        for row in range(n_sequences)
        for start, stop in itertools.pairwise(edges)
    ]


def attribute(
    model: nn.Module,
    X: Tensor,
    references: Tensor | References,
    *,
    args: Sequence[Tensor] | None = None,
    targets: Sequence[int] | str = (0,),
    batch_size: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    user_rules: dict[type[nn.Module], UserRule] | None = None,
    n_bases: int | None = None,
    raw_outputs: bool = False,
    progress: Callable[[int, Tensor], None] | None = None,
    seen: Seen | None = None,
) -> Attribution:
    """DeepLIFT/SHAP attributions of sequences with respect to references.

    Args:
        model: called as model(x, *args); returns (B, T), (B,) or (B, T, 1, ...). It is left as it was.
        X: (N, A, L) one-hot, of any dtype; converted batch by batch.
        references: (N, R, A, L), or an object that draws them.
        args: further inputs of the model, tensors with N rows; each row is repeated for its references. Integer tensors
            of 32 or 64 bits are passed as they are, others in the dtype.
        targets: outputs to explain, or "all"; they share the forward passes.
        batch_size: pairs in a batch; results do not depend on it beyond rounding.
        device: where to compute; None for a GPU if there is one.
        dtype: of the computation, None for the model's; a float32 model runs under autocast in float16 and bfloat16,
        and
            is converted for the time of the call in others.
        user_rules: rules for whole modules by class (see user_rules.py).
        n_bases: channels of the alphabet, None for all of them. Channels beyond are tracks that do not exclude each
        other:
            instead of a hypothetical attribution they get their contribution m (x - r).
        raw_outputs: return the multipliers of every pair too.
        progress: called after each batch with the number of pairs done and their convergence deltas (S, T, K).
        seen: filled with the operations met, their treatment, and all refusals (see audit.py).

    Raises:
        ValueError: shapes that do not fit, or a model output that is not one value for each sequence and target.
        IndexError: a target or a row of args that is not there.
        UnsupportedModelError: an operation that cannot be attributed, by name and module.
    """
    source = TensorReferences(references) if isinstance(references, Tensor) else references
    if X.shape[0] == 0:
        raise ValueError("X holds no sequences")
    if source.n < 1:
        raise RuntimeError("at least one reference is needed for each sequence")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 pair, not {batch_size}")
    for index, arg in enumerate(args or ()):
        if arg.shape[0] < X.shape[0]:
            raise IndexError(f"args[{index}] has {arg.shape[0]} rows for {X.shape[0]} sequences")
    model = unwrap(model)
    target_device = resolve_device(device)
    dtype = dtype or model_dtype(model)
    converted = None if uses_autocast(model, dtype) else dtype
    results = _Results(X, source.n, n_bases or X.shape[1], raw_outputs)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        borrowed(model, target_device, converted) as state,
        user_rules_active(user_rules),
        eager(),
        full_precision(),
    ):
        runner = PairRunner(model, state, target_device, dtype, tuple(args or ()), targets, seen)
        for block in plan_blocks(X.shape[0], source.n, batch_size):
            batch = runner.run(X[block.rows], source(block.rows, block.ks), block.rows)
            results.add(block, batch)
            if progress is not None:
                progress(batch.convergence_delta[:, 0].numel(), batch.convergence_delta)
    return results.finish()


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device asked for; None is a GPU if there is one.

    Raises:
        RuntimeError: a CUDA device was asked for and there is none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "device 'cuda' was asked for, but there is no CUDA GPU here; use device='cpu' or device=None"
        )
    return device


class _Results:
    """Collects batches on the CPU."""

    def __init__(self, X: Tensor, n_references: int, n_bases: int, keeps_multipliers: bool) -> None:
        self._X = X
        self._n_bases = n_bases
        self._n_references = n_references
        self._keeps_multipliers = keeps_multipliers
        self._dtype = torch.float32

    def _allocate(self, batch: Batch) -> None:
        n_sequences, n_targets = self._X.shape[0], batch.prediction.shape[1]
        pairs = (n_sequences, n_targets, self._n_references)
        self._dtype = batch.prediction.dtype
        # Summed in float64, so that splitting the references of a sequence over batches does not show.
        self._sum = torch.zeros(n_sequences, n_targets, *self._X.shape[1:], dtype=torch.float64)
        self._prediction = torch.zeros(pairs[:2], dtype=self._dtype)
        self._reference_prediction = torch.zeros(pairs, dtype=self._dtype)
        self._delta = torch.zeros(pairs, dtype=self._dtype)
        self._multipliers = (
            torch.zeros(*pairs, *self._X.shape[1:], dtype=self._dtype) if self._keeps_multipliers else None
        )

    def add(self, block: Block, batch: Batch) -> None:
        """Put the results of a block in their place."""
        if not hasattr(self, "_sum"):
            self._allocate(batch)
        of_bases = batch.multipliers[:, :, :, : self._n_bases]
        references = batch.references[:, :, : self._n_bases].unsqueeze(1)
        total = of_bases.sum(2) - (of_bases * references).sum((2, 3)).unsqueeze(2)
        if self._n_bases < batch.multipliers.shape[3]:
            contributions = batch.contributions[:, :, :, self._n_bases :].sum(2)
            total = torch.cat([total, contributions], dim=2)
        self._sum[block.rows] += total.cpu()
        self._prediction[block.rows] = batch.prediction.cpu()
        self._reference_prediction[block.rows, :, block.ks] = batch.reference_prediction.cpu()
        self._delta[block.rows, :, block.ks] = batch.convergence_delta.cpu()
        if self._multipliers is not None:
            self._multipliers[block.rows, :, block.ks] = batch.multipliers.cpu()

    def finish(self) -> Attribution:
        """The results of all blocks."""
        hypothetical = (self._sum / self._n_references).to(self._dtype)
        return Attribution(hypothetical, self._prediction, self._reference_prediction, self._delta, self._multipliers)
