"""One reference for all sequences, the same column at every position: zeros, 0.25 each, or background frequencies."""

import numpy as np

from pipeline.config import ReferencesConfig
from pipeline.fingerprint import InputFacts
from pipeline.plan import Plan
from pipeline.references.base import Draw, Settled, ShardReferences, ValueReferences

COLUMNS = {"zeros": [0.0] * 4, "uniform": [0.25] * 4}


def settle(config: ReferencesConfig, facts: InputFacts) -> Settled:
    """What a configuration asks for; background frequencies that are not given are those of the input's known bases."""
    if config.name in COLUMNS:
        return Settled(1, {"name": config.name, "frequencies": COLUMNS[config.name]}, {})
    measured = [count / sum(facts.base_counts) for count in facts.base_counts]
    frequencies = [float(frequency) for frequency in config.frequencies or measured]
    return Settled(1, {"name": config.name, "frequencies": frequencies}, {"frequencies": frequencies})


def opened(plan: Plan) -> Draw:
    """Gives every shard the same."""
    column = np.array(plan.references["frequencies"], dtype=np.float32)
    values = np.tile(column[:, None], (1, 1, 1, plan.length))

    def draw(codes_NL: np.ndarray, first_row: int) -> ShardReferences:
        return ValueReferences(values, len(codes_NL))

    return draw
