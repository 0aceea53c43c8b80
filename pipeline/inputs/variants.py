"""Pairs of windows for variants: the reference allele and the alternate allele, from a VCF and a genome FASTA.

VCF positions are 1-based; everything here is 0-based and half-open. The window is [p - L // 2, p - L // 2 + L) around
the first base p of REF; in the alternate window ALT stands in place of REF, and what follows is shifted: bases come in
from the right until the window is full again, so that all that is left of p lies at the same positions in both. A line
with several alternate alleles gives a pair for each. Rows come in the order reference, alternate, reference, ...
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlshap_core.sequences import encode
from pipeline.errors import UserError
from pipeline.sources.base import Row, Rows, batched
from pipeline.sources.genome import Genome, genome_sizes, open_genome
from pipeline.sources.loci import check_window
from pipeline.sources.text import numbered_lines, returns_hint, text_of
from pipeline.wording import counted

ALLELES = ("ref", "alt")
_BASES = re.compile(r"[ACGTNacgtn]+")
_POSITION = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Variant:
    """One alternate allele of one line: start is 0-based."""

    chrom: str
    start: int
    name: str
    ref: str
    alt: str


class VariantSource:
    """Two windows of `length` bases for every variant of a VCF, in its order."""

    def __init__(self, vcf: Path, genome: Path, length: int) -> None:
        self.vcf, self.genome, self.length = vcf, genome, length
        self.description: dict[str, Any] = {
            "kind": "variants",
            "vcf": vcf.name,
            "genome": genome.name,
            "length": length,
            "rows": "reference and alternate allele in turn",
        }

    def batches(self) -> Iterator[Rows]:
        """The windows in order; see `Source`. Raises UserError when a file is empty or damaged."""
        return batched(self._rows())

    def _rows(self) -> Iterator[Row]:
        last_use = {_fields(line)[0]: index for index, _, line in self._lines()}
        if not last_use:
            raise UserError(f"{self.vcf} holds no variants; expected lines of CHROM, POS, ID, REF, ALT")
        genome = open_genome(self.genome)
        try:
            genome.expect(set(last_use))
            self.description["chrom_sizes"] = genome_sizes(genome, last_use)
            for index, number, line in self._lines():
                for pair in self._pairs(genome, index, number, line):
                    yield from pair
                chrom = _fields(line)[0]
                if last_use[chrom] == index:
                    genome.release(chrom)
        finally:
            genome.close()

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(0-based row, 1-based line number, line) of every variant line."""
        index = 0
        for number, line in numbered_lines(self.vcf):
            if number == 1 and line.startswith(b"BCF"):
                raise UserError(f"{self.vcf} is BCF; convert it: bcftools view {self.vcf.name} > variants.vcf")
            if line.strip() and not line.startswith(b"#"):
                yield index, number, line
                index += 1

    def _pairs(self, genome: Genome, index: int, number: int, line: bytes) -> Iterator[tuple[Row, Row]]:
        text, is_utf8 = text_of(line)
        label = ":".join(part[:40] for part in text.split("\t")[:2])
        where = f"row {index} {label} ({self.vcf.name}, line {number})"
        try:
            if not is_utf8:
                raise ValueError("the line is not UTF-8 text")
            variants = parse(text)
        except ValueError as error:
            yield _bad_pair(index, f"{where}: {error}{returns_hint(text)}", label)
            return
        for variant in variants:
            try:
                yield self._pair(genome, index, variant)
            except UserError:
                raise
            except ValueError as error:
                yield _bad_pair(index, f"{where}: {error}{returns_hint(text)}", variant.name)

    def _pair(self, genome: Genome, index: int, variant: Variant) -> tuple[Row, Row]:
        require_bases(variant)
        start = variant.start - self.length // 2
        end = start + self.length
        offset, n_ref, n_alt = self.length // 2, len(variant.ref), len(variant.alt)
        needed = max(end + max(0, n_ref - n_alt), variant.start + n_ref)  # a deletion draws in bases from beyond
        check_window(variant.chrom, start, needed, genome, self.genome.name)
        there = genome.fetch(variant.chrom, start, needed).decode("ascii")
        found = there[offset : offset + n_ref]
        if found.upper() != variant.ref.upper():
            raise ValueError(
                f"REF is {_short(variant.ref)} and {self.genome.name} has {_short(found)} there; is the VCF of another "
                f"build of the genome?"
            )
        windows = there[: self.length], (there[:offset] + variant.alt + there[offset + n_ref :])[: self.length]
        ref, alt = (
            Row(index, encode(window.encode()), None, f"{variant.name}:{allele}", variant.chrom, start, end, "+")
            for window, allele in zip(windows, ALLELES, strict=True)
        )
        return ref, alt


def parse(line: str) -> list[Variant]:
    """The variants of a VCF line, whose alternate alleles are yet to be judged by `require_bases`.

    Raises:
        ValueError: says which column is wrong; the caller knows the line.
    """
    fields = line.split("\t")
    if len(fields) < 5:
        raise ValueError(f"{counted(len(fields), 'column')}; expected CHROM, POS, ID, REF, ALT separated by tabs")
    chrom, position, name, ref, alts = fields[:5]
    if not chrom:
        raise ValueError("column 1 (CHROM) is empty")
    if not _POSITION.fullmatch(position) or int(position) < 1:
        raise ValueError(f"column 2 (POS) is {position!r}; expected a whole number from 1 on")
    if not _BASES.fullmatch(ref):
        raise ValueError(f"column 4 (REF) is {_short(ref)!r}; expected bases")
    found = []
    for alt in alts.split(","):
        label = name if name not in ("", ".") else f"{chrom}:{position}"
        several = f":{_short(ref)}>{_short(alt)}" if "," in alts or name in ("", ".") else ""
        found.append(Variant(chrom, int(position) - 1, label + several, ref, alt))
    return found


def require_bases(variant: Variant) -> None:
    """Raises ValueError where an alternate allele has no sequence, or that of the reference."""
    if not _BASES.fullmatch(variant.alt):
        raise ValueError(
            f"column 5 (ALT) is {_short(variant.alt)!r}; expected bases: symbolic alleles have no sequence"
        )
    if variant.alt.upper() == variant.ref.upper():
        raise ValueError(f"column 5 (ALT) is {_short(variant.alt)!r}, like column 4 (REF); expected another allele")


def _bad_pair(index: int, problem: str, name: str) -> tuple[Row, Row]:
    ref, alt = (Row(index, None, problem, f"{name}:{allele}") for allele in ALLELES)
    return ref, alt


def _fields(line: bytes) -> list[str]:
    return text_of(line)[0].split("\t")


def _short(bases: str) -> str:
    return bases if len(bases) <= 20 else f"{bases[:17]}... ({len(bases)} bases)"
