"""Shuffles that keep every dinucleotide count, each such sequence equally likely."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlshap_core.shuffles import shuffle_codes
from pipeline.references.shuffles import Shuffles


@dataclass
class DinucleotideShuffleUniform(Shuffles):
    """Shuffles that keep every dinucleotide count, each such sequence equally likely."""

    name: str = "dinucleotide_shuffle_uniform"

    @staticmethod
    def shuffle(codes_NL: np.ndarray, seeds: Sequence[int], **of_plan: int) -> np.ndarray:
        return shuffle_codes(codes_NL, seeds, is_uniform=True)
