"""How well attributions find motifs whose positions are known.

Positions are 0-based, intervals half-open. Shape legend: N sequences, L positions.
`python -m pipeline.analysis.planted_motifs STORE [TRUTH]` prints the report for a finished store (of the packaged
example by default).
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlshap_core.sequences import decode, reverse_complement_text
from pipeline.analysis.kmers import strongest_kmers
from pipeline.inputs.bed import columns, data_lines
from pipeline.inputs.text import require_file, text_of
from pipeline.messages.errors import UserError
from pipeline.messages.visible import visible_streams

EXAMPLE_TRUTH = Path(__file__).parent.parent / "example" / "truth.bed"


@dataclass(frozen=True)
class Site:
    """One planted motif: [start, end) of the sequence called `sequence`."""

    sequence: str
    start: int
    end: int
    motif: str
    strand: str = "+"


def read_truth(path: Path) -> list[Site]:
    """The sites in a BED file whose first column is the sequence's name. Raises UserError naming a bad line."""
    sites = []
    for _, number, line in data_lines(path):
        fields = columns(text_of(line)[0])
        try:
            sequence, start, end, motif = fields[0], int(fields[1]), int(fields[2]), fields[3]
        except (IndexError, ValueError):
            raise UserError(f"{path}, line {number}: expected sequence, start, end, motif; got {fields}") from None
        sites.append(Site(sequence, start, end, motif, fields[5] if len(fields) > 5 else "+"))
    if not sites:
        raise UserError(f"{path} holds no sites; expected lines of sequence, start, end, motif")
    return sites


def planted_mask(sites: Sequence[Site], names: Sequence[str], length: int) -> np.ndarray:
    """(N, L) bool, true where a motif was planted; UserError where a site lies outside its sequence, or none inside."""
    row_of = {name: row for row, name in enumerate(names)}
    mask = np.zeros((len(names), length), dtype=bool)
    for site in sites:
        if site.sequence not in row_of:
            continue
        if not 0 <= site.start < site.end <= length:
            raise UserError(f"site {site.sequence}:{site.start}-{site.end} lies outside its {length} bases")
        mask[row_of[site.sequence], site.start : site.end] = True
    if not mask.any():
        raise UserError(
            "none of the planted sites lies in one of the sequences; do the store and the truth belong together?"
        )
    return mask


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive scores above a negative, ties counting a half (area under the ROC curve).

    From the sum of the positives' ranks (Mann and Whitney 1947), tied scores sharing their mean rank. Both arguments
    have the same shape, `positive` is bool.

    Raises:
        ValueError: there are no positives or no negatives, or a score is NaN.
    """
    scores, positive = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(positive, dtype=bool).ravel()
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        raise ValueError(f"{n_positive} positives and {n_negative} negatives; both are needed")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(sizes) - (sizes - 1) / 2  # 1-based
    rank_sum = mean_rank[group][positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def consensus(codes: np.ndarray, sites: Sequence[Site], names: Sequence[str]) -> dict[str, str]:
    """The most frequent base at each position of every motif's planted sites, on the motif's own strand."""
    row_of = {name: row for row, name in enumerate(names)}
    texts: dict[str, list[str]] = defaultdict(list)
    for site in sites:
        if site.sequence in row_of:
            text = decode(codes[row_of[site.sequence], site.start : site.end])
            texts[site.motif].append(reverse_complement_text(text) if site.strand == "-" else text)
    return {
        motif: "".join(max("ACGTN", key=column.count) for column in zip(*found, strict=True))
        for motif, found in sorted(texts.items())
    }


def motif_of(kmer: str, consensus_of: Mapping[str, str]) -> str:
    """The motif that holds the k-mer on either strand, but for one base at most; "" where none does."""
    best, fewest = "", 2
    for motif, text in consensus_of.items():
        for strand in (f".{text}.", f".{reverse_complement_text(text)}."):
            for start in range(len(strand) - len(kmer) + 1):
                different = sum(a != b for a, b in zip(kmer, strand[start:], strict=False))
                if different < fewest:
                    best, fewest = motif, different
    return best


def format_report(codes: np.ndarray, attribution: np.ndarray, names: Sequence[str], sites: Sequence[Site]) -> str:
    """The report of a run whose answer is known: (N, L) uint8 codes, (N, L) attributions of the observed bases for one
    target, the N names that the sites use, and the sites."""
    planted = planted_mask(sites, names, codes.shape[1])
    area = auroc(np.abs(attribution), planted)
    inside, outside = np.abs(attribution)[planted].mean(), np.abs(attribution)[~planted].mean()
    consensus_of = consensus(codes, sites, names)
    lines = [
        f"{len(names)} sequences, {int(planted.sum())} of {planted.size} positions lie in a planted motif.",
        f"AUROC of |attribution|, planted against other positions: {area:.3f} (means {inside:.4f}, {outside:.4f}).",
        "Planted motifs (consensus): " + ", ".join(f"{motif} {text}" for motif, text in consensus_of.items()),
        "Strongest 6-mers (both strands), by summed attribution:",
    ]
    for kmer in strongest_kmers(codes, attribution):
        found = motif_of(kmer.text, consensus_of) or "-"
        both = f"{kmer.text}/{reverse_complement_text(kmer.text)}"
        lines.append(f"  {both}  {kmer.attribution:8.2f}  in {kmer.count:4d} places  {found}")
    return "\n".join(lines)


@visible_streams()
def main(arguments: Sequence[str]) -> int:
    """Print the report for a store; 0, or 2 after a message about what is wrong."""
    from pipeline.store.reader import open_store  # reading a store is the only need of Zarr here

    try:
        if not 1 <= len(arguments) <= 2:
            raise UserError("usage: python -m pipeline.analysis.planted_motifs STORE [TRUTH.bed]")
        sites = read_truth(require_file(arguments[1] if len(arguments) > 1 else EXAMPLE_TRUTH, "TRUTH"))
        store = open_store(arguments[0])
        attribution = np.asarray(store.attribution[:, 0, :])
        print(format_report(np.asarray(store.codes[:]), attribution, list(store.rows["name"]), sites))
    except ValueError as error:
        print(f"dlshap: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
