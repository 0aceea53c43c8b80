"""Whether the rows of a batch stay apart: a question about the model's code, asked once of a model as it is configured.

Two passes compared by their shapes (`row_trace`) name the operation that mixes rows. A row of NaN, which must leave the
others as they are, shows what these cannot: rows that change places, unseen functions, and a neighbour that matters too
little to show in a prediction. Whether predictions are the same alone and in a batch is asked in `checks`.

Shape legend: S sequences and K references of each in a batch, T outputs of the model, A alphabet, L length.
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dlshap_core.errors import DecisionError, UnsupportedModelError
from dlshap_core.passes.model_passes import ModelPasses
from dlshap_core.passes.row_trace import N_ROWS, RowTrace
from dlshap_core.rules.rows import RowPairing

MIXES = "the model mixes the sequences of a batch, or draws random numbers"

# Configurations of each model whose rows were found to stay apart.
_found_good: weakref.WeakKeyDictionary[nn.Module, set[Any]] = weakref.WeakKeyDictionary()


def require_rows_apart(
    passes: ModelPasses, sequences: Tensor, references: Tensor, rows: slice, is_careful: bool
) -> None:
    """Rows of a batch must not touch each other, neither where they did in this batch nor where they could.

    Args:
        passes: over the model.
        sequences: (S, A, L).
        references: (S, K, A, L).
        rows: of the sequences, among those of the extra inputs.
        is_careful: as in `RowPairing`.

    Raises:
        UnsupportedModelError: they do.
    """
    if references.shape[:2].numel() == 1:
        return
    found_good, configuration = _found_good.setdefault(passes.model, set()), _configuration(passes, sequences)
    if configuration in found_good:
        return
    x = torch.cat([sequences[:1], references[0, :1], references[-1, -1:]])
    args = [torch.cat([arg[rows][:1], arg[rows][:1], arg[rows][-1:]]) for arg in passes.args]
    extra = [passes.as_input(arg) for arg in args]
    _trace_rows(passes, x, extra, is_careful)
    _require_unspoilt(lambda z: passes.plain(z, [arg[1:] for arg in extra]), x[1:])
    found_good.add(configuration)


def _configuration(passes: ModelPasses, sequences: Tensor) -> tuple[Any, ...]:
    """What the answer depends on, beside the model's class: its settings, and how it is computed."""
    settings = tuple(tuple(map(_identity, vars(module).values())) for module in passes.model.modules())
    return sequences.shape[1:], passes.device, passes.computed_in, len(passes.args), settings


def _identity(value: Any) -> Any:
    """Of an attribute; a list by what is in it, as recurrent layers list their weights anew whenever they are moved."""
    if isinstance(value, (bool, int, float, str)):
        return value
    return tuple(map(id, value)) if type(value) is list else id(value)


def _trace_rows(passes: ModelPasses, x: Tensor, extra: list[Tensor], is_careful: bool) -> None:
    """Passes over the first 2 and over all 3 rows.

    Raises:
        UnsupportedModelError: an operation mixes them, or they decide otherwise than the batch they are from.
    """
    trace: RowTrace | None = None
    for n in N_ROWS:
        decisions = None if trace is None else passes.decisions
        trace = RowTrace(trace)
        layout = RowPairing(n, 1, is_careful=is_careful)
        try:
            passes.trace(x[:n], [arg[:n] for arg in extra], layout, trace, decisions)
        except DecisionError as error:
            if trace.problems:  # why it decides otherwise
                raise UnsupportedModelError(trace.problems[0]) from error
            raise


def _require_unspoilt(predict: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The prediction of one row must not become NaN where the other row is.

    Nothing but NaN is looked for: what is decided from values, in Python or by a mask, may well be another for NaN.

    Args:
        predict: (2, A, L) -> (2, T).
        x: (2, A, L).

    Raises:
        UnsupportedModelError: one does.
    """
    is_finite = predict(x).isfinite().all(1)
    for damaged, other in ((0, 1), (1, 0)):
        spoilt = _with_nan(x, damaged)
        found = None
        with contextlib.suppress(Exception):  # a model may check its input, and then this cannot be asked of it
            found = predict(spoilt)[other]
        if found is not None and bool(is_finite[other] & found.isnan().any()):
            raise UnsupportedModelError(
                f"the prediction of a sequence depends on what else is in its batch: {MIXES}; use an axis of each "
                f"sequence alone, dim=1 or later"
            )


def _with_nan(x: Tensor, row: int) -> Tensor:
    damaged = x.clone()
    damaged[row] = torch.nan
    return damaged
