"""References: settled once on the driver, drawn shard by shard by the actors.

A kind of references is two functions: `settle` turns the configuration and what is known of the input into plain
values, `opened` turns those into a function of a shard. Nothing but the row's sequence, its number, the seed and the
reference's number may decide a reference.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.config import DRAWN, ReferencesConfig
from pipeline.fingerprint import InputFacts
from pipeline.plan import Plan
from pipeline.references import arrays, fixed, genomic, shuffles
from pipeline.references.base import Draw, Settled, ShardReferences
from pipeline.sources.text import require_file

__all__ = ["Draw", "Settled", "ShardReferences", "open_references", "require_files", "settle", "unused"]


def require_files(config: ReferencesConfig) -> None:
    """Raise UserError at once for a file that is not there, rather than after the pass over the input."""
    if config.path is not None:
        arrays.open_file(config.path)
    if config.genome is not None:
        require_file(config.genome, "references.genome")


def unused(config: ReferencesConfig) -> str | None:
    """What to tell someone who asks for a number of references that the kind does not draw."""
    if config.name in DRAWN or config.n_shuffles is None:
        return None
    n = "as many references as its array holds" if config.name == "array" else "one reference"
    return f"references={config.name} compares with {n}; references.n_shuffles={config.n_shuffles} is not used"


def settle(config: ReferencesConfig, facts: InputFacts) -> Settled:
    """Decide all that is to be decided.

    Raises:
        UserError: files that cannot be used with this input.
    """
    if config.name in shuffles.SHUFFLES:
        settled = shuffles.settle(config)
    elif config.name == "array":
        settled = arrays.settle(config, facts)
    elif config.name == "genomic":
        settled = genomic.settle(config, facts)
    else:
        settled = fixed.settle(config, facts)
    fingerprint = {"name": config.name, **settled.fingerprint}
    return replace(settled, fingerprint={f"references.{key}": value for key, value in fingerprint.items()})


def open_references(plan: Plan, pool: Callable[[], np.ndarray]) -> Draw:
    """The references of a run, from its plan and, where they are drawn from windows of a genome, those that the store
    keeps.

    Raises:
        UserError: a file that is gone.
    """
    name = plan.references["name"]
    if name in shuffles.SHUFFLES:
        return shuffles.opened(plan)
    if name == "array":
        return arrays.opened(plan)
    return genomic.opened(plan, pool()) if name == "genomic" else fixed.opened(plan)
