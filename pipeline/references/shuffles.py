"""Shuffles of each sequence: reference k is drawn with the seed `seed + k`, whatever the other rows are."""

from collections.abc import Callable, Sequence

import numpy as np

from dlshap_core.references import permute_codes, shuffle_codes, shuffle_codes_locally
from pipeline.config import ReferencesConfig
from pipeline.plan import Plan
from pipeline.references.base import Draw, Settled, ShardReferences, shared

SHUFFLES: dict[str, Callable[[np.ndarray, Sequence[int], int], np.ndarray]] = {
    "dinucleotide_shuffle": lambda codes, seeds, window: shuffle_codes(codes, seeds),
    "dinucleotide_shuffle_uniform": lambda codes, seeds, window: shuffle_codes(codes, seeds, is_uniform=True),
    "local_dinucleotide_shuffle": lambda codes, seeds, window: shuffle_codes_locally(codes, seeds, window),
    "shuffle": lambda codes, seeds, window: permute_codes(codes, seeds),
}


def settle(config: ReferencesConfig) -> Settled:
    """What a configuration asks for."""
    assert config.n_shuffles is not None  # see config.problems
    window = {} if config.window is None else {"window": config.window}
    fingerprint = {"n_shuffles": config.n_shuffles, **window}
    return Settled(config.n_shuffles, {"name": config.name, **window}, fingerprint)


def opened(plan: Plan) -> Draw:
    """Draws the shuffles of a shard."""
    shuffled, window = SHUFFLES[plan.references["name"]], plan.references.get("window", 0)
    seeds = [plan.seed + k for k in range(plan.n_references)]

    def draw(codes_NL: np.ndarray, first_row: int) -> ShardReferences:
        return shared(shuffled(codes_NL[:: plan.rows_per_group], seeds, window), plan.rows_per_group)

    return draw
