"""Lines about an input: repeated rows, and windows that were left out."""

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.messages.words import counted


class Repeats:
    """Counts repeated names and loci. Holds 16 bytes a row."""

    def __init__(self) -> None:
        self._names = array("q")
        self._starts: dict[str, array[int]] = {}

    def add(self, name: str, chrom: str, start: int) -> None:
        """A row that is used; chrom is "" where it has no locus."""
        self._names.append(hash(name))  # 64 bits: two names in 10^7 share one with a chance below 10^-5
        if chrom:
            self._starts.setdefault(chrom, array("q")).append(start)

    def counts(self, length: int) -> dict[str, int]:
        """The numbers of rows with the name or the locus of an earlier one, and of different loci of `length` bases
        that share some with another."""
        same_locus = overlapping = 0
        for starts in self._starts.values():
            distinct = np.unique(np.frombuffer(starts, dtype=np.int64))
            same_locus += len(starts) - len(distinct)
            is_near = np.diff(distinct) < length
            overlapping += int(np.count_nonzero(np.append(is_near, False) | np.insert(is_near, 0, False)))
        names = np.frombuffer(self._names, dtype=np.int64)
        same_name = len(names) - len(np.unique(names))
        return {"n_same_name": same_name, "n_same_locus": same_locus, "n_overlapping": overlapping}


def input_notes(description: Mapping[str, Any]) -> list[str]:
    """Lines about an input, from its description: choices, repeated rows, windows left out."""
    row = "variant" if description.get("kind") == "variants" else "row"
    kept = {
        "n_same_name": (row, "with the name of an earlier one"),
        "n_same_locus": (row, "with the locus of an earlier one"),
        "n_overlapping": ("window", "that share bases with other windows"),
    }
    left_out = {
        "n_unknown": ("window", "with fewer known bases than dataset.min_known"),
        "n_blacklisted": ("window", "in dataset.blacklist"),
    }
    lines = list(description.get("notes", []))
    for phrases, text in [(kept, "kept although repeated or overlapping: "), (left_out, "left out of the genome: ")]:
        found = [(description.get(key), noun, phrase) for key, (noun, phrase) in phrases.items()]
        if parts := [f"{counted(n, noun)} {phrase}" for n, noun, phrase in found if n]:
            lines.append(text + ", ".join(parts))
    return lines
