"""Passes over a borrowed model: observed on sequences, replayed on references, and plain.

Shape legend: S sequences and K references of each in a batch, B rows, T outputs of the model, A alphabet, L length.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dlshap_core.errors import DecisionError, UnsupportedModelError, is_out_of_memory
from dlshap_core.kernels.memory_format import FormatChoice, FormatMatters
from dlshap_core.passes.blocks import Blocks, Called, CannotSplit, Measure
from dlshap_core.passes.borrowed_model import State, borrowed
from dlshap_core.passes.conversions import FindsLowered
from dlshap_core.passes.decisions import Decided, Decisions
from dlshap_core.passes.plain_calls import deterministic_forms
from dlshap_core.passes.recorder import ForwardPass, Seen
from dlshap_core.passes.row_trace import RowTrace
from dlshap_core.passes.tape import Overwritten, Tape
from dlshap_core.passes.targets import Targets, as_rows_by_targets
from dlshap_core.passes.tolerance import Lowered
from dlshap_core.passes.transforms import called_plainly
from dlshap_core.rules.gradients import find_custom_function
from dlshap_core.rules.rows import PassesDiffer, RowPairing

WRITES_INTO_PIECES = "This view is the output of a function that returns multiple views"
_HOOKS_REFUSED = (
    "the model keeps or recomputes activations by hooks or functions of its own (save_on_cpu, or checkpointing other "
    "than torch.utils.checkpoint), which cannot be seen; switch it off for attribution"
)


class SavingMatters(Exception):
    """The model calls what does not go with hooks on saved tensors, as torch.func.grad."""


def _hooks_refused() -> contextlib.AbstractContextManager[None]:
    return torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS_REFUSED)


def _nothing_saved(forward: ForwardPass) -> torch.autograd.graph.saved_tensors_hooks:
    """Nothing goes back through the first pass, whose graph only tells what depends on the sequence: what operations
    would keep for that is as much memory as the second pass takes."""

    def refuse(_: None) -> Tensor:
        forward.refuse("grad", "forward computes gradients of its own")

    return torch.autograd.graph.saved_tensors_hooks(lambda _: None, refuse)


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's first floating-point parameter or buffer, float32 if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return next((x.dtype for x in tensors if x.is_floating_point()), torch.float32)


def uses_autocast(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a model is computed in half precision by autocasting, its parameters staying float32."""
    return dtype in (torch.float16, torch.bfloat16) and model_dtype(model) == torch.float32


class ModelPasses:
    """Calls a borrowed model.

    Args:
        model: lent by `borrowed`.
        state: what `borrowed` gave.
        device: where the model is.
        dtype: of the computation, as in `attribute`.
        targets: outputs to explain.
        allow_tf32: whether a GPU may round products.
        args: extra inputs of the model, N rows each.
        seen: filled by an audit.
        may_change_format: whether activations may lie in memory in another format than the model's own.
        decisions: what the model is expected to decide; None takes the first batch for it.
        split: names of the modules that are computed again on the way back; see blocks.py.

    Attributes:
        dtype: of inputs and results: float32 under autocast.
        computed_in: the dtype that was asked for.
        uses_autocast: see the function.
        modules: the names of the model's modules by id.
        formats, decisions, blocks: see there.
        custom_function: a custom autograd function of the model, known after the first batch.
        lowered: where the model first computes with fewer digits than its input has, once met.
    """

    def __init__(
        self,
        model: nn.Module,
        state: State,
        device: torch.device,
        dtype: torch.dtype,
        targets: Targets,
        allow_tf32: bool = False,
        args: tuple[Tensor, ...] = (),
        seen: Seen | None = None,
        may_change_format: bool = True,
        decisions: Decisions | None = None,
        split: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.device = device
        self.computed_in = dtype
        self.uses_autocast = uses_autocast(model, dtype)
        self.dtype = torch.float32 if self.uses_autocast else dtype
        self._allows_tf32 = allow_tf32
        self.args = args
        self.targets = targets
        self.modules = {id(module): name for name, module in model.named_modules()}
        self.formats = FormatChoice.of(device, dtype) if may_change_format else FormatChoice(may_change=False)
        self.decisions = decisions or Decisions()
        self.custom_function: str | None = None
        self.lowered: Lowered | None = None
        self._state = state
        self._seen = seen
        self.saves_nothing = True  # in the first pass
        self.blocks = Blocks(model, split, self._computing, _nothing_saved)

    @property
    def is_rough(self) -> bool:
        """Whether products are rounded to fewer digits than the results have, as was asked for."""
        return self.uses_autocast or self._allows_tf32

    def leave_formats(self) -> None:
        """From now on activations lie in memory in the model's own format."""
        self.formats.give_up()
        if self._seen is not None:
            self._seen.refusals.clear()

    @contextlib.contextmanager
    def in_float64(self) -> Iterator["ModelPasses"]:
        """The same model and inputs, in float64."""
        with borrowed(self.model, self.device, torch.float64) as state:
            passes = ModelPasses(
                self.model, state, self.device, torch.float64, self.targets, args=self.args, may_change_format=False
            )
            passes.saves_nothing = self.saves_nothing
            yield passes

    def observe(
        self, sequences: Tensor, rows: slice, n_repeats: int, tape: Tape, layout: RowPairing, is_first: bool
    ) -> tuple[Tensor, Decided]:
        """First pass: predictions (S n_repeats, T) of the sequences, and what was decided; fills the tape.

        Args:
            sequences: (S, A, L).
            rows: theirs, among those of the extra inputs.
            n_repeats: rows of each sequence in the batch.
            tape, layout: of the two passes.
            is_first: look for buffers written to, as until a batch is found good.
        """
        x = sequences.repeat_interleave(n_repeats, 0).requires_grad_()
        forward = ForwardPass(tape, layout, False, self.modules, self.formats, self._seen, self.decisions)
        y = self._observed(x, rows, n_repeats, forward, layout).detach()
        if is_first and (written := self._state.written()):
            raise UnsupportedModelError(
                f"forward writes to the buffer {written[0]!r} in eval mode: what the model returns then depends on the "
                f"other sequences of a batch, or on how often it was called; write to it only if self.training"
            )
        return y, forward.decided

    def replay(
        self, leaf: Tensor, rows: slice, n_references: int, tape: Tape, layout: RowPairing, is_first: bool
    ) -> tuple[Tensor, bool]:
        """Second pass: predictions (S K, T) of the references with multipliers in place of gradients, and whether
        every rule used has completeness. The arguments are those of `observe`; the first time it looks for custom
        autograd functions."""
        forward = ForwardPass(tape, layout, True, self.modules, self.formats, self._seen, self.decisions)
        y = self._observed(leaf, rows, n_references, forward, layout)
        self.lowered = self.lowered or forward.lowered
        tape.check_consumed()
        if is_first:
            self.custom_function = find_custom_function(y)
            if self.custom_function == "CheckpointFunction":
                raise UnsupportedModelError(_HOOKS_REFUSED)
        return y, forward.is_complete

    def trace(
        self, x: Tensor, extra: list[Tensor], layout: RowPairing, trace: RowTrace, decisions: Decisions | None
    ) -> None:
        """A pass that follows the rows of x (B, A, L), B being sequences of the layout."""
        forward = ForwardPass(Tape(), layout, False, self.modules, self.formats, None, decisions, trace)
        with self.formats.watching():
            self._call(x.clone().requires_grad_(), extra, forward)

    def plain(self, x: Tensor, extra: list[Tensor]) -> Tensor:
        """The model's output (B, T) on (B, A, L), unobserved."""
        self._state.rewind()
        with torch.no_grad(), self._autocast(), deterministic_forms(self.device):
            return as_rows_by_targets(self.model(x.detach().clone(), *[arg.clone() for arg in extra]), len(x))

    def plain_targets(self, x: Tensor, rows: slice, n_repeats: int) -> Tensor:
        """The outputs to explain, unobserved, of sequences whose extra inputs are those of `rows`, repeated."""
        return self.targets.select(self.plain(x, self._extra(rows, n_repeats)))

    def observed_targets(self, x: Tensor, rows: slice, n_repeats: int) -> Tensor:
        """The same as the first pass computes them; nothing is kept."""
        layout = RowPairing(len(x), 1)
        forward = ForwardPass(Tape(), layout, False, self.modules, self.formats)
        forward.is_dry = True
        return self.targets.select(self._observed(x.requires_grad_(), rows, n_repeats, forward, layout).detach())

    def predict(self, X: Tensor, args: Sequence[Tensor], batch_size: int = 1) -> Tensor:
        """(N, targets) predictions of (N, A, L), so many in a batch and unobserved; `args` have N rows each."""
        x = X.detach().to(self.device).to(self.dtype)
        extra = [self.as_input(arg) for arg in args]
        batches = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
        y = torch.cat([self.plain(x[rows], [arg[rows] for arg in extra]) for rows in batches])
        return self.targets.select(y).to(self.dtype).cpu()

    def as_input(self, arg: Tensor) -> Tensor:
        """A extra input as the model gets it."""
        arg = arg.detach().to(self.device)
        return arg if arg.dtype in (torch.int32, torch.int64) else arg.to(self.dtype)

    def _extra(self, rows: slice, n_repeats: int) -> list[Tensor]:
        """The extra inputs of some sequences, each row as often as it is needed."""
        return [self.as_input(arg[rows]).repeat_interleave(n_repeats, 0) for arg in self.args]

    def measure(self, x: Tensor, extra: Sequence[Tensor]) -> Called:
        """What the rules keep of one sequence (1, A, L) in one of the two passes, by module; nothing is kept."""
        measure, formats = Measure(self.model), FormatChoice(may_change=False)
        forward = ForwardPass(Tape(), RowPairing(1, 1), False, self.modules, formats)
        x = x.detach().to(self.device).to(self.dtype).requires_grad_()
        self._call(x, [self.as_input(arg) for arg in extra], forward, measure.installed(forward))
        return measure.whole

    def _observed(self, x: Tensor, rows: slice, n_repeats: int, forward: ForwardPass, layout: RowPairing) -> Tensor:
        """One of the two passes, in which every sequence has so many rows."""

        def again(tape: Tape, replaying: bool) -> ForwardPass:
            return ForwardPass(tape, layout, replaying, self.modules, self.formats, self._seen if replaying else None)

        extra = self._extra(rows, n_repeats)
        if self._seen is not None:
            self._seen.operations.clear()  # an audit lists those of its last pass
        try:
            with self.formats.watching():
                return self._call(x, extra, forward, self.blocks.installed(forward, again))
        except DecisionError as error:
            raise DecisionError(error.text, None if error.row is None else error.row // n_repeats) from error

    def _call(
        self,
        x: Tensor,
        extra: list[Tensor],
        forward: ForwardPass,
        installed: contextlib.AbstractContextManager[None] | None = None,
    ) -> Tensor:
        """The model's output (B, T) on (B, A, L) and B rows of each extra input, with every operation going through
        `forward`, and what is `installed` in the model's modules."""
        x = x.clone()  # not a leaf, so that the model may work in place on its input
        self._state.rewind()
        try:
            with (
                torch.enable_grad(),
                self._computing(),
                _nothing_saved(forward) if self.saves_nothing and not forward.replaying else _hooks_refused(),
                installed or contextlib.nullcontext(),
                forward,
            ):
                y = self.model(x, *extra)
        except (PassesDiffer, Overwritten, FormatMatters, CannotSplit, UnsupportedModelError):
            raise
        except Exception as error:
            if is_out_of_memory(error):  # no reason to run the model once more
                raise
            if self.saves_nothing and "saved tensor hooks" in str(error):
                raise SavingMatters from error
            if WRITES_INTO_PIECES in str(error):
                raise Overwritten(f"the model overwrites in place pieces of an activation: {error}") from error
            self._explain(error, x, extra)
            raise
        if self._seen is not None and self._seen.refusals:
            raise UnsupportedModelError(self._seen.refusals[0])
        forward.finish(y)
        return as_rows_by_targets(y, x.shape[0])

    def _explain(self, error: Exception, x: Tensor, extra: list[Tensor]) -> None:
        """Tell a model that fails only under observation from one that fails by itself.

        Raises:
            UnsupportedModelError: it runs by itself.
        """
        if str(error) == _HOOKS_REFUSED:
            raise UnsupportedModelError(_HOOKS_REFUSED) from error
        self._state.rewind()
        runs_by_itself, lowered = False, FindsLowered(self.modules)
        with torch.enable_grad(), self._autocast(), contextlib.suppress(Exception), lowered:
            self.model(x.detach().clone(), *extra)
            runs_by_itself = True
        if not runs_by_itself and (complaint := lowered.complaint(error, self.dtype)) is not None:
            raise UnsupportedModelError(complaint) from error
        if runs_by_itself:
            reason = " ".join(str(error).split())
            raise UnsupportedModelError(
                f"the model runs by itself but not when its operations are followed: {type(error).__name__}: {reason}"
            ) from error

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        with self._autocast(), called_plainly():
            yield

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.computed_in, enabled=self.uses_autocast)
