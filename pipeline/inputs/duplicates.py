"""What is worth saying of an input that can be used: rows that are there twice, and windows that were left out."""

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.wording import counted


class Repeats:
    """Counts names and loci that come again. Holds 16 bytes a row."""

    def __init__(self) -> None:
        self._names = array("q")
        self._starts: dict[str, array[int]] = {}

    def add(self, name: str, chrom: str, start: int) -> None:
        """A row that is used; chrom is "" where it has no locus."""
        self._names.append(hash(name))  # 64 bits: two names in 10^7 share one with a chance below 10^-5
        if chrom:
            self._starts.setdefault(chrom, array("q")).append(start)

    def counts(self, length: int) -> dict[str, int]:
        """How often.

        Args:
            length: bases in each row.

        Returns:
            n_same_name: rows with the name of an earlier one; n_same_locus: rows with the locus of an earlier one;
            n_overlapping: different loci that share bases with another.
        """
        same_locus = overlapping = 0
        for starts in self._starts.values():
            distinct = np.unique(np.frombuffer(starts, dtype=np.int64))
            same_locus += len(starts) - len(distinct)
            is_near = np.diff(distinct) < length
            overlapping += int(np.count_nonzero(np.append(is_near, False) | np.insert(is_near, 0, False)))
        names = np.frombuffer(self._names, dtype=np.int64)
        same_name = len(names) - len(np.unique(names))
        return {"n_same_name": same_name, "n_same_locus": same_locus, "n_overlapping": overlapping}


def remarks(description: Mapping[str, Any]) -> list[str]:
    """A line for each thing to be said, from what the store will say of the input."""
    found = {key: value for key, value in description.items() if key.startswith("n_") and value}
    kept = {
        "n_same_name": "{} with the name of an earlier row",
        "n_same_locus": "{} with the locus of an earlier row",
        "n_overlapping": "{} that share bases with other windows",
    }
    left_out = {
        "n_unknown": "{} with fewer known bases than dataset.min_known",
        "n_blacklisted": "{} in dataset.blacklist",
    }
    nouns = {"n_same_name": "row", "n_same_locus": "row"}
    lines = []
    for phrases, text in [(kept, "all rows of the input are kept: "), (left_out, "left out of the genome: ")]:
        parts = [
            phrase.format(counted(found[key], nouns.get(key, "window")))
            for key, phrase in phrases.items()
            if key in found
        ]
        if parts:
            lines.append(text + ", ".join(parts))
    return lines
