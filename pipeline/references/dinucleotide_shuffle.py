"""Shuffles that keep every dinucleotide count."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlshap_core.shuffles import shuffle_codes
from pipeline.references.shuffles import Shuffles


@dataclass
class DinucleotideShuffle(Shuffles):
    """Shuffles that keep every dinucleotide count."""

    name: str = "dinucleotide_shuffle"

    @staticmethod
    def shuffle(codes_NL: np.ndarray, seeds: Sequence[int], **of_plan: int) -> np.ndarray:
        return shuffle_codes(codes_NL, seeds)
