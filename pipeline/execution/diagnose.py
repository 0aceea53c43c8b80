"""Why a shard failed: which sequence, or which batch size would have fitted into memory."""

import gc
from dataclasses import replace

import numpy as np
import torch

from dlshap_core.errors import is_out_of_memory
from pipeline.args import Args
from pipeline.ensemble import Folds, attribute_rows
from pipeline.plan import Plan
from pipeline.references import ShardReferences
from pipeline.references.base import RowsOf


def explain(
    error: Exception,
    folds: Folds,
    plan: Plan,
    codes_NL: np.ndarray,
    references: ShardReferences,
    names: list[str],
    args: Args = (),
) -> str:
    """One line about an error, with what can be found out by trying again.

    Args:
        error: what went wrong with the whole shard.
        folds, plan: of the run.
        codes_NL: (N, L) uint8, of the shard.
        references: of its rows.
        names: (N,) what the input calls them, with the number of each.
        args: further inputs of the model, N rows each.
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    if is_out_of_memory(error):
        return f"{text}. {_advice(folds, plan, codes_NL, references, args)}"
    for i, name in enumerate(names):
        alone = _failure(folds, plan, codes_NL[i : i + 1], RowsOf(references, i), [arg[i : i + 1] for arg in args])
        if alone is not None and not is_out_of_memory(alone):
            return f"{name}: {type(alone).__name__}: {' '.join(str(alone).split())}"
    return f"{text} (each of its sequences alone passes)"


def _advice(folds: Folds, plan: Plan, codes_NL: np.ndarray, references: ShardReferences, args: Args) -> str:
    """The largest half, quarter, ... of the batch size that fits."""
    size = plan.batch_size
    while size > 1:
        size //= 2
        gc.collect()
        if plan.device.startswith("cuda"):
            torch.cuda.empty_cache()
        n_rows = max(1, -(-size // plan.n_references))
        some = [arg[:n_rows] for arg in args]
        if _failure(folds, replace(plan, batch_size=size), codes_NL[:n_rows], references, some) is None:
            return (
                f"Batches of {plan.batch_size} pairs do not fit into the memory of {plan.device}, {size} do: give "
                f"engine.batch_size={size} and another store.path (the last bits depend on it)"
            )
    return f"Not even one pair fits into the memory of {plan.device}"


def _failure(
    folds: Folds, plan: Plan, codes_NL: np.ndarray, references: ShardReferences, args: Args
) -> Exception | None:
    """What goes wrong with some rows, the first that there are references of."""
    try:
        attribute_rows(folds, plan, codes_NL, references, args)
    except Exception as error:
        return error
    return None
