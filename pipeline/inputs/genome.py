"""Windows of a genome FASTA, by chromosome and 0-based half-open coordinates.

Two ways to read, chosen by what the file is:

- `IndexedGenome`, for a plain FASTA: pyfaidx seeks to each window through a `.fai` index. An index beside the genome is
  used if it fits; otherwise one is made, and put there unless the genome's folder cannot be written.
- `StreamedGenome`, for gzip and bgzip (and a plain FASTA of uneven line lengths, which no index can describe). Plain
  gzip can only be read from its start, so the file is read through twice, whatever the order of the loci: once for
  names and lengths, so that every locus can be judged, and once for the sequences. In the second pass a chromosome is
  held in memory (a byte per base) from when it is passed until its last locus has been served; those without loci are
  skipped. Loci in the genome's own order therefore need one chromosome at a time; in any other order, at most all
  the chromosomes that have loci.
"""

import gzip
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pyfaidx

from pipeline.errors import UserError
from pipeline.sources.text import BYTE_ORDER_MARK, damaged, is_gzip, open_bytes, text_of

_CHUNK_BYTES = 1 << 22
_LONGEST_HEADER = 4096  # bytes; a longer one is not believed to be one
_HEADER = re.compile(rb"^>[^\n]*", re.MULTILINE)
_BLANKS = b" \t\r\n"


class Genome(Protocol):
    """A genome that is open for reading."""

    lengths: dict[str, int]

    def expect(self, chroms: set[str]) -> None:
        """Before the first window: the chromosomes that will be asked for."""
        ...

    def fetch(self, chrom: str, start: int, end: int) -> bytes:
        """The letters of a window that lies within its chromosome."""
        ...

    def release(self, chrom: str) -> None:
        """No further window of this chromosome will be asked for."""
        ...

    def close(self) -> None: ...


def genome_sizes(genome: Genome, chroms: Iterable[str]) -> dict[str, int]:
    """The sizes in bases of those of the chromosomes that the genome has."""
    return {chrom: genome.lengths[chrom] for chrom in chroms if chrom in genome.lengths}


def open_genome(path: Path) -> Genome:
    """The genome in a FASTA file. Raises UserError when it is not FASTA, is damaged, or names a chromosome twice."""
    if is_gzip(path):
        return StreamedGenome(path)
    with open_bytes(path):  # refuses other binary files with a better message than an index would
        pass
    try:
        return IndexedGenome(path)
    except (pyfaidx.FastaIndexingError, UnicodeDecodeError):
        return StreamedGenome(path)


class IndexedGenome:
    """Windows of a plain FASTA through pyfaidx."""

    def __init__(self, path: Path) -> None:
        index = path.with_name(path.name + ".fai")
        with tempfile.TemporaryDirectory(prefix="dlshap-") as folder:
            if not describes(index, path):
                made = Path(folder) / index.name
                _open(path, made).close()
                index = _publish(made, index)
            self._fasta = _open(path, index)  # reads the whole index, which may then go
        self.lengths: dict[str, int] = {name: len(self._fasta[name]) for name in self._fasta.keys()}  # noqa: SIM118

    def expect(self, chroms: set[str]) -> None:
        """Nothing to prepare."""

    def fetch(self, chrom: str, start: int, end: int) -> bytes:
        return str(self._fasta[chrom][start:end]).encode()

    def release(self, chrom: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        self._fasta.close()


def _open(path: Path, index: Path) -> pyfaidx.Fasta:
    try:
        return pyfaidx.Fasta(str(path), indexname=str(index), as_raw=True)
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # what pyfaidx raises for a name that occurs twice
        raise UserError(f"genome {path}: {' '.join(str(error).split())}") from None


def _publish(made: Path, index: Path) -> Path:
    """Put a new index beside its genome, whole or not at all, and say where it is; where that fails, it stays."""
    if not os.access(index.parent, os.W_OK):
        return made
    partial = index.with_name(f"{index.name}.{uuid4().hex}.partial")  # others may be making the same index
    try:
        shutil.copyfile(made, partial)
        partial.replace(index)
    except OSError:  # a full disk, say: the run does not need the copy
        partial.unlink(missing_ok=True)
        return made
    return index


def describes(index: Path, genome: Path) -> bool:
    """Whether an index is there, newer than the genome, and fits it: every record where it says, the last at the end.

    An index of another genome, or one that was cut short while it was written, would give wrong letters silently.
    """
    if not index.is_file() or index.stat().st_mtime < genome.stat().st_mtime:
        return False
    end = 0
    with genome.open("rb") as file:
        for line in index.read_bytes().splitlines():
            fields = line.split(b"\t")
            if len(fields) < 5 or not all(field.isdigit() for field in fields[1:5]):
                return False
            length, offset, line_bases, line_bytes = (int(field) for field in fields[1:5])
            if not 0 < offset - end <= _LONGEST_HEADER:
                return False
            file.seek(end)
            between = file.read(offset - end)  # the rest of the line before, and the header
            header = between.strip()
            if not (header.startswith(b">") and b"\n" not in header and between.endswith(b"\n")):
                return False
            if header[1:].split(None, 1)[:1] != [fields[0]]:
                return False
            end = offset + (length // line_bases * line_bytes + length % line_bases if line_bases else 0)
        file.seek(end)
        rest = file.read(_LONGEST_HEADER)
    return end > 0 and not rest.strip()


class StreamedGenome:
    """Windows of a FASTA that can only be read forwards; see the module's description."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lengths: dict[str, int] = {}
        for name, bases in _runs(path):
            if bases is None:
                if name in self.lengths:
                    raise UserError(f"genome {path} names {name!r} twice; names must be unique")
                self.lengths[name] = 0
            else:
                self.lengths[name] += len(bases)
        self._held: dict[str, bytes] = {}
        self._wanted = set(self.lengths)
        self._chromosomes = self._read()

    def expect(self, chroms: set[str]) -> None:
        """Before the first window: the chromosomes that will be asked for, so that no other is kept."""
        self._wanted = chroms & set(self.lengths)

    def fetch(self, chrom: str, start: int, end: int) -> bytes:
        while chrom not in self._held:
            passed = next(self._chromosomes, None)
            if passed is None:
                raise UserError(f"genome {self._path} has changed while it was read: {chrom!r} is gone")
            self._held[passed[0]] = passed[1]
        return self._held[chrom][start:end]

    def release(self, chrom: str) -> None:
        """Forget a chromosome; asking for it again is an error."""
        self._held.pop(chrom, None)

    def close(self) -> None:
        self._chromosomes.close()
        self._held.clear()

    def _read(self) -> Generator[tuple[str, bytes], None, None]:
        """The wanted chromosomes in the order of the file."""
        current, pieces = "", bytearray()
        for name, bases in _runs(self._path):
            if bases is not None:
                if name in self._wanted:
                    pieces += bases
                continue
            if current in self._wanted:
                yield current, bytes(pieces)
            current, pieces = name, bytearray()
        if current in self._wanted:
            yield current, bytes(pieces)


def _runs(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(name, None) at each header, then (name, letters) for each run of its sequence, line ends taken out."""
    name = None
    for block in _blocks_of_lines(path):
        position = 0
        headers = [(match.start(), match.end()) for match in _HEADER.finditer(block)]
        for start, end in [*headers, (len(block), len(block))]:
            bases = block[position:start].translate(None, _BLANKS)
            if bases and name is None:
                raise UserError(
                    f"genome {path}: text before the first FASTA header ('>name'): {text_of(bases[:40])[0]!r}"
                )
            if bases and name is not None:
                yield name, bases
            if start < end:
                words = text_of(block[start + 1 : end])[0].split(None, 1)
                if not words:
                    raise UserError(f"genome {path} holds a record without a name; expected '>name'")
                name = words[0]
                yield name, None
            position = end
    if name is None:
        raise UserError(f"genome {path} holds no FASTA records; expected lines of '>name' followed by a sequence")


def _blocks_of_lines(path: Path) -> Iterator[bytes]:
    """The file in blocks that end at the end of a line, so that no header is cut in two."""
    block = bytearray()
    with open_bytes(path) as file:
        try:
            if mark := file.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK):
                block += mark
            while chunk := file.read(_CHUNK_BYTES):
                cut = chunk.rfind(b"\n") + 1
                block += chunk[:cut] or chunk
                if cut:
                    yield bytes(block)
                    block = bytearray(chunk[cut:])
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise damaged(path, "(read as a genome)", error) from error
    yield bytes(block)
