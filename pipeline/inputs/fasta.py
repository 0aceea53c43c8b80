"""Sequences from a FASTA file, plain or compressed, streamed record by record.

A record's name is the first word of its header. A name such as `chr1:100-200` or `peak::chr1:100-200(+)` is read as a
locus, 0-based and half-open as `bedtools getfasta` writes it, when its length agrees with the sequence, and otherwise
(1-based coordinates, say) as a name only. Lower case is read as upper case, U as T, and N and the
IUPAC ambiguity letters as unknown.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dlshap_core.sequences import encode
from pipeline.config import limits
from pipeline.config.settings import setting
from pipeline.inputs.base import Row, RowSource, Source
from pipeline.inputs.form import InputForm
from pipeline.inputs.text import numbered_lines, returns_hint, text_of
from pipeline.messages.errors import UserError
from pipeline.messages.visible import shown
from pipeline.messages.words import counted

_LOCUS = re.compile(r"(?:.*::)?(?P<chrom>[^:\s]+):(?P<start>\d{1,18})-(?P<end>\d{1,18})(?:\((?P<strand>[+.-])\))?")
_PROTEIN_ONLY = re.compile(rb"[EFILPQefilpq]")  # letters of amino acids that are no nucleotide code
_OTHER_FORMATS = {
    b"@HD": "SAM",
    b"@SQ": "SAM",
    b"@": "FASTQ",
    b"#": "a table or VCF",
    b";": "an old FASTA with comments",
}


@dataclass
class Fasta(InputForm):
    """Every record of a FASTA file, plain or compressed."""

    is_called: ClassVar[str] = "a FASTA file"
    suffixes: ClassVar[tuple[str, ...]] = (".fa", ".fasta", ".fna", ".fas", ".ffn", ".mfa")
    magic: ClassVar[tuple[bytes, ...]] = (b">",)
    must_be_known: ClassVar[bool] = False

    name: str = "fasta"
    path: str = setting("the FASTA file, plain or compressed", is_file=True, is_plain=True)

    def open(self) -> Source:
        return FastaSource(self.file("path"))


@dataclass
class Record:
    """A record of the file: its header, and the lines of its sequence with their 1-based numbers; no lines where they
    are longer than `limits.sequence`."""

    header: bytes
    line: int
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    n_bases: int = 0


class FastaSource(RowSource):
    """Every record of one FASTA file, in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description: dict[str, Any] = {"kind": "fasta", "path": path.name}

    def _rows(self) -> Iterator[Row]:
        names = LocusNames()
        for i, record in enumerate(read_records(self.path)):
            row = parse(record, i, self.path)
            names.add(row)
            yield row
        self.description["notes"] = names.notes(self.path.name)


class LocusNames:
    """Counts names that are read as loci, and those that look like loci of another length than their sequence's."""

    def __init__(self) -> None:
        self._n_read = self._n_minus = self._n_other = 0

    def add(self, row: Row) -> None:
        """A row whose locus, if it has one, is that of its name."""
        if row.codes is None or _as_locus(row.name) is None:
            return
        self._n_read += row.start >= 0
        self._n_minus += row.start >= 0 and row.strand == "-"
        self._n_other += row.start < 0

    def notes(self, file: str) -> list[str]:
        """Lines about names that look like loci."""
        found = []
        if self._n_read:
            minus = (
                f"; the sequences of {self._n_minus} with (-) are those of the minus strand" if self._n_minus else ""
            )
            found.append(f"{file}: {counted(self._n_read, 'name')} such as chr1:100-200 read as 0-based loci{minus}")
        if self._n_other:
            found.append(
                f"{file}: {counted(self._n_other, 'name')} such as chr1:100-200 not read as loci: their sequences have "
                f"another length (are they 1-based?)"
            )
        return found


def read_records(path: Path) -> Iterator[Record]:
    """The records of a FASTA file. Raises UserError for text before the first header, or when there is no record."""
    record: Record | None = None
    longest, of_header = limits.current().sequence, 0
    for number, line in numbered_lines(path, in_pieces=True):
        if number == of_header:
            raise limits.too_long(f"{path}, line {number}", "record_mb")
        if line.startswith(b">"):
            if record is not None:
                yield record
            record, of_header = Record(line[1:], number), number
        elif not line.strip():
            continue
        elif record is None:
            raise _not_fasta(path, number, line)
        else:
            piece = line.rstrip()
            record.n_bases += len(piece)
            if record.n_bases <= longest:
                record.pieces.append((number, piece))
            else:
                record.pieces.clear()
    if record is None:
        raise UserError(f"{path} holds no FASTA records; expected lines of '>name' followed by a sequence")
    yield record


def parse(record: Record, index: int, path: Path) -> Row:
    """The row of one record: its codes and locus, or its problem."""
    header, is_utf8 = text_of(record.header)
    words = header.split(None, 1)
    name = words[0] if words else ""

    def bad(problem: str) -> Row:
        return Row(index, None, f"record {index} {shown(name)} ({path.name}, line {record.line}){problem}", name)

    if not is_utf8:
        return bad(": the header is not UTF-8 text")
    if not name:
        return bad(" has no name; expected '>name'")
    if not record.pieces and record.n_bases:
        return bad(f" {limits.sequence_problem(record.n_bases)}")
    if not record.pieces:
        return bad(f" has no sequence{returns_hint(header)}")
    try:
        codes = encode(b"".join(piece for _, piece in record.pieces))
    except ValueError as error:
        return bad(f": {_locate(record)}{error}{_hint(record)}")
    chrom, start, end, strand = locus_of(name, len(codes))
    return Row(index, codes, None, name, chrom, start, end, strand)


def locus_of(name: str, length: int) -> tuple[str, int, int, str]:
    """(chrom, start, end, strand) that a record's name states, or ("", -1, -1, ".") when it states none."""
    match = _as_locus(name)
    if match is None or int(match["end"]) - int(match["start"]) != length:
        return "", -1, -1, "."
    return match["chrom"], int(match["start"]), int(match["end"]), match["strand"] or "."


def _as_locus(name: str) -> re.Match[str] | None:
    """The parts of a name that looks like a locus; a longer name than rows may have is not looked at."""
    return None if ":" not in name or len(name) > limits.current().name else _LOCUS.fullmatch(name)


def _locate(record: Record) -> str:
    """Which line of the file holds the first character that is not a nucleotide."""
    for number, piece in record.pieces:
        try:
            encode(piece)
        except ValueError:
            return f"in line {number}, "
    return ""


def _hint(record: Record) -> str:
    letters = b"".join(piece for _, piece in record.pieces)
    n_protein = len(_PROTEIN_ONLY.findall(letters))
    return " (it looks like a protein sequence)" if n_protein > 0.05 * len(letters) else ""


def _not_fasta(path: Path, number: int, line: bytes) -> UserError:
    start, _ = text_of(line[:40])
    guesses = (f"; is it {kind}?" for mark, kind in _OTHER_FORMATS.items() if line.startswith(mark))
    guess = next(guesses, "; dataset=table reads CSV and TSV, dataset=loci BED and narrowPeak")
    return UserError(f"{path}, line {number}: text before the first FASTA header ('>name'): {start!r}{guess}")
