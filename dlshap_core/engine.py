"""The engine: multipliers of (sequence, reference) pairs by two passes over the model.

For each batch the S sequences go through the model alone, recording what the rules need; then their S x R references go
through with autograd, each ruled operation taking its record as the other end of every difference. The gradient at the
references is the multiplier m of each pair, with sum m (x - r) = y(x) - y(r). Work: S + SR rows forward and SR rows
backward, where a doubled batch takes 2SR and 2SR.

Shape legend: N sequences, R references of each, T targets, A alphabet, L length, S sequences and K references in a
batch.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dlshap_core.capture import Seen
from dlshap_core.results import Attribution, Block, Results
from dlshap_core.runner import PairRunner, model_dtype, uses_autocast
from dlshap_core.state import borrowed, eager, precision, unwrap
from dlshap_core.user_rules import UserRule, user_rules_active


class References(Protocol):
    """Where references come from: `n` of them for each sequence, drawn a block at a time.

    For a GPU they are drawn on a thread of their own, a block ahead of the one that is computed.
    """

    @property
    def n(self) -> int: ...

    def __call__(self, rows: slice, ks: slice) -> Tensor:
        """References ks of sequences rows: one-hot (S, K, A, L) of any dtype, or codes (S, K, L) uint8, which are made
        one-hot on the device; on any device."""
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
    allow_tf32: bool = False,
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
        allow_tf32: let a GPU round the factors of float32 products and convolutions to 10 bits, which is faster.
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
    results = Results(X, source.n, n_bases or X.shape[1], raw_outputs, target_device, progress)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        borrowed(model, target_device, converted) as state,
        user_rules_active(user_rules),
        eager(),
        precision(allow_tf32),
    ):
        # A user's rule may write into what it reshaped, which nobody watches.
        may_change_format = not user_rules
        runner = PairRunner(
            model, state, target_device, dtype, tuple(args or ()), targets, seen, allow_tf32, may_change_format
        )
        blocks = plan_blocks(X.shape[0], source.n, batch_size)
        for block, sequences, references in drawn(X, source, blocks, target_device):
            results.add(block, runner.run(sequences, references, block.rows))
        return results.finish()


def drawn(
    X: Tensor, source: References, blocks: Sequence[Block], device: torch.device
) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """Each block with its sequences and references; for a GPU those of the next block are drawn meanwhile."""
    if device.type == "cpu":
        for block in blocks:
            yield block, X[block.rows], source(block.rows, block.ks)
        return

    def draw(block: Block) -> tuple[Block, Tensor, Tensor]:
        return block, _ready(X[block.rows], device), _ready(source(block.rows, block.ks), device)

    with ThreadPoolExecutor(1, thread_name_prefix="dlshap-references") as thread:
        pending = thread.submit(draw, blocks[0])
        for after in blocks[1:]:
            found = pending.result()
            pending = thread.submit(draw, after)
            yield found
        yield pending.result()


def _ready(x: Tensor, device: torch.device) -> Tensor:
    """In memory that a GPU can copy from by itself."""
    return x.contiguous().pin_memory() if device.type == "cuda" and not x.is_cuda else x


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
