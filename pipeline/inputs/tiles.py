"""Windows of a whole genome, one every `stride` bases from the start of each chromosome.

Coordinates are 0-based and half-open. Windows are in the order of the genome and called chrom:start-end. The end of a
chromosome after its last whole window is left out. Windows with too few known bases, and those that share a base with a
blacklist, are counted and left out. A row keeps its number among all windows.

A genome is read in blocks, so that memory does not grow with it (but for gzip: one chromosome, see genome.py).
"""

import bisect
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dlshap_core.sequences import UNKNOWN, encode
from pipeline.config.settings import setting
from pipeline.inputs.base import Row, RowSource, Source
from pipeline.inputs.bed import columns, data_lines, parse_interval, require_chrom
from pipeline.inputs.form import Windows
from pipeline.inputs.genome import Genome, genome_sizes, open_genome
from pipeline.inputs.text import text_of
from pipeline.messages.errors import UserError

_BLOCK_BASES = 1 << 22


@dataclass
class Tiles(Windows):
    """Windows of a whole genome, one after the other."""

    is_called: ClassVar[str] = "a genome"
    has_repeats: ClassVar[bool] = False  # they overlap by `stride`

    name: str = "tiles"
    stride: int | None = setting(
        "bases from one window's start to the next's; usually dataset.length", None, least=1, is_plain=True
    )
    blacklist: str | None = setting(
        "BED file; windows that share a base with it are left out", None, is_file=True, is_plain=True
    )
    chroms: list[str] = setting("chromosomes to take; empty: all", list, is_plain=True)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if len(set(self.chroms)) < len(self.chroms):
            yield f"dataset.chroms={self.chroms} names a chromosome twice; name each once"

    def open(self) -> Source:
        blacklist = None if self.blacklist is None else self.file("blacklist")
        return TileSource(self.file("genome"), self.width, self.stride, blacklist, self.chroms, self.min_known)


@dataclass(frozen=True)
class Blacklist:
    """Merged intervals of one chromosome, ascending: starts and ends."""

    starts: list[int]
    ends: list[int]

    def hits(self, start: int, end: int) -> bool:
        """Whether a window shares a base with an interval."""
        i = bisect.bisect_left(self.starts, end) - 1  # the last one that starts before the window ends
        return i >= 0 and self.ends[i] > start


class TileSource(RowSource):
    """Windows of `length` bases, one every `stride`; arguments as in `Tiles`."""

    def __init__(
        self,
        genome: Path,
        length: int,
        stride: int | None = None,
        blacklist: Path | None = None,
        chroms: list[str] | None = None,
        min_known: float = 0.5,
    ) -> None:
        self.genome, self.length, self.stride = genome, length, stride or length
        self.blacklist, self.chroms, self.min_known = blacklist, chroms or [], min_known
        self.description: dict[str, Any] = {
            "kind": "tiles",
            "genome": genome.name,
            "length": length,
            "stride": self.stride,
            "blacklist": blacklist and blacklist.name,
            "chroms": self.chroms,
        }

    def _rows(self) -> Iterator[Row]:
        self.description |= {"n_windows": 0, "n_unknown": 0, "n_blacklisted": 0}
        with closing(open_genome(self.genome)) as genome:
            chroms = self._chosen(genome)
            blacklists = {} if self.blacklist is None else read_blacklist(self.blacklist, genome, self.genome.name)
            genome.expect(set(chroms))
            self.description["chrom_sizes"] = genome_sizes(genome, chroms)
            n_passed = 0
            for chrom in chroms:
                n = (genome.lengths[chrom] - self.length) // self.stride + 1
                yield from self._of_chromosome(genome, chrom, n, n_passed, blacklists.get(chrom))
                genome.release(chrom)
                n_passed += n
            self.description["n_windows"] = n_passed

    def _chosen(self, genome: Genome) -> list[str]:
        """The chromosomes that have a window, in the order of the genome."""
        for chrom in self.chroms:
            try:
                require_chrom(chrom, genome.lengths, self.genome.name)
            except ValueError as error:
                raise UserError(f"dataset.chroms: {error}") from None
        wanted = set(self.chroms or genome.lengths)
        found = [chrom for chrom, size in genome.lengths.items() if chrom in wanted and size >= self.length]
        if not found:
            longest = max(genome.lengths[chrom] for chrom in wanted)
            raise UserError(
                f"no chromosome of {self.genome.name} has dataset.length={self.length} bases; the longest has {longest}"
            )
        return found

    def _of_chromosome(
        self, genome: Genome, chrom: str, n: int, n_passed: int, blacklist: Blacklist | None
    ) -> Iterator[Row]:
        in_block = max(1, _BLOCK_BASES // self.stride)
        for first in range(0, n, in_block):
            last = min(first + in_block, n) - 1
            begin = first * self.stride
            letters = genome.fetch(chrom, begin, last * self.stride + self.length)
            block = _encoded(letters)
            for window in range(first, last + 1):
                start = window * self.stride
                end = start + self.length
                if blacklist is not None and blacklist.hits(start, end):
                    self.description["n_blacklisted"] += 1
                    continue
                row = self._row(n_passed + window, chrom, start, block, letters, begin)
                if row is not None:
                    yield row

    def _row(
        self, index: int, chrom: str, start: int, block: np.ndarray | None, letters: bytes, begin: int
    ) -> Row | None:
        """A window of a block that begins at `begin`; None where too few of its bases are known."""
        end, place = start + self.length, slice(start - begin, start - begin + self.length)
        name = f"{chrom}:{start}-{end}"
        try:
            codes = encode(letters[place]) if block is None else block[place].copy()
        except ValueError as error:
            return Row(index, None, f"window {index} {name} ({self.genome.name}): {error}", name, chrom, start, end)
        known = np.count_nonzero(codes != UNKNOWN) / self.length
        if known == 0 or known < self.min_known:
            self.description["n_unknown"] += 1
            return None
        return Row(index, codes, None, name, chrom, start, end)


def _encoded(letters: bytes) -> np.ndarray | None:
    """Codes of a block; None where a character is no nucleotide: then its windows are encoded one by one."""
    try:
        return encode(letters)
    except ValueError:
        return None


def read_blacklist(path: Path, genome: Genome, genome_name: str) -> dict[str, Blacklist]:
    """The merged intervals of a BED file, by chromosome. Raises UserError for a bad line, or where the genome has none
    of the chromosomes."""
    found: dict[str, list[tuple[int, int]]] = {}
    for _, number, line in data_lines(path):
        text, is_utf8 = text_of(line)
        try:
            if not is_utf8:
                raise ValueError("the line is not UTF-8 text")
            chrom, start, end = parse_interval(columns(text))
        except ValueError as error:
            raise UserError(f"dataset.blacklist={path}, line {number}: {error}") from None
        found.setdefault(chrom, []).append((start, end))
    if found and not set(found) & set(genome.lengths):
        try:
            require_chrom(next(iter(found)), genome.lengths, genome_name)
        except ValueError as error:
            raise UserError(f"dataset.blacklist={path}: {error}") from None
    return {chrom: _merged(sorted(intervals)) for chrom, intervals in found.items()}


def _merged(intervals: list[tuple[int, int]]) -> Blacklist:
    starts: list[int] = []
    ends: list[int] = []
    for start, end in intervals:
        if start == end:
            continue
        if starts and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return Blacklist(starts, ends)
