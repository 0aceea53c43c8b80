"""Windows of a genome FASTA, by chromosome and 0-based half-open coordinates.

Two ways to read, chosen by what the file is:

- `IndexedGenome`, for a plain FASTA: pyfaidx seeks to each window through a `.fai` index. An index beside the genome is
  used if it fits; otherwise one is made, and put there unless the genome's folder cannot be written.
- `StreamedGenome`, for gzip, bgzip, bzip2, xz and zstd (and a plain FASTA of uneven line lengths, which no index can
  describe). The file is read twice: once for names and lengths, to check every locus, and once for the sequences. The
  second pass holds a chromosome in memory (a byte per base) until its last locus; those without loci are skipped. Loci
  in the genome's order need one chromosome at a time; in any other order, at most all chromosomes with loci.
"""

import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pyfaidx

from pipeline.config import limits
from pipeline.inputs.compressed import DamagedFile, is_compressed
from pipeline.inputs.text import BYTE_ORDER_MARK, damaged, open_bytes, text_of
from pipeline.messages.errors import UserError
from pipeline.messages.secrets import one_line
from pipeline.store.backends.scratch import scratch_folder

_CHUNK_BYTES = 1 << 22
_LONGEST_HEADER = 4096  # bytes; a longer one is not believed to be one
_MOST_DIGITS = 18  # of a number in an index
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
    if is_compressed(path):
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
        with scratch_folder() as folder:
            if not describes(index, path):
                _require_lines(path)
                made = folder / index.name
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


def _require_lines(path: Path) -> None:
    """Raises UserError where a line is too long for pyfaidx, which has it in memory when it makes an index."""
    size, most = path.stat().st_size, limits.current().held_mb * limits.MB
    limits.require_streamed(size, path)  # holes have no ends of lines
    if size <= most:
        return
    n_bytes = 0  # of a line so far; those that begin and end within a block are short
    with path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            end, begin = block.find(b"\n"), block.rfind(b"\n") + 1
            n_bytes += len(block) if end < 0 else end
            if n_bytes > most:
                advice = f"samtools faidx {path.name} makes an index, with which it is read all the same"
                raise limits.too_long(f"genome {path} ({advice}): a line", "held_mb")
            if begin:
                n_bytes = len(block) - begin


def _open(path: Path, index: Path) -> pyfaidx.Fasta:
    try:
        return pyfaidx.Fasta(str(path), indexname=str(index), as_raw=True)
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # what pyfaidx raises for a name that occurs twice
        raise UserError(f"genome {path}: {one_line(error)}") from None


def _publish(made: Path, index: Path) -> Path:
    """Copy a new index beside its genome, whole or not at all; the path to use."""
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
    """Whether an index exists, is newer than the genome, and has every record in its place and the last one at the end.

    An index of another genome, or a truncated one, would give wrong letters silently.
    """
    about, of_genome = index.stat() if index.is_file() else None, genome.stat()
    if about is None or about.st_mtime < of_genome.st_mtime or about.st_size > of_genome.st_size + limits.MB:
        return False
    end = 0
    with genome.open("rb") as file:
        for line in index.read_bytes().splitlines():
            fields = line.split(b"\t")
            if len(fields) < 5 or not all(field.isdigit() and len(field) <= _MOST_DIGITS for field in fields[1:5]):
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
    is_within = end <= of_genome.st_size + len(b"\r\n")  # a file may end without that of its last line
    return end > 0 and is_within and not rest.strip()


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
        self._held: dict[str, bytearray] = {}
        self._wanted = set(self.lengths)
        self._chromosomes = self._read()

    def expect(self, chroms: set[str]) -> None:
        """Only these chromosomes are kept."""
        self._wanted = chroms & set(self.lengths)

    def fetch(self, chrom: str, start: int, end: int) -> bytes:
        while chrom not in self._held:
            passed = next(self._chromosomes, None)
            if passed is None:
                raise UserError(f"genome {self._path} has changed while it was read: {chrom!r} is gone")
            self._held[passed[0]] = passed[1]
        return bytes(self._held[chrom][start:end])

    def release(self, chrom: str) -> None:
        """Forget a chromosome; asking for it again is an error."""
        self._held.pop(chrom, None)

    def close(self) -> None:
        self._chromosomes.close()
        self._held.clear()

    def _read(self) -> Generator[tuple[str, bytearray], None, None]:
        """The wanted chromosomes in the order of the file."""
        current, letters = "", bytearray()
        for name, bases in _runs(self._path):
            if bases is not None:
                if name in self._wanted:
                    letters += bases
                continue
            if current in self._wanted:
                yield current, letters
            current, letters = name, bytearray()
            if current in self._wanted:
                self._require_room(current)
        if current in self._wanted:
            yield current, letters

    def _require_room(self, chrom: str) -> None:
        """Raises UserError where a chromosome, beside those that are held, is beyond the limits."""
        n_bytes = sum(map(len, self._held.values())) + self.lengths[chrom]
        advice = "unpack it, or sort the loci in its order" if self._held else "unpack it"
        what = f"genome {self._path}, up to {chrom} ({advice}),"
        limits.require_held(n_bytes, limits.bytes_on_disk(self._path), what)


def _runs(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(name, None) at each header, then (name, letters) for each run of its sequence, line ends taken out."""
    name = None
    for block, begins_line in _blocks(path):
        position = 0
        found = _HEADER.finditer(block) if b">" in block else ()
        headers = [match.span() for match in found if begins_line or match.start()]
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


def _blocks(path: Path) -> Iterator[tuple[bytes, bool]]:
    """The file in blocks, and whether each begins where a line does. A header is not cut in two; other lines are."""
    with open_bytes(path) as file:
        try:
            rest, begins_line = file.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK), True
            while chunk := file.read(_CHUNK_BYTES):
                block = rest + chunk
                last = block.rfind(b"\n") + 1
                is_header = block[last : last + 1] == b">" and (begins_line or last > 0)
                block, rest = (block[:last], block[last:]) if is_header else (block, b"")
                limits.require_record(len(rest), f"genome {path}: a header")
                if block:
                    yield block, begins_line
                    begins_line = block.endswith(b"\n")
        except (EOFError, DamagedFile) as error:
            raise damaged(path, "(read as a genome)", error) from error
    if rest:
        yield rest, begins_line
