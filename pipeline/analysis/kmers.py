"""k-mers that gather attribution, counted block by block and on both strands.

Shape legend: B rows of a block, L positions, K the length of a k-mer, W = L - K + 1 windows of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dlshap_core.sequences import ALPHABET, UNKNOWN, reverse_complement, reverse_complement_text

MAX_K = 10  # 4^10 sums are 8 MB


@dataclass(frozen=True)
class Kmer:
    """A k-mer, written on the strand that sorts first, and what its occurrences on both strands gather."""

    text: str
    attribution: float  # summed over positions and occurrences
    count: int


class KmerTotals:
    """Sums the attribution of every k-mer of k bases, at most MAX_K, over any number of rows."""

    def __init__(self, k: int = 6) -> None:
        if not 1 <= k <= MAX_K:
            raise ValueError(f"k-mers of {k} bases; expected 1 to {MAX_K}")
        self.k = k
        self._total = np.zeros(4**k + 1)  # the last one: windows with an unknown base
        self._count = np.zeros(4**k + 1, dtype=np.int64)

    def add(self, codes: np.ndarray, attribution: np.ndarray) -> None:
        """Count in (B, L) uint8 codes with their (B, L) attributions, all of them finite."""
        n_windows = codes.shape[1] - self.k + 1
        if n_windows < 1:
            return
        index = np.zeros((len(codes), n_windows), dtype=np.int64)
        sums = np.zeros((len(codes), n_windows))
        for offset in range(self.k):
            index *= 4
            index += codes[:, offset : offset + n_windows]
            sums += attribution[:, offset : offset + n_windows]
        if (codes == UNKNOWN).any():
            windows = np.lib.stride_tricks.sliding_window_view(codes == UNKNOWN, self.k, axis=1)
            index[windows.any(axis=-1)] = 4**self.k
        self._total += np.bincount(index.ravel(), weights=sums.ravel(), minlength=len(self._total))
        self._count += np.bincount(index.ravel(), minlength=len(self._count))

    def beyond(self, other: "KmerTotals", scale: float, other_scale: float) -> "KmerTotals":
        """What these totals, in units of `scale`, have beyond those of the same sequences in another unit."""
        found = KmerTotals(self.k)
        found._total = self._total / scale - other._total / other_scale
        found._count = self._count
        return found

    def strongest(self, top: int = 6, negative: bool = False) -> list[Kmer]:
        """The k-mers whose occurrences, all together and on both strands, gather the most attribution.

        At most `top`, by falling sum, above 0; with `negative` by rising sum, below 0. A k-mer that is a stronger one
        shifted by a base or two is left out.
        """
        either_strand = self._either_strand()
        total = np.bincount(either_strand, weights=self._total[:-1], minlength=4**self.k)
        count = np.bincount(either_strand, weights=self._count[:-1], minlength=4**self.k)
        found: list[Kmer] = []
        for index in self._order(total, negative):
            if len(found) == top:
                break
            text = self._text(index)
            if not any(_overlap(text, other.text) for other in found):
                found.append(Kmer(text, float(total[index]), int(count[index])))
        return found

    def _order(self, total: np.ndarray, negative: bool) -> Iterator[int]:
        """Indices of the sums with the wanted sign, the largest first."""
        signed = -total if negative else total
        for index in np.argsort(-signed, kind="stable").tolist():
            if signed[index] <= 0:
                return
            yield index

    def _either_strand(self) -> np.ndarray:
        """(4^K,) of every k-mer, its index or that of its reverse complement: the one that sorts first."""
        index, powers = np.arange(4**self.k), 4 ** np.arange(self.k)[::-1]
        codes = (index[:, None] // powers % 4).astype(np.uint8)
        return np.minimum(index, reverse_complement(codes) @ powers)

    def _text(self, index: int) -> str:
        return "".join(ALPHABET[index // 4**place % 4] for place in range(self.k - 1, -1, -1))


def strongest_kmers(codes: np.ndarray, attribution: np.ndarray, k: int = 6, top: int = 6) -> list[Kmer]:
    """The strongest k-mers of (N, L) uint8 codes and their (N, L) attributions; see `KmerTotals`."""
    totals = KmerTotals(k)
    totals.add(np.asarray(codes), np.asarray(attribution))
    return totals.strongest(top)


def _overlap(a: str, b: str) -> bool:
    """Whether two k-mers are one shifted by a base or two, on either strand."""
    k = len(a)
    return any(
        a[shift:] == other[: k - shift] or other[shift:] == a[: k - shift]
        for other in (b, reverse_complement_text(b))
        for shift in (1, 2)
    )
