"""Runs batches of (sequence, reference) pairs through a borrowed model: two passes, and the gradient between.

Shape legend: S sequences and K references of each in a batch, B = S K rows, T targets, A alphabet, L length.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlshap_core.capture import ForwardPass, Overwritten, Seen, Tape, find_custom_function
from dlshap_core.errors import UnsupportedModelError, is_out_of_memory
from dlshap_core.memory_format import FormatChoice, FormatMatters
from dlshap_core.rows import PassesDiffer, Rows
from dlshap_core.rules.table import BREAKS_TIES
from dlshap_core.sequences import one_hot
from dlshap_core.state import Borrowed

# Relative to the largest prediction: far above rounding, also of a model whose output is a small difference of large
# numbers, and far below what an operation without its rule misses.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3, torch.float16: 0.5, torch.bfloat16: 0.5}
_ROUGH_TOLERANCE = 0.1  # relative; half precision and TF32 round differently in batches of different sizes
_HOOKS_REFUSED = (
    "the model uses activation checkpointing (or other hooks on saved tensors), which recomputes what cannot be seen; "
    "switch it off for attribution"
)


def uses_autocast(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a model is computed in half precision by autocasting, its parameters staying float32."""
    return dtype in (torch.float16, torch.bfloat16) and model_dtype(model) == torch.float32


@dataclass
class Batch:
    """Results of one block: references (S, K, A, L), multipliers and contributions (S, T, K, A, L), and the rest."""

    references: Tensor
    multipliers: Tensor
    contributions: Tensor
    prediction: Tensor
    reference_prediction: Tensor
    convergence_delta: Tensor


class _DoesNotAddUp(Exception):
    """Contributions miss the difference of predictions."""


class PairRunner:
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
        allow_tf32: bool = False,
        may_change_format: bool = True,
    ) -> None:
        self._model = model
        self._state = state
        self._device = device
        self._uses_autocast = uses_autocast(model, dtype)
        self._is_rough = self._uses_autocast or allow_tf32
        self._dtype = torch.float32 if self._uses_autocast else dtype
        self._autocast_dtype = dtype
        self._args = args
        self._targets = targets
        self._goes_back_once = not isinstance(targets, str) and len(targets) == 1
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._seen = seen
        self._formats = FormatChoice.of(device, dtype) if may_change_format else FormatChoice(may_change=False)
        self._has_equal_rows = False
        self._breaks_ties = False
        self._is_careful = False
        self._columns: Tensor | None = None  # the targets, on the device
        self._is_checked = False
        self._custom_function: str | None = None

    def run(self, X: Tensor, references: Tensor, rows: slice) -> Batch:
        """Multipliers of every pair of sequences (S, A, L) with their references, (S, K, A, L) or codes (S, K, L)."""
        sequences = X.detach().to(self._device, non_blocking=True).to(self._dtype)
        references = references.detach().to(self._device, non_blocking=True)
        if references.ndim == 3:
            references = one_hot(references, self._dtype, n_letters=X.shape[1])
        references = references.to(self._dtype)
        try:
            return self._run_matched(sequences, references, rows)
        except (FormatMatters, UnsupportedModelError, RuntimeError) as error:
            if not self._formats.is_changed or is_out_of_memory(error):
                raise
        self._formats.give_up()
        self._has_equal_rows = self._is_checked = False  # they were found out in the other format
        if self._seen is not None:
            self._seen.refusals.clear()
        return self._run_matched(sequences, references, rows)

    def _run_matched(self, sequences: Tensor, references: Tensor, rows: slice) -> Batch:
        """The batch, after as many tries as it takes to match the rows of the two passes."""
        n_references = references.shape[1]
        while True:
            n_repeats = n_references if self._has_equal_rows else 1
            try:
                return self._run(sequences, references, rows, n_repeats)
            except Overwritten as error:
                if self._is_careful:
                    raise UnsupportedModelError(str(error)) from error
                self._is_careful = True
            except (PassesDiffer, _DoesNotAddUp) as error:
                if n_repeats == n_references:
                    raise _unsupported(error) from error
                # Rows cannot be matched across passes of different sizes: from now on both get the same rows.
                self._has_equal_rows = True

    def _run(self, sequences: Tensor, references: Tensor, rows: slice, n_repeats: int) -> Batch:
        """Both passes, each sequence going through the first one `n_repeats` times (1, or once for each reference)."""
        n_sequences, n_references = references.shape[:2]
        # A batch of one row is computed by other kernels, with other last bits, than any larger one.
        is_alone = n_sequences == n_repeats == 1
        needs_company = is_alone and self._breaks_ties
        if needs_company and n_references == 2:
            n_repeats = 2  # one row of padding would make both passes equal in size, and rows are told by size
        n_padding = 1 if needs_company and n_references > 2 else 0
        layout = Rows(
            n_sequences * n_repeats, n_references // n_repeats, n_padding, self._goes_back_once, self._is_careful
        )
        tape = Tape()
        y = self._observe(sequences, rows, n_repeats + n_padding, tape, layout)
        if is_alone and n_references > 1 and not self._breaks_ties and tape.holds_any(BREAKS_TIES):
            self._breaks_ties = True
            return self._run(sequences, references, rows, 1)
        targets = _resolve_targets(self._targets, y.shape[1])
        if self._columns is None:
            self._columns = torch.tensor(targets, device=y.device)
        prediction = y[:: n_repeats + n_padding].index_select(1, self._columns).to(self._dtype)

        leaf = references.flatten(0, 1).clone().requires_grad_()  # the caller's own may be an inference tensor
        y, sums = self._replay(leaf, rows, n_references, tape, layout)
        multipliers = _gradients(y, leaf, targets).unflatten(1, (n_sequences, n_references)).transpose(0, 1)
        y = y.detach()
        reference_prediction = (
            y.index_select(1, self._columns).to(self._dtype).unflatten(0, (n_sequences, n_references)).transpose(1, 2)
        )
        contributions = multipliers * (sequences[:, None] - references).unsqueeze(1)
        # Summed in float64: the delta should show the rules' error, not that of adding up.
        explained = contributions.sum((-2, -1), dtype=torch.float64)
        delta = explained - (prediction[..., None].double() - reference_prediction.double())
        if not self._is_checked and bool(y.isfinite().all()):
            self._check_alone(leaf, y, rows)
            if sums:
                self._check_sums(y, prediction, delta)
            self._is_checked = True
        elif self._is_checked and sums and self._custom_function is not None:
            self._check_sums(y, prediction, delta)
        return Batch(references, multipliers, contributions, prediction, reference_prediction, delta.to(self._dtype))

    def _observe(self, sequences: Tensor, rows: slice, n_repeats: int, tape: Tape, layout: Rows) -> Tensor:
        """First pass: predictions (S n_repeats, T) of the sequences; fills the tape."""
        x = sequences.repeat_interleave(n_repeats, 0).requires_grad_()
        forward = ForwardPass(tape, layout, False, self._modules, self._formats, self._seen)
        with self._formats.watching():
            return self._predict(x, rows, n_repeats, forward).detach()

    def _replay(self, leaf: Tensor, rows: slice, n_references: int, tape: Tape, layout: Rows) -> tuple[Tensor, bool]:
        """Second pass: predictions (S K, T) of the references with multipliers in place of gradients, and whether
        contributions add up by design."""
        forward = ForwardPass(tape, layout, True, self._modules, self._formats, self._seen)
        with self._formats.watching():
            y = self._predict(leaf, rows, n_references, forward)
        tape.check_consumed()
        if not self._is_checked:
            self._custom_function = find_custom_function(y)
            if self._custom_function == "CheckpointFunction":
                raise UnsupportedModelError(_HOOKS_REFUSED)
        return y, forward.sums

    def _predict(self, x: Tensor, rows: slice, n_repeats: int, forward: ForwardPass) -> Tensor:
        """The model's output (B, T) on (B, A, L), with every operation going through `forward`.

        `n_repeats` is how often each row of the further inputs is needed.
        """
        if self._seen is not None:
            self._seen.operations.clear()
        extra = [self._extra_input(arg[rows]).repeat_interleave(n_repeats, 0) for arg in self._args]
        x = x.clone()  # not a leaf, so that the model may work in place on its input
        self._state.rewind()
        try:
            with (
                torch.enable_grad(),
                self._autocast(),
                torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS_REFUSED),
                forward,
            ):
                y = self._model(x, *extra)
        except (PassesDiffer, Overwritten, FormatMatters, UnsupportedModelError):
            raise
        except Exception as error:
            self._explain(error, x, extra)
            raise
        if self._seen is not None and self._seen.refusals:
            raise UnsupportedModelError(self._seen.refusals[0])
        return _as_rows_by_targets(y, x.shape[0])

    def _explain(self, error: Exception, x: Tensor, extra: list[Tensor]) -> None:
        """Tell a model that fails only under observation from one that fails by itself.

        Raises:
            UnsupportedModelError: it runs by itself.
        """
        if str(error) == _HOOKS_REFUSED:
            raise UnsupportedModelError(_HOOKS_REFUSED) from error
        self._state.rewind()
        runs_by_itself = False
        with torch.enable_grad(), self._autocast(), contextlib.suppress(Exception):
            self._model(x.detach().clone(), *extra)
            runs_by_itself = True
        if runs_by_itself:
            reason = " ".join(str(error).split())
            raise UnsupportedModelError(
                f"the model runs by itself but not when its operations are followed: {type(error).__name__}: {reason}"
            ) from error

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._autocast_dtype, enabled=self._uses_autocast)

    def _check_sums(self, y: Tensor, prediction: Tensor, delta: Tensor) -> None:
        """In the first batch, and in all where a custom function is involved: contributions must add up.

        Every operation seen has an exact rule, so where they do not, something went past the function mode.

        Raises:
            _DoesNotAddUp: they do not.
        """
        if self._is_rough:
            return
        scale = torch.maximum(y.abs().max(), prediction.abs().max()).clamp_min(torch.finfo(y.dtype).tiny)
        error = (delta.abs().max() / scale).item()
        if error <= _TOLERANCE[y.dtype]:
            return
        suspect = "scripted functions, other threads, torch.func or constructors of tensors, say"
        if self._custom_function is not None:
            suspect = f"the custom autograd function {self._custom_function!r}"
        raise _DoesNotAddUp(
            f"contributions miss the difference of predictions by {error:.1e} of the largest prediction: the model "
            f"computes something that cannot be seen ({suspect}); write it with plain torch operations"
        )

    def _check_alone(self, references: Tensor, y: Tensor, rows: slice) -> None:
        """The last reference, run by itself and unobserved, must give the same prediction as in its batch.

        It does not where a model mixes the rows of a batch, draws numbers that cannot be seen, or where an operation is
        computed otherwise than by the model itself.

        Raises:
            UnsupportedModelError: it does not.
        """
        last = slice(rows.stop - 1, rows.stop)
        extra = [self._extra_input(arg[last]).clone() for arg in self._args]
        self._state.rewind()
        with torch.no_grad(), self._autocast():
            alone = _as_rows_by_targets(self._model(references[-1:].detach().clone(), *extra), 1)
        scale = y.abs().max().clamp_min(torch.finfo(y.dtype).tiny)
        error = ((alone[0] - y[-1]).abs().max() / scale).item()
        if not error <= (_ROUGH_TOLERANCE if self._is_rough else _TOLERANCE[y.dtype]):
            raise UnsupportedModelError(
                f"the prediction of a sequence alone differs from that in a batch of {len(y)} by {error:.1e} of the "
                f"largest prediction: the model mixes the sequences of a batch, or draws random numbers"
            )

    def _extra_input(self, arg: Tensor) -> Tensor:
        arg = arg.to(self._device)
        return arg if arg.dtype in (torch.int32, torch.int64) else arg.to(self._dtype)


def _unsupported(error: PassesDiffer | _DoesNotAddUp) -> UnsupportedModelError:
    if isinstance(error, _DoesNotAddUp):
        return UnsupportedModelError(str(error))
    return UnsupportedModelError(f"the model does not do the same on a sequence and on its reference: {error}")


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's first floating-point parameter or buffer, float32 if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return next((x.dtype for x in tensors if x.is_floating_point()), torch.float32)


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
                raise Overwritten(
                    f"the model overwrites in place a tensor that is needed to go back through it: {error}"
                ) from error
        gradients.append(torch.zeros_like(leaf) if gradient is None else gradient)
    return torch.stack(gradients)


def _as_rows_by_targets(y: Any, n_rows: int) -> Tensor:
    if not isinstance(y, Tensor):
        raise ValueError(f"the model returns a {type(y).__name__}, not a tensor; wrap it so that it returns one output")
    if not y.is_floating_point():
        raise ValueError(f"the model returns {y.dtype} numbers; expected floating-point predictions")
    if n_rows == 1 and y.ndim <= 1:
        y = y.reshape(1, -1)  # a squeezed output loses its only row
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
