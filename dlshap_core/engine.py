"""The engine: multipliers of (sequence, reference) pairs by two passes over the model.

For each batch the S sequences go through the model alone, recording what the rules need; then their S x R references go
through with autograd, each ruled operation taking its record as the other end of every difference. The gradient at the
references is the multiplier m of each pair, with sum m (x - r) = y(x) - y(r). Work: S + SR rows forward and SR rows
backward, where a doubled batch takes 2SR and 2SR.

Shape legend: N sequences, R references of each, T targets, A alphabet, L length, S sequences and K references in a
batch.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dlshap_core.capture import ForwardPass, PassesDiffer, Rows, Seen, Tape, find_custom_function
from dlshap_core.errors import UnsupportedModelError
from dlshap_core.rules.table import BREAKS_TIES
from dlshap_core.state import Borrowed, borrowed, eager, unwrap
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
    converted = None if _uses_autocast(model, dtype) else dtype
    results = _Results(X, source.n, n_bases or X.shape[1], raw_outputs)
    with borrowed(model, target_device, converted) as state, user_rules_active(user_rules), eager():
        runner = _Runner(model, state, target_device, dtype, tuple(args or ()), targets, seen)
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


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's first floating-point parameter or buffer, float32 if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return next((x.dtype for x in tensors if x.is_floating_point()), torch.float32)


_AUTOCAST_TOLERANCE = 0.1  # relative; half precision rounds differently in batches of different sizes
_HOOKS_REFUSED = (
    "the model uses activation checkpointing (or other hooks on saved tensors), which recomputes what cannot be seen; "
    "switch it off for attribution"
)


def _uses_autocast(model: nn.Module, dtype: torch.dtype) -> bool:
    return dtype in (torch.float16, torch.bfloat16) and model_dtype(model) == torch.float32


@dataclass
class _Batch:
    """Results of one block: references (S, K, A, L), multipliers and contributions (S, T, K, A, L), and the rest."""

    references: Tensor
    multipliers: Tensor
    contributions: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor


class _Runner:
    """Runs blocks of pairs through a borrowed model."""

    def __init__(
        self,
        model: nn.Module,
        state: Borrowed,
        device: torch.device,
        dtype: torch.dtype,
        args: tuple[Tensor, ...],
        targets: Sequence[int] | str,
        seen: Seen | None,
    ) -> None:
        self._model = model
        self._state = state
        self._device = device
        self._uses_autocast = _uses_autocast(model, dtype)
        self._dtype = torch.float32 if self._uses_autocast else dtype
        self._autocast_dtype = dtype
        self._args = args
        self._targets = targets
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._seen = seen
        self._has_equal_rows = False
        self._breaks_ties = False
        self._is_checked = False
        self._custom_function: str | None = None

    def run(self, X: Tensor, references: Tensor, rows: slice) -> _Batch:
        """Multipliers of every pair of sequences (S, A, L) with their references (S, K, A, L)."""
        sequences = X.to(self._device).to(self._dtype)
        references = references.to(self._device).to(self._dtype)
        n_references = references.shape[1]
        if not self._has_equal_rows and n_references > 1:
            try:
                return self._run(sequences, references, rows, 1)
            except PassesDiffer:
                # Rows cannot be matched across passes of different sizes: from now on both get the same rows.
                self._has_equal_rows = True
        try:
            return self._run(sequences, references, rows, n_references)
        except PassesDiffer as error:
            raise UnsupportedModelError(
                f"the model does not do the same on a sequence and on its reference: {error}"
            ) from error

    def _run(self, sequences: Tensor, references: Tensor, rows: slice, n_repeats: int) -> _Batch:
        """Both passes, each sequence going through the first one `n_repeats` times (1, or once for each reference)."""
        n_sequences, n_references = references.shape[:2]
        # A batch of one row is computed by other kernels, with other last bits, than any larger one.
        is_alone = n_sequences == n_repeats == 1
        n_padding = 1 if is_alone and self._breaks_ties and n_references > 2 else 0
        layout = Rows(n_sequences * n_repeats, n_references // n_repeats, n_padding)
        tape = Tape()
        with self._forward_pass(tape, layout, replaying=False) as observe:
            x = sequences.repeat_interleave(n_repeats + n_padding, 0).requires_grad_()
            y = self._predict(x, rows, n_repeats + n_padding, observe)
        if is_alone and not self._breaks_ties and tape.holds_any(BREAKS_TIES):
            self._breaks_ties = True
            return self._run(sequences, references, rows, n_references if n_references == 2 else 1)
        targets = _resolve_targets(self._targets, y.shape[1])
        prediction = y.detach()[:: n_repeats + n_padding, targets].to(self._dtype)
        del y

        leaf = references.flatten(0, 1).requires_grad_()
        with self._forward_pass(tape, layout, replaying=True) as replay:
            y = self._predict(leaf, rows, n_references, replay)
        tape.check_consumed()
        if not self._is_checked:
            self._custom_function = find_custom_function(y)
            if self._custom_function == "CheckpointFunction":
                raise UnsupportedModelError(_HOOKS_REFUSED)
        multipliers = _gradients(y, leaf, targets).unflatten(1, (n_sequences, n_references)).transpose(0, 1)
        reference_prediction = (
            y.detach()[:, targets].to(self._dtype).unflatten(0, (n_sequences, n_references)).transpose(1, 2)
        )
        # Summed in float64: the delta should show the rules' error, not that of adding up.
        contributions = multipliers * (sequences[:, None] - references).unsqueeze(1)
        explained = contributions.sum((-2, -1), dtype=torch.float64)
        delta = explained - (prediction[..., None].double() - reference_prediction.double())
        if self._custom_function is not None:
            _check_custom_function(self._custom_function, delta, y)
        if not self._is_checked:
            self._check_alone(leaf, y, rows)
            self._is_checked = True
        return _Batch(references, multipliers, contributions, prediction, reference_prediction, delta.to(self._dtype))

    @contextlib.contextmanager
    def _forward_pass(self, tape: Tape, layout: Rows, replaying: bool) -> Iterator[ForwardPass]:
        if self._seen is not None:
            self._seen.operations.clear()
        autocast = torch.autocast(self._device.type, self._autocast_dtype, enabled=self._uses_autocast)
        with torch.enable_grad(), autocast, torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS_REFUSED):
            yield ForwardPass(tape, layout, replaying, self._modules, self._seen)
        if self._seen is not None and self._seen.refusals:
            raise UnsupportedModelError(self._seen.refusals[0])

    def _predict(self, x: Tensor, rows: slice, n_repeats: int, forward: ForwardPass) -> Tensor:
        """The model's output (B, T) on (B, A, L), with every operation going through `forward`.

        `n_repeats` is how often each row of the further inputs is needed.
        """
        extra = [self._extra_input(arg[rows]).repeat_interleave(n_repeats, 0) for arg in self._args]
        x = x.clone()  # not a leaf, so that the model may work in place on its input
        self._state.rewind()
        try:
            with forward:
                y = self._model(x, *extra)
        except RuntimeError as error:
            if str(error) == _HOOKS_REFUSED:
                raise UnsupportedModelError(_HOOKS_REFUSED) from error
            raise
        return _as_rows_by_targets(y, x.shape[0])

    def _check_alone(self, references: Tensor, y: Tensor, rows: slice) -> None:
        """The last reference, run by itself and unobserved, must give the same prediction as in its batch.

        It does not where a model mixes the rows of a batch, draws numbers that cannot be seen, or where an operation is
        computed otherwise than by the model itself.

        Raises:
            UnsupportedModelError: it does not.
        """
        last = slice(rows.stop - 1, rows.stop)
        extra = [self._extra_input(arg[last]) for arg in self._args]
        self._state.rewind()
        with torch.no_grad(), torch.autocast(self._device.type, self._autocast_dtype, enabled=self._uses_autocast):
            alone = _as_rows_by_targets(self._model(references[-1:].detach().clone(), *extra), 1)
        scale = y.detach().abs().max().clamp_min(torch.finfo(y.dtype).tiny)
        error = ((alone[0] - y[-1].detach()).abs().max() / scale).item()
        if error > (_AUTOCAST_TOLERANCE if self._uses_autocast else torch.finfo(y.dtype).eps ** 0.6):
            raise UnsupportedModelError(
                f"the prediction of a sequence alone differs from that in a batch of {len(y)} by {error:.1e} of the "
                f"largest prediction: the model mixes the sequences of a batch, or draws random numbers"
            )

    def _extra_input(self, arg: Tensor) -> Tensor:
        arg = arg.to(self._device)
        return arg if arg.dtype in (torch.int32, torch.int64) else arg.to(self._dtype)


class _Results:
    """Collects batches on the CPU."""

    def __init__(self, X: Tensor, n_references: int, n_bases: int, keeps_multipliers: bool) -> None:
        self._X = X
        self._n_bases = n_bases
        self._n_references = n_references
        self._keeps_multipliers = keeps_multipliers
        self._dtype = torch.float32

    def _allocate(self, batch: _Batch) -> None:
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

    def add(self, block: Block, batch: _Batch) -> None:
        """Put the results of a block in their place."""
        if not hasattr(self, "_sum"):
            self._allocate(batch)
        of_bases = batch.multipliers[:, :, :, : self._n_bases]
        at_reference = torch.einsum("stkal,skal->stl", of_bases, batch.references[:, :, : self._n_bases])
        total = of_bases.sum(2) - at_reference.unsqueeze(2)
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
        hypothetical = (self._sum / self._n_references).to(self._dtype)
        return Attribution(hypothetical, self._prediction, self._reference_prediction, self._delta, self._multipliers)


def _gradients(y: Tensor, leaf: Tensor, targets: list[int]) -> Tensor:
    """(T, B, A, L): the gradient of each target at the references; zero where the output does not depend on them."""
    gradients = []
    for position, target in enumerate(targets):
        gradient = None
        if y.requires_grad:
            keeps_graph = position < len(targets) - 1
            try:
                (gradient,) = torch.autograd.grad(y[:, target].sum(), leaf, retain_graph=keeps_graph, allow_unused=True)
            except RuntimeError as error:
                if "modified by an inplace operation" not in str(error):
                    raise
                raise UnsupportedModelError(
                    f"the model overwrites in place a tensor that is needed to go back through it: {error}"
                ) from error
        gradients.append(torch.zeros_like(leaf) if gradient is None else gradient)
    return torch.stack(gradients)


def _check_custom_function(name: str, delta: Tensor, y: Tensor) -> None:
    """A custom autograd function is taken for linear; contributions that do not add up show that it is not.

    Raises:
        UnsupportedModelError: they do not add up.
    """
    error = (delta.abs().max() / y.detach().abs().max().clamp_min(torch.finfo(y.dtype).tiny)).item()
    if not error <= 1e4 * torch.finfo(y.dtype).eps:
        raise UnsupportedModelError(
            f"the model uses the custom autograd function {name!r}, which cannot be seen into and is not linear: "
            f"contributions miss the difference of predictions by {error:.1e} of the prediction; write it with torch "
            f"operations"
        )


def _as_rows_by_targets(y: Any, n_rows: int) -> Tensor:
    if not isinstance(y, Tensor):
        raise ValueError(f"the model returns a {type(y).__name__}, not a tensor; wrap it so that it returns one output")
    if y.ndim == 1:
        y = y.unsqueeze(1)
    if y.ndim < 2 or y.shape[0] != n_rows or y.shape[2:].numel() != 1:
        raise ValueError(
            f"the model returns shape {tuple(y.shape)} for {n_rows} rows; expected ({n_rows}, n_targets), optionally "
            f"followed by axes of length 1; wrap the model so that it returns one value for each target"
        )
    return y.reshape(n_rows, y.shape[1])


def _resolve_targets(targets: Sequence[int] | str, n_targets: int) -> list[int]:
    if isinstance(targets, str):
        if targets != "all":
            raise ValueError(f"targets must be integers or 'all', not {targets!r}")
        return list(range(n_targets))
    for target in targets:
        if not -n_targets <= target < n_targets:
            raise IndexError(f"target {target} is not there: the model has {n_targets} outputs, 0 to {n_targets - 1}")
    return [target % n_targets for target in targets]
