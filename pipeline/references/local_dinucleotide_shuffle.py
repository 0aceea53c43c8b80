"""Dinucleotide shuffles within windows, for long inputs whose composition changes along them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dlshap_core.shuffles import shuffle_codes_locally
from pipeline.config.settings import setting
from pipeline.references.shuffles import Shuffles


@dataclass
class LocalDinucleotideShuffle(Shuffles):
    """Dinucleotide shuffles within windows, for long inputs whose composition changes along them."""

    name: str = "local_dinucleotide_shuffle"
    window: int = setting("bases in each part that is shuffled by itself", is_plain=True)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.window < 4:
            yield f"references.window={self.window}; expected 4 bases or more: both ends of a window stay"

    def of_plan(self) -> dict[str, int]:
        return {"window": self.window}

    @staticmethod
    def shuffle(codes_NL: np.ndarray, seeds: Sequence[int], **of_plan: int) -> np.ndarray:
        return shuffle_codes_locally(codes_NL, seeds, of_plan["window"])
