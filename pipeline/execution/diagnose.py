"""Why a shard failed: which sequence, or which batch size would have fitted into memory."""

import gc
from dataclasses import replace

import numpy as np
import torch

from dlshap_core.errors import DecisionError, is_out_of_memory, let_go
from pipeline.execution.ensemble import Folds, attribute_rows
from pipeline.messages.errors import DeviceBrokenError
from pipeline.messages.secrets import one_line
from pipeline.planning.extra_inputs import ExtraInputs
from pipeline.planning.plan import Plan
from pipeline.references.base import ShardReferences


def diagnose(
    error: Exception,
    folds: Folds,
    plan: Plan,
    codes_NL: np.ndarray,
    references: ShardReferences,
    names: list[str],
    extra_inputs: ExtraInputs = (),
) -> str:
    """One line about an error, with what can be found out by trying again.

    The failed batch is let go first: it would take the memory that is tried.

    Args:
        error: what went wrong with the whole shard; its frames lose their variables, and it can still be printed.
        folds, plan: of the run.
        codes_NL: (N, L) uint8, of the shard.
        references: of its rows.
        names: (N,) what the input calls them, with the number of each.
        extra_inputs: of the model, N rows each.

    Raises:
        DeviceBrokenError: the device computes nothing any more.
    """
    text = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
    let_go(error)
    if isinstance(error, DecisionError) and error.row is not None:
        return f"{names[error.row]}: {error.text}"
    if is_out_of_memory(error):
        return f"{text}. {_advice(folds, plan, codes_NL, references, extra_inputs)}"
    for i, name in enumerate(names):
        alone = _failure(
            folds,
            plan,
            codes_NL[i : i + 1],
            ShardReferences(references.values[i:]),
            [arg[i : i + 1] for arg in extra_inputs],
        )
        if alone is not None and not is_out_of_memory(alone):
            return f"{name}: {type(alone).__name__}: {one_line(alone)}"
    return f"{text} (each of its sequences alone passes)"


def _advice(
    folds: Folds, plan: Plan, codes_NL: np.ndarray, references: ShardReferences, extra_inputs: ExtraInputs
) -> str:
    """The largest half, quarter, ... of the batch size that fits."""
    size = plan.batch_size
    while size > 1:
        size //= 2
        gc.collect()
        if plan.device.startswith("cuda"):
            torch.cuda.empty_cache()
        n_rows = max(1, -(-size // plan.n_references))
        some = [arg[:n_rows] for arg in extra_inputs]
        if _failure(folds, replace(plan, batch_size=size), codes_NL[:n_rows], references, some) is None:
            return (
                f"Batches of {plan.batch_size} pairs do not fit into the memory of {plan.device}, {size} do: give "
                f"engine.batch_size={size} and another store.path (the last bits depend on it)"
            )
    return f"Not even one pair fits into the memory of {plan.device}"


def _failure(
    folds: Folds, plan: Plan, codes_NL: np.ndarray, references: ShardReferences, extra_inputs: ExtraInputs
) -> Exception | None:
    """What goes wrong with some rows, the first that there are references of."""
    try:
        attribute_rows(folds, plan, codes_NL, references, extra_inputs)
    except DeviceBrokenError:
        raise
    except Exception as error:
        let_go(error)
        return error
    return None
