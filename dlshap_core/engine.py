"""The engine: multipliers of (sequence, reference) pairs by two passes over the model.

For each batch the S sequences go through the model alone, recording what the rules need (once, where the references of
a sequence take several batches); then their S x R references go through with autograd, each ruled operation taking its
record as the other end of every difference. The gradient at the references is the multiplier m of each pair, with
sum m (x - r) = y(x) - y(r). Work: S + SR rows forward and SR rows backward, where a doubled batch takes 2SR and 2SR.

Shape legend: N sequences, R references of each, T targets, A alphabet, L length, S sequences and K references in a
batch.
"""

import contextlib
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, SupportsIndex

import torch
from torch import Tensor, nn

from dlshap_core.passes.blocks import best_split
from dlshap_core.passes.borrowed_model import borrowed, eager, unwrap
from dlshap_core.passes.decisions import Decisions
from dlshap_core.passes.host import process_settings, random_states, thread_settings
from dlshap_core.passes.model_passes import ModelPasses, model_dtype, uses_autocast
from dlshap_core.passes.recorder import Seen
from dlshap_core.passes.results import Attribution, Kept, PairBlock, Results, pinned
from dlshap_core.passes.runner import BatchRunner
from dlshap_core.passes.targets import Target, Targets
from dlshap_core.passes.user_rules import UserRule, user_rules_active


class References(Protocol):
    """Where references come from: `n` of them for each sequence, drawn a block at a time.

    For a GPU they are drawn on a thread of their own, a block ahead of the one that is computed. Random generators of
    the process are as before after a call, unless there is an attribute `draws_from_host` that is true.
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


def plan_blocks(n_sequences: int, n_references: int, batch_size: int) -> list[PairBlock]:
    """Even batches of at most `batch_size` pairs: of whole sequences where they fit, else of one sequence's
    references."""
    if n_references <= batch_size:
        every = slice(0, n_references)
        return [PairBlock(rows, every) for rows in _even_parts(n_sequences, batch_size // n_references)]
    parts = _even_parts(n_references, batch_size)
    return [PairBlock(slice(row, row + 1), ks) for row in range(n_sequences) for ks in parts]


def _even_parts(n: int, largest: int) -> list[slice]:
    """n as few parts of at most `largest`, whose sizes differ by one at most."""
    n_parts = -(-n // largest)
    edges = [n * part // n_parts for part in range(n_parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def attribute(
    model: nn.Module,
    X: Tensor,
    references: Tensor | References,
    *,
    args: Sequence[Tensor] | None = None,
    targets: Sequence[Target] | str = (0,),
    batch_size: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    allow_tf32: bool = False,
    user_rules: dict[type[nn.Module], UserRule] | None = None,
    n_bases: int | None = None,
    raw_outputs: bool = False,
    per_reference: bool = False,
    spread: bool = False,
    progress: Callable[[int, Tensor], None] | None = None,
    seen: Seen | None = None,
    decisions: Decisions | None = None,
    alone: Tensor | None = None,
    alone_args: Sequence[Tensor] = (),
    split: Sequence[str] = (),
) -> Attribution:
    """DeepLIFT/SHAP attributions of sequences with respect to references.

    Args:
        model: called as `model(x, *args)`; returns (B, T), (B,) or (B, T, 1, ...). It is left as it was.
        X: (N, A, L) one-hot, of any dtype; converted batch by batch.
        references: (N, R, A, L), or an object that draws them.
        args: extra inputs of the model, tensors with N rows; each row is repeated for its references. Integer tensors
            of 32 or 64 bits are passed as they are, others in the dtype.
        targets: outputs to explain, whole numbers of any type, or "all"; they share the forward passes. A mapping such
            as {5: 1, 0: -0.5} is a combination of outputs, each times its number, and costs what one does; so is a
            function that gives a mapping for the number of outputs.
        batch_size: pairs in a batch; results do not depend on it beyond rounding.
        device: where to compute; None for a GPU if there is one.
        dtype: of the computation, None for the model's; a float32 model runs under autocast in half precision, and
            is converted for the time of the call in others.
        allow_tf32: let a GPU round the factors of float32 products and convolutions to 10 bits, which is faster.
        user_rules: rules for whole modules by class (see user_rules.py).
        n_bases: channels of the alphabet, None for all of them. Channels beyond are tracks that do not exclude each
            other: instead of a hypothetical attribution they get their contribution m (x - r).
        raw_outputs: return the multipliers of every pair too.
        per_reference: return the observed base's attribution against each reference too.
        spread: return its standard deviation over the references too.
        progress: called after each batch with the number of pairs done and their convergence deltas (S, T, K).
        seen: filled with the operations met, their treatment, and all refusals (see audit.py).
        decisions: what the model is expected to decide from its input in Python, from an earlier call; None takes the
            first batch for it.
        alone: (M, A, L), further sequences to predict by plain forward passes, each in a batch of its own, after all
            batches.
        alone_args: extra inputs of the model for these, M rows each.
        split: names of modules of which nothing is kept but their input, and that are computed again on the way back:
            the same values in less memory and more time (see passes/blocks.py, and `memory_of_pair`). Not with
            user_rules.

    Raises:
        ValueError: shapes that do not fit, or a model output that is not one value for each sequence and target.
        IndexError: a target or a row of args that is not there.
        UnsupportedModelError: an operation that cannot be attributed, by name and module; a DecisionError where the
            model decides in Python for one sequence otherwise than for others.
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
    if not isinstance(targets, str):
        targets = [as_target(target) for target in targets]
    device = resolve_device(device)
    kept = Kept(raw_outputs, per_reference, spread)
    results = Results(X, source.n, n_bases or X.shape[1], kept, device, progress)
    draws = getattr(source, "draws_from_host", False)
    with (
        _passes_over(model, targets, device, dtype, allow_tf32, draws_from_host=draws) as start,
        user_rules_active(user_rules),
    ):
        # A user's rule may write into what it reshaped, which nobody watches.
        passes = start(
            tuple(args or ()),
            seen,
            may_change_format=not user_rules,
            decisions=decisions,
            split=() if user_rules else split,
        )
        runner = BatchRunner(passes)
        blocks = plan_blocks(X.shape[0], source.n, batch_size)
        for block, sequences, references in drawn(X, source, blocks, device):
            results.add(block, runner.run(sequences, references, block.rows, more_follow=block.ks.stop < source.n))
        if len(blocks) > 1:
            runner.checks.check_unchanged()
        found = results.finish()
        return found if alone is None else replace(found, alone=passes.predict(alone, alone_args))


@dataclass(frozen=True)
class PairMemory:
    """Bytes that one pair takes beside the model, as they are estimated from one pass that keeps nothing.

    Attributes:
        whole: kept as a whole.
        split: with the modules in `names` computed again.
        names: of these; none where that saves nothing.
    """

    whole: int
    split: int
    names: tuple[str, ...]


def memory_of_pair(
    model: nn.Module,
    X: Tensor,
    *,
    args: Sequence[Tensor] = (),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> PairMemory:
    """What a pair of one sequence (1, A, L) takes, for the price of one forward pass; arguments as of `attribute`."""
    with _passes_over(model, "all", resolve_device(device), dtype, False) as start:
        called = start().measure(X, args)
    found = best_split(called)
    whole = called.n_bytes
    return PairMemory(whole, min(whole, found.n_bytes), found.names if found.n_bytes < whole else ())


def predict(
    model: nn.Module,
    X: Tensor,
    *,
    args: Sequence[Tensor] = (),
    targets: Sequence[Target] | str = (0,),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    allow_tf32: bool = False,
    batch_size: int = 1,
) -> Tensor:
    """(N, T) predictions of (N, A, L) by plain forward passes of `batch_size` sequences; as in `attribute`, the model
    is left as it was."""
    with _passes_over(model, targets, resolve_device(device), dtype, allow_tf32) as start:
        return start().predict(X, args, batch_size)


@contextlib.contextmanager
def _passes_over(
    model: nn.Module,
    targets: Sequence[Target] | str,
    device: torch.device,
    dtype: torch.dtype | None,
    allow_tf32: bool,
    draws_from_host: bool = False,
) -> Iterator[Callable[..., ModelPasses]]:
    """Borrow a model, set aside what its host has set, and give what makes passes over it of the arguments left."""
    model = unwrap(model)
    dtype = dtype or model_dtype(model)
    converted = None if uses_autocast(model, dtype) else dtype
    with (
        thread_settings(),
        process_settings(allow_tf32, dtype),
        contextlib.nullcontext() if draws_from_host else random_states(device),
        borrowed(model, device, converted) as state,
        eager(),
    ):
        yield functools.partial(ModelPasses, model, state, device, dtype, Targets(targets), allow_tf32)


def drawn(
    X: Tensor, source: References, blocks: Sequence[PairBlock], device: torch.device
) -> Iterator[tuple[PairBlock, Tensor, Tensor]]:
    """Each block with its sequences and references; for a GPU those of the next block are drawn meanwhile."""
    if device.type == "cpu":
        for block in blocks:
            yield block, X[block.rows], source(block.rows, block.ks)
        return

    def draw(block: PairBlock) -> tuple[PairBlock, Tensor, Tensor]:
        return block, _ready(X[block.rows], device), _ready(source(block.rows, block.ks), device)

    with ThreadPoolExecutor(1, "dlshap-references", _entering_streams_of_caller(device)) as thread:
        pending = thread.submit(draw, blocks[0])
        for after in blocks[1:]:
            found = pending.result()
            pending = thread.submit(draw, after)
            yield found
        yield pending.result()


def _entering_streams_of_caller(device: torch.device) -> Callable[[], None]:
    """Makes the device and the streams of this thread those of the one it is called in: else what is drawn on a GPU
    lands on another device, or is read before it is there."""
    if device.type != "cuda":
        return lambda: None
    current = torch.device("cuda", torch.cuda.current_device())
    streams = [torch.cuda.current_stream(d) for d in (device, current)]
    # Default streams, of handle 0, every thread has; what stands in for a GPU may have no others, and no handles.
    own = [stream for stream in streams if getattr(stream, "cuda_stream", 0)]

    def enter() -> None:
        for stream in own:
            torch.cuda.set_stream(stream)  # makes its device the current one
        torch.cuda.set_device(current)

    return enter


def _ready(x: Tensor, device: torch.device) -> Tensor:
    """In memory that a GPU can copy from by itself, where there is some."""
    return pinned(x) if device.type == "cuda" and not x.is_cuda else x


def as_target(target: Any) -> Target:
    """A target as it is given: a whole number of any type, numbers by such, or a function that gives these.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(target, Mapping):
        return {whole_number(place): float(weight) for place, weight in target.items()}
    return target if callable(target) else whole_number(target)


def numbers(dtype: str | torch.dtype | None) -> dict[str, Any]:
    """Arguments of `attribute` for numbers by their name in torch, or "tf32": float32 whose products and convolutions a
    GPU may round."""
    if dtype == "tf32":
        return {"dtype": torch.float32, "allow_tf32": True}
    return {"dtype": getattr(torch, dtype) if isinstance(dtype, str) else dtype}


def whole_number(target: SupportsIndex) -> int:
    """The index of an output, also of numpy's types and tensors.

    Raises:
        TypeError: it is something else.
    """
    try:
        return operator.index(target)
    except TypeError:
        raise TypeError(
            f"target {target!r} is not a whole number; give the index of an output, or a list of indices"
        ) from None


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device asked for; None is a GPU if there is one.

    Raises:
        RuntimeError: a CUDA device was asked for and is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "device 'cuda' was asked for, but there is no CUDA GPU here; use device='cpu' or device=None"
        )
    if device.type == "cuda" and (device.index or 0) >= (n := torch.cuda.device_count()):
        raise RuntimeError(f"device '{device}' was asked for, but there are {n} GPUs here, counted from 0")
    return device
