"""Shuffles that keep the count of every base."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlshap_core.shuffles import permute_codes
from pipeline.references.shuffles import Shuffles


@dataclass
class Shuffle(Shuffles):
    """Shuffles that keep the count of every base."""

    name: str = "shuffle"

    @staticmethod
    def shuffle(codes_NL: np.ndarray, seeds: Sequence[int], **of_plan: int) -> np.ndarray:
        return permute_codes(codes_NL, seeds)
