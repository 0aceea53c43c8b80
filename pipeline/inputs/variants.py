"""Pairs of windows for variants: the reference allele and the alternate allele, from a VCF and a genome FASTA.

VCF positions are 1-based; everything here is 0-based and half-open. The window is [p - L // 2, p - L // 2 + L) around
the first base p of REF; in the alternate window ALT replaces REF and the bases after it are shifted, filled up from the
right, so that the bases before p have the same positions in both. A line with several alternate alleles gives a pair
for each. Rows come in the order reference, alternate, reference, ...
"""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dlshap_core.sequences import encode
from pipeline.config.settings import setting
from pipeline.inputs.base import Row, RowSource, Source
from pipeline.inputs.bed import check_window
from pipeline.inputs.form import Windows
from pipeline.inputs.genome import Genome, genome_sizes, open_genome
from pipeline.inputs.text import numbered_lines, returns_hint, text_of
from pipeline.messages.errors import UserError
from pipeline.messages.words import counted

ALLELES = ("ref", "alt")
_BASES = re.compile(r"[ACGTNacgtn]+")
_POSITION = re.compile(r"[0-9]{1,18}")


@dataclass
class Variants(Windows):
    """Windows of both alleles of variants."""

    rows_per_group: ClassVar[int] = 2  # the alleles

    name: str = "variants"
    vcf: str = setting("VCF file, plain or compressed", is_file=True, is_plain=True)

    def open(self) -> Source:
        return VariantSource(self.file("vcf"), self.file("genome"), self.width)


@dataclass(frozen=True)
class Variant:
    """One alternate allele of one line: start is 0-based."""

    chrom: str
    start: int
    name: str
    ref: str
    alt: str


class VariantSource(RowSource):
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

    def _rows(self) -> Iterator[Row]:
        last_use = {_fields(line)[0]: index for index, _, line in self._lines()}
        if not last_use:
            raise UserError(f"{self.vcf} holds no variants; expected lines of CHROM, POS, ID, REF, ALT")
        with closing(open_genome(self.genome)) as genome:
            genome.expect(set(last_use))
            self.description["chrom_sizes"] = genome_sizes(genome, last_use)
            for index, number, line in self._lines():
                for pair in self._pairs(genome, index, number, line):
                    yield from pair
                chrom = _fields(line)[0]
                if last_use[chrom] == index:
                    genome.release(chrom)

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(0-based row, 1-based line number, line) of every variant line."""
        index = 0
        for number, line in numbered_lines(self.vcf):
            if line.strip() and not line.startswith(b"#"):
                yield index, number, line
                index += 1

    def _pairs(self, genome: Genome, index: int, number: int, line: bytes) -> Iterator[tuple[Row, Row]]:
        text, is_utf8 = text_of(line)
        label = ":".join(part[:40] for part in text.split("\t", 2)[:2])
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
        needed = max(end + max(0, n_ref - n_alt), variant.start + n_ref)  # a deletion takes more bases from the right
        check_window(variant.chrom, start, needed, genome, self.genome.name)
        bases = genome.fetch(variant.chrom, start, needed).decode("ascii")
        found = bases[offset : offset + n_ref]
        if found.upper() != variant.ref.upper():
            next_to_it = bases[offset + 1 : offset + 1 + n_ref]
            why = "the base to the right fits: is POS 0-based?" if next_to_it.upper() == variant.ref.upper() else None
            raise ValueError(
                f"REF is {_short(variant.ref)} and {self.genome.name} has {_short(found)} there; "
                f"{why or 'is the VCF of another build of the genome?'}"
            )
        windows = bases[: self.length], (bases[:offset] + variant.alt + bases[offset + n_ref :])[: self.length]
        ref, alt = (
            Row(index, encode(window.encode()), None, f"{variant.name}:{allele}", variant.chrom, start, end, "+")
            for window, allele in zip(windows, ALLELES, strict=True)
        )
        return ref, alt


def parse(line: str) -> list[Variant]:
    """The variants of a VCF line; `require_bases` checks their ALT. Raises ValueError for a bad column."""
    fields = line.split("\t", 5)  # behind them a column for each sample
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
    return text_of(line)[0].split("\t", 5)


def _short(bases: str) -> str:
    return bases if len(bases) <= 20 else f"{bases[:17]}... ({len(bases)} bases)"
