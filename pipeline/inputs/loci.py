"""Windows of fixed length around loci: BED (3 columns or more) or narrowPeak, plus a genome FASTA.

Coordinates are 0-based and half-open. The centre c is start + summit for a line that is narrowPeak by its content, and
(start + end) // 2 otherwise (see centres.py); the window is [c - L // 2, c - L // 2 + L). Comments, `track` and
`browser` lines and blank lines are passed over and not counted as rows; so are empty columns at the end of a line. The
strand is recorded, and applied only on request: then the codes of a minus-strand row are the reverse complement of the
window, whose coordinates stay those of the plus strand.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dlshap_core.sequences import encode, reverse_complement
from pipeline.config.dataset_args import ExtraInput
from pipeline.config.settings import setting
from pipeline.inputs import cells
from pipeline.inputs.base import Row, RowSource, Source, Values
from pipeline.inputs.bed import check_window, columns, data_lines, parse_interval
from pipeline.inputs.centres import Centring
from pipeline.inputs.form import Windows
from pipeline.inputs.genome import Genome, genome_sizes, open_genome
from pipeline.inputs.text import returns_hint, text_of
from pipeline.messages.errors import UserError
from pipeline.messages.visible import shown
from pipeline.messages.words import counted


@dataclass
class Loci(Windows):
    """Windows of a genome around loci."""

    is_called: ClassVar[str] = "a file of loci"
    main_file: ClassVar[str] = "loci"
    suffixes: ClassVar[tuple[str, ...]] = (".bed", ".bed3", ".bed6", ".bed12", ".narrowpeak", ".broadpeak")
    has_columns: ClassVar[bool] = True

    name: str = "loci"
    loci: str = setting("BED or narrowPeak file, 0-based half-open", is_file=True, is_plain=True)
    centre: str = setting(
        "summit, middle, or auto: summits of lines that are narrowPeak by content",
        "auto",
        choices=("auto", "summit", "middle"),
        is_plain=True,
    )
    strand: str = setting(
        "apply reverse-complements rows on the minus strand, ignore does not",
        "ignore",
        choices=("ignore", "apply"),
        is_plain=True,
    )

    def open(self) -> Source:
        return LociSource(self.file("loci"), self.file("genome"), self.width, self.strand, self.centre)

    def values_of(self, entry: ExtraInput) -> Values:
        return cells.of_loci(entry, self.file("loci"))


@dataclass(frozen=True)
class Locus:
    """One parsed line: where it lies, the position that its window is centred on, and whether that is a summit."""

    chrom: str
    centre: int
    on_summit: bool
    name: str
    strand: str


class LociSource(RowSource):
    """Windows of `length` bases around every locus, in the order of the file; arguments as in `Loci`."""

    def __init__(self, loci: Path, genome: Path, length: int, strand: str = "ignore", centre: str = "auto") -> None:
        self.loci, self.genome, self.length, self.strand = loci, genome, length, strand
        self._genome_name = genome.name  # a path takes its time to say
        self._form = Centring(loci.name, centre)
        self.description: dict[str, Any] = {"kind": "loci", "loci": loci.name, "genome": genome.name}
        self.description |= {"length": length, "strand": strand, "centre": centre}

    def _rows(self) -> Iterator[Row]:
        last_use, strands = self._survey()
        if self.strand == "apply" and not strands.keys() & {"+", "-"}:
            raise UserError(
                f"dataset.strand=apply: no row of {self.loci} has + or - in column 6 (strand); leave dataset.strand out"
            )
        with closing(open_genome(self.genome)) as genome:
            genome.expect(set(last_use))
            self.description |= {"chrom_sizes": genome_sizes(genome, last_use), "n_summits": 0, "n_middles": 0}
            for index, number, line in data_lines(self.loci):
                row = self._row(genome, index, number, line)
                yield row
                if last_use.get(row.chrom) == index:
                    genome.release(row.chrom)
        self.description["notes"] = self._notes(strands["-"])

    def _notes(self, n_minus: int) -> list[str]:
        """Lines about centres and strands."""
        notes = [self._form.note(self.description["n_summits"], self.description["n_middles"])]
        if n_minus and self.strand == "ignore":
            notes.append(
                f"{self.loci.name}: {counted(n_minus, 'row')} on the minus strand are read on the plus strand "
                f"(dataset.strand=apply takes their reverse complement)"
            )
        return notes

    def _survey(self) -> tuple[dict[str, int], Counter[str]]:
        """The last row on each chromosome, and the number of rows of each strand; also gives the lines to `_form`."""
        last_use: dict[str, int] = {}
        strands: Counter[str] = Counter()
        self._form.clear()
        for index, number, line in data_lines(self.loci):
            if line.startswith(b">"):
                raise UserError(f"{self.loci}, line {number}: looks like FASTA; expected chromosome, start, end")
            fields = columns(text_of(line)[0])
            last_use[fields[0]] = index
            strands.update(fields[5:6])
            self._form.add(fields)
        if not last_use:
            raise UserError(f"{self.loci} holds no loci; expected lines of chromosome, start, end")
        return last_use, strands

    def _row(self, genome: Genome, index: int, number: int, line: bytes) -> Row:
        text, is_utf8 = text_of(line)
        fields = columns(text)
        try:
            if not is_utf8:
                raise ValueError("the line is not UTF-8 text")
            locus = parse_locus(fields, self._form)
            start = locus.centre - self.length // 2
            end = start + self.length
            check_window(locus.chrom, start, end, genome, self._genome_name)
            codes = encode(genome.fetch(locus.chrom, start, end))
            if self.strand == "apply" and locus.strand == "-":
                codes = reverse_complement(codes)
        except UserError:
            raise
        except ValueError as error:
            label = ":".join([fields[0][:40], "-".join(field[:20] for field in fields[1:3])])
            where = f"row {index} {label} ({self.loci.name}, line {number})"
            return Row(index, None, f"{where}: {error}{_hint(index, text, fields)}", label, chrom=fields[0])
        self.description["n_summits" if locus.on_summit else "n_middles"] += 1
        return Row(index, codes, None, locus.name, locus.chrom, start, end, locus.strand)


def _hint(index: int, line: str, fields: list[str]) -> str:
    """What else a bad line may be: several lines, or the names of columns."""
    is_heading = index == 0 and not any(re.search(r"\d", field) for field in fields[1:3])
    return returns_hint(line) or ("; a line of headings begins with #" if is_heading else "")


def parse_locus(fields: list[str], form: Centring) -> Locus:
    """The locus of one line of a file. Raises ValueError that says which column is wrong; the caller knows the line."""
    chrom, start, end = parse_interval(fields)
    name = fields[3] if len(fields) > 3 and fields[3] not in ("", ".") else f"{chrom}:{start}-{end}"
    return Locus(chrom, *form.centre(fields, start, end), name, _strand(fields))


def _strand(fields: list[str]) -> str:
    strand = fields[5] if len(fields) > 5 else "."
    if strand not in ("+", "-", "."):
        raise ValueError(f"column 6 (strand) is {shown(strand)}; expected +, - or .")
    return strand
