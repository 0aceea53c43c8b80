"""Every type of numbers that a configuration may name has its roundings."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.config.schema import DTYPES
from pipeline.planning.number_types import NUMBER_TYPES


def test_every_type_has_its_numbers() -> None:
    assert set(NUMBER_TYPES) == set(DTYPES)
    assert all(numbers.finer in (None, *DTYPES) for numbers in NUMBER_TYPES.values())
    for name in ("float64", "float32", "float16", "bfloat16"):
        assert NUMBER_TYPES[name].epsilon == torch.finfo(getattr(torch, name)).eps
    finest_first = sorted(NUMBER_TYPES.values(), key=lambda numbers: numbers.epsilon)
    assert np.all(np.diff([numbers.tolerance for numbers in finest_first[:3]]) > 0)
