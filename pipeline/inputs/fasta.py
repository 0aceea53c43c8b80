"""Sequences from a FASTA file, plain or gzip (bgzip included), streamed record by record.

A record's name is the first word of its header. A name such as `chr1:100-200` or `peak::chr1:100-200(+)` is read as a
locus, 0-based and half-open as `bedtools getfasta` writes it, when its length agrees with the sequence; a name whose
length does not agree (1-based coordinates, say) is only a name. Lower case is read as upper case, U as T, and N and the
IUPAC ambiguity letters as unknown.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlshap_core.sequences import encode
from pipeline.errors import UserError
from pipeline.sources.base import Row, Rows, batched
from pipeline.sources.text import numbered_lines, returns_hint, shown, text_of

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
class Record:
    """A record as it stands in the file: its header and the lines of its sequence with their 1-based numbers."""

    header: bytes
    line: int
    pieces: list[tuple[int, bytes]] = field(default_factory=list)


class FastaSource:
    """Every record of one FASTA file, in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description: dict[str, Any] = {"kind": "fasta", "path": path.name}

    def batches(self) -> Iterator[Rows]:
        """The records in order; see `Source`. Raises UserError when the file is empty, not FASTA, or damaged."""
        return batched(parse(record, i, self.path) for i, record in enumerate(read_records(self.path)))


def read_records(path: Path) -> Iterator[Record]:
    """The records of a FASTA file. Raises UserError for text before the first header, or when there is no record."""
    record: Record | None = None
    for number, line in numbered_lines(path):
        if line.startswith(b">"):
            if record is not None:
                yield record
            record = Record(line[1:], number)
        elif not line.strip():
            continue
        elif record is None:
            raise _not_fasta(path, number, line)
        else:
            record.pieces.append((number, line.rstrip()))
    if record is None:
        raise UserError(f"{path} holds no FASTA records; expected lines of '>name' followed by a sequence")
    yield record


def parse(record: Record, index: int, path: Path) -> Row:
    """The row of one record: its codes and locus, or its problem."""
    header, is_utf8 = text_of(record.header)
    words = header.split(None, 1)
    name = words[0] if words else ""
    where = f"record {index} {shown(name)} ({path.name}, line {record.line})"
    if not is_utf8:
        return Row(index, None, f"{where}: the header is not UTF-8 text", name)
    if not name:
        return Row(index, None, f"{where} has no name; expected '>name'", name)
    if not record.pieces:
        return Row(index, None, f"{where} has no sequence{returns_hint(header)}", name)
    try:
        codes = encode(b"".join(piece for _, piece in record.pieces))
    except ValueError as error:
        return Row(index, None, f"{where}: {_locate(record)}{error}{_hint(record)}", name)
    chrom, start, end, strand = locus_of(name, len(codes))
    return Row(index, codes, None, name, chrom, start, end, strand)


def locus_of(name: str, length: int) -> tuple[str, int, int, str]:
    """(chrom, start, end, strand) that a record's name states, or ("", -1, -1, ".") when it states none."""
    match = _LOCUS.fullmatch(name)
    if match is None or int(match["end"]) - int(match["start"]) != length:
        return "", -1, -1, "."
    return match["chrom"], int(match["start"]), int(match["end"]), match["strand"] or "."


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
