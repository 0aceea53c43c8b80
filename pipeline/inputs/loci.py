"""Windows of fixed length around loci: BED (3 columns or more) or narrowPeak, plus a genome FASTA.

Coordinates are 0-based and half-open. The centre c is start + summit for a narrowPeak line (10 columns, the last one
the summit's offset, unless it is -1) and (start + end) // 2 otherwise; the window is [c - L // 2, c - L // 2 + L). A
line of exactly 10 columns is read as narrowPeak. Comments, `track` and `browser` lines and blank lines are passed over
and not counted as rows. The strand is recorded, and applied only on request: then the codes of a minus-strand row are
the reverse complement of the window, whose coordinates stay those of the plus strand.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlshap_core.sequences import UNKNOWN, encode
from pipeline.errors import UserError
from pipeline.sources.base import Row, Rows, batched
from pipeline.sources.genome import Genome, genome_sizes, open_genome
from pipeline.sources.text import numbered_lines, returns_hint, shown, text_of

_NARROW_PEAK_COLUMNS = 10
_COMPLEMENT = np.array([3, 2, 1, 0, UNKNOWN], dtype=np.uint8)  # of A, C, G, T, N
_INTEGER = re.compile(r"[+-]?\d{1,18}")  # 18 digits: what fits int64


@dataclass(frozen=True)
class Locus:
    """One parsed line: where it lies and the position that its window is centred on."""

    chrom: str
    centre: int
    name: str
    strand: str


class LociSource:
    """Windows of `length` bases around every locus of a table, in the order of the table.

    Args:
        loci: BED or narrowPeak.
        genome: FASTA.
        length: bases in a window.
        strand: apply gives the reverse complement of rows on the minus strand, ignore the plus strand of all.
    """

    def __init__(self, loci: Path, genome: Path, length: int, strand: str = "ignore") -> None:
        self.loci, self.genome, self.length, self.strand = loci, genome, length, strand
        self.description: dict[str, Any] = {
            "kind": "loci",
            "loci": loci.name,
            "genome": genome.name,
            "length": length,
            "strand": strand,
        }

    def batches(self) -> Iterator[Rows]:
        """The windows in order; see `Source`. Raises UserError when a file is empty or damaged."""
        return batched(self._rows())

    def _rows(self) -> Iterator[Row]:
        last_use, has_strand = self._survey()
        if self.strand == "apply" and not has_strand:
            raise UserError(
                f"dataset.strand=apply: no row of {self.loci} has + or - in column 6 (strand); leave dataset.strand out"
            )
        genome = open_genome(self.genome)
        try:
            genome.expect(set(last_use))
            self.description["chrom_sizes"] = genome_sizes(genome, last_use)
            for index, number, line in data_lines(self.loci):
                yield self._row(genome, index, number, line)
                chrom = columns(text_of(line)[0])[0]
                if last_use.get(chrom) == index:
                    genome.release(chrom)
        finally:
            genome.close()

    def _survey(self) -> tuple[dict[str, int], bool]:
        """The last row on each chromosome, and whether any row has a strand."""
        last_use: dict[str, int] = {}
        has_strand = False
        for index, number, line in data_lines(self.loci):
            if line.startswith(b">"):
                raise UserError(f"{self.loci}, line {number}: looks like FASTA; expected chromosome, start, end")
            fields = columns(text_of(line)[0])
            last_use[fields[0]] = index
            has_strand = has_strand or fields[5:6] in (["+"], ["-"])
        if not last_use:
            raise UserError(f"{self.loci} holds no loci; expected lines of chromosome, start, end")
        return last_use, has_strand

    def _row(self, genome: Genome, index: int, number: int, line: bytes) -> Row:
        text, is_utf8 = text_of(line)
        fields = columns(text)
        label = ":".join([fields[0][:40], "-".join(field[:20] for field in fields[1:3])])
        where = f"row {index} {label} ({self.loci.name}, line {number})"
        try:
            if not is_utf8:
                raise ValueError("the line is not UTF-8 text")
            locus = parse_locus(fields)
            start = locus.centre - self.length // 2
            end = start + self.length
            check_window(locus.chrom, start, end, genome, self.genome.name)
            codes = encode(genome.fetch(locus.chrom, start, end))
            if self.strand == "apply" and locus.strand == "-":
                codes = reverse_complement(codes)
        except UserError:
            raise
        except ValueError as error:
            return Row(index, None, f"{where}: {error}{_hint(index, text, fields)}", label, chrom=fields[0])
        return Row(index, codes, None, locus.name, locus.chrom, start, end, locus.strand)


def _hint(index: int, line: str, fields: list[str]) -> str:
    """What a line that cannot be used may be instead: several, or the names of columns."""
    is_heading = index == 0 and not any(re.search(r"\d", field) for field in fields[1:3])
    return returns_hint(line) or ("; a line of headings begins with #" if is_heading else "")


def data_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(0-based row, 1-based line number, line) of every line that is data."""
    index = 0
    for number, line in numbered_lines(path):
        stripped = line.lstrip()
        if not stripped or stripped.startswith(b"#") or stripped.split(None, 1)[0] in (b"track", b"browser"):
            continue
        yield index, number, line
        index += 1


def reverse_complement(codes: np.ndarray) -> np.ndarray:
    """(L,) codes of the other strand."""
    return _COMPLEMENT[codes[::-1]]


def columns(line: str) -> list[str]:
    """The columns of a data line, by tabs where it has any, by blanks otherwise."""
    return [column.strip() for column in line.split("\t")] if "\t" in line else line.split()


def parse_locus(fields: list[str]) -> Locus:
    """The locus of one line. Raises ValueError that says which column is wrong; the caller knows the line."""
    chrom, start, end = parse_interval(fields)
    name = fields[3] if len(fields) > 3 and fields[3] not in ("", ".") else f"{chrom}:{start}-{end}"
    return Locus(chrom, _centre(fields, start, end), name, _strand(fields))


def parse_interval(fields: list[str]) -> tuple[str, int, int]:
    """The first three columns of a line. Raises ValueError that says which column is wrong."""
    if len(fields) < 3:
        raise ValueError(f"{len(fields)} columns; expected at least chromosome, start, end separated by tabs")
    chrom = fields[0]
    if not chrom:
        raise ValueError("column 1 (chromosome) is empty")
    start, end = _integer(fields[1], "column 2 (start)"), _integer(fields[2], "column 3 (end)")
    if start < 0:
        raise ValueError(f"start {start} is negative; coordinates are 0-based")
    if end < start:
        raise ValueError(f"end {end} lies before start {start}; for the minus strand use column 6")
    return chrom, start, end


def check_window(chrom: str, start: int, end: int, genome: Genome, genome_name: str) -> None:
    """Raises ValueError when the window does not lie within a chromosome of the genome."""
    require_chrom(chrom, genome.lengths, genome_name)
    length = genome.lengths[chrom]
    if start < 0 or end > length:
        raise ValueError(f"the window {start}-{end} leaves {chrom}, which spans 0-{length}")


def require_chrom(chrom: str, sizes: Mapping[str, int], where: str) -> None:
    """Raises ValueError when a genome or track has no such chromosome; hints at one of nearly that name.

    Args:
        chrom: the chromosome.
        sizes: of those that there are, in bases.
        where: the name of the file.
    """
    if chrom not in sizes:
        known = ", ".join(list(sizes)[:3]) + (", ..." if len(sizes) > 3 else "")
        near = next((other for other in sizes if _bare(other) == _bare(chrom)), None)
        hint = f"it has {near!r}: rename one of the two" if near else f"it has {known}"
        raise ValueError(f"no chromosome {shown(chrom)} in {where}; {hint}")


def _bare(chrom: str) -> str:
    """A chromosome's name without what conventions differ in: chr1, Chr1 and 1; chrM, MT and M."""
    name = chrom.lower().removeprefix("chr")
    return "m" if name == "mt" else name


def _centre(fields: list[str], start: int, end: int) -> int:
    if len(fields) == _NARROW_PEAK_COLUMNS:
        summit = _integer(fields[9], "column 10 (summit offset)")
        if summit >= 0:
            if start + summit >= max(end, start + 1):
                raise ValueError(f"summit offset {summit} lies beyond the peak, which is {end - start} long")
            return start + summit
        if summit != -1:
            raise ValueError(f"summit offset {summit} is negative; expected -1 where there is none")
    return (start + end) // 2


def _strand(fields: list[str]) -> str:
    strand = fields[5] if len(fields) > 5 else "."
    if strand not in ("+", "-", "."):
        raise ValueError(f"column 6 (strand) is {shown(strand)}; expected +, - or .")
    return strand


def _integer(text: str, column: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"{column} is {shown(text)}; expected a whole number")
    return int(text)
