"""Writing a bigWig file as values come along the genome, in memory that does not grow with them.

The layout is that of the supplement of Kent et al. 2010 (doi:10.1093/bioinformatics/btq351), little-endian: a header,
the chromosomes, sections of compressed values, an index of these, and for each zoom level summaries of so many bases
with an index of their own. Summaries of a level are made of those of the level before it, and lie in files of their own
until the values are all there. libBigWig, which pyBigWig writes with, holds the values of a chromosome when it makes
them, at 12 bytes a base.

Shape legend: V values, S summaries, I entries of an index.
"""

import itertools
import shutil
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

MAGIC, TREE_MAGIC, INDEX_MAGIC = 0x888FFC26, 0x78CA8C91, 0x2468ACE0
PER_SECTION, PER_BLOCK, PER_NODE = 4096, 512, 256  # values, summaries, entries of a node
ZOOM, N_ZOOMS = 4, 10  # summaries of a level that make one of the next
BASES = 32  # of a summary of the first level
FIXED_STEP = 3
_PLACE = [(name, "<u4") for name in ("chrom", "start", "end", "n")]  # n: bases with a value
_NUMBERS = ("least", "most", "sum", "squares")
SUMMARY = np.dtype([*_PLACE, *((name, "<f4") for name in _NUMBERS)])  # as the file has it
EXACT = np.dtype([*_PLACE, *((name, "<f8") for name in _NUMBERS)])
_RANGE = [(name, "<u4") for name in ("c0", "start", "c1", "end")]  # chromosome and start, chromosome and end
INNER = np.dtype([*_RANGE, ("offset", "<u8")])  # of a node that is no leaf
ENTRY = np.dtype([*_RANGE, ("offset", "<u8"), ("size", "<u8")])
HEADER = 64 + 24 * N_ZOOMS + 40  # bytes, with the zoom levels and the summary of everything


class BigWigFile:
    """A file that is written.

    Args:
        path: of the file.
        sizes: of the chromosomes, in bases.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int]) -> None:
        names = sorted(sizes)
        self._index_of = {name: index for index, name in enumerate(names)}
        self._file = path.open("wb")
        self._file.write(bytes(HEADER))
        self._file.write(_tree(HEADER, names, [sizes[name] for name in names]))
        self._data_at = self._file.tell()
        self._file.write(bytes(8))
        self._sections, self._waiting = _Blocks(self._file), np.zeros(0, "<f4")
        self._place = 0, 0  # chromosome and start of the values that wait
        self._levels = [_Level(BASES * ZOOM**i, path.parent) for i in range(N_ZOOMS)]
        for finer, coarser in itertools.pairwise(self._levels):
            finer.next = coarser
        self._total, self._n_bases = np.zeros(0, EXACT), 0  # one summary of everything

    def add(self, chrom: str, start: int, values: np.ndarray) -> None:
        """(V,) values of the bases from `start` on; chromosomes ascend, and bases of each."""
        index = self._index_of[chrom]
        if self._place[0] != index or self._place[1] + len(self._waiting) != start:
            self._write_sections(0)
            self._place = index, start
        self._waiting = np.concatenate([self._waiting, np.asarray(values, "<f4")])
        self._write_sections(PER_SECTION)

    def close(self) -> None:
        """Write what waits, the index, the zoom levels and the header."""
        self._write_sections(0)
        file = self._file
        index_at = file.tell()
        file.write(self._sections.index(index_at))
        zooms, longest = b"", self._sections.longest
        for level in self._levels:
            level.finish()
            if level.n <= len(self._index_of) and zooms:
                break  # it tells no more than the level before
            zooms += struct.pack("<IIQQ", level.bases, 0, *level.copy(file))
            longest = max(longest, level.blocks.longest)
        file.write(struct.pack("<I", MAGIC))
        (total,) = self._total if len(self._total) else np.zeros(1, EXACT)
        file.seek(self._data_at)
        file.write(struct.pack("<Q", self._sections.n))
        file.seek(0)
        header = (HEADER, self._data_at, index_at, 0, 0, 0, HEADER - 40, longest, 0)
        file.write(struct.pack("<IHHQQQHHQQIQ", MAGIC, 4, len(zooms) // 24, *header))
        file.write(zooms)
        file.seek(HEADER - 40)
        file.write(struct.pack("<Qdddd", self._n_bases, *(float(total[name]) for name in _NUMBERS)))
        self.abandon()

    def abandon(self) -> None:
        """Close all files."""
        for level in self._levels:
            level.file.close()
        self._file.close()

    def _write_sections(self, least: int) -> None:
        """Write the values that wait while there are more than `least`, a section each."""
        while len(self._waiting) > least:
            (chrom, start), values = self._place, self._waiting[:PER_SECTION]
            end = start + len(values)
            head = struct.pack("<IIIIIBBH", chrom, start, end, 1, 1, FIXED_STEP, 0, len(values))
            self._sections.write(head + values.tobytes(), (chrom, start, chrom, end))
            self._place, self._waiting = (chrom, end), self._waiting[PER_SECTION:]
            self._summarise(chrom, start, values)

    def _summarise(self, chrom: int, start: int, values: np.ndarray) -> None:
        each = np.zeros(len(values), EXACT)
        each["chrom"], each["start"] = chrom, np.arange(start, start + len(values))
        each["end"], each["n"] = each["start"] + 1, 1
        each["least"] = each["most"] = each["sum"] = values
        each["squares"] = each["sum"] ** 2
        each = each[~np.isnan(values)]
        if len(each):
            self._levels[0].add(each)
            self._n_bases += len(each)
            self._total = _merged(np.concatenate([self._total, _merged(each, np.zeros(1, int))]), np.zeros(1, int))


class _Blocks:
    """Compressed blocks in a file, and where each is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._entries, self.longest, self.n = file, [np.zeros(0, ENTRY)], 0, 0
        self._recent: list[tuple[int, ...]] = []

    def write(self, content: bytes, where: tuple[int, int, int, int]) -> None:
        """Add a block of what lies between two places: chromosome and start, chromosome and end."""
        packed = zlib.compress(content)
        self._recent.append((*where, self._file.tell(), len(packed)))
        self._file.write(packed)
        self.longest, self.n = max(self.longest, len(content)), self.n + 1
        if len(self._recent) == PER_BLOCK:
            self._settle()

    def _settle(self) -> None:
        """Put what came lately among the entries: an array takes less room than a list."""
        self._entries.append(np.array(self._recent, ENTRY))
        self._recent = []

    def index(self, at: int, shift: int = 0) -> bytes:
        """The tree of all blocks, to be written at `at`; the blocks were moved by `shift` bytes."""
        self._settle()
        entries = np.concatenate(self._entries)
        entries["offset"] += np.uint64(shift)
        levels = [entries]
        while len(levels[0]) > PER_NODE:
            levels.insert(0, _parents(levels[0]))
        ends = (0, 0, 0, 0)
        if len(entries):
            last = entries[np.lexsort((entries["end"], entries["c1"]))[-1]]
            ends = (int(entries["c0"][0]), int(entries["start"][0]), int(last["c1"]), int(last["end"]))
        head = struct.pack("<IIQIIIIQII", INDEX_MAGIC, PER_NODE, len(entries), *ends, at, 1, 0)
        parts, place = [head], at + len(head)
        for depth, level in enumerate(levels):
            is_leaf = depth == len(levels) - 1
            nodes = [level[i : i + PER_NODE] for i in range(0, max(1, len(level)), PER_NODE)]
            sizes = [4 + len(node) * (32 if is_leaf else 24) for node in nodes]
            place += sum(sizes)
            if not is_leaf:  # the next level follows; its nodes are full, but for the last
                width = 4 + PER_NODE * (32 if depth == len(levels) - 2 else 24)
                level["offset"] = place + width * np.arange(len(level), dtype=np.uint64)
            for node in nodes:
                parts.append(struct.pack("<BBH", is_leaf, 0, len(node)))
                parts.append((node if is_leaf else node[list(INNER.names or ())].astype(INNER)).tobytes())
        return b"".join(parts)


def _parents(level: np.ndarray) -> np.ndarray:
    """An entry for each node of PER_NODE entries, which ascend and do not overlap."""
    first = np.arange(0, len(level), PER_NODE)
    last = np.append(first[1:], len(level)) - 1
    found = level[first].copy()
    found["c1"], found["end"] = level["c1"][last], level["end"][last]
    return found


class _Level:
    """Summaries of so many bases; complete ones go to a file, and to the next level."""

    def __init__(self, bases: int, folder: Path) -> None:
        self.bases, self.n = bases, 0
        self.next: _Level | None = None
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - `abandon` closes it
        self.blocks = _Blocks(self.file)
        self._open, self._full = np.zeros(0, EXACT), np.zeros(0, EXACT)

    def add(self, finer: np.ndarray) -> None:
        """Summaries of fewer bases, in order."""
        finer = np.concatenate([self._open, finer])
        of = finer["chrom"].astype(np.uint64) << np.uint64(32) | finer["start"] // np.uint32(self.bases)
        merged = _merged(finer, np.flatnonzero(np.append(True, of[1:] != of[:-1])))
        self._open = merged[-1:]
        self._emit(merged[:-1])

    def finish(self) -> None:
        """There are no more."""
        self._emit(self._open)
        self._open = self._open[:0]
        self._write(1)

    def _emit(self, merged: np.ndarray) -> None:
        if len(merged):
            self.n += len(merged)
            self._full = np.concatenate([self._full, merged])
            self._write(PER_BLOCK)
            if self.next is not None:
                self.next.add(merged)

    def _write(self, least: int) -> None:
        """Write those that wait while there are so many, in blocks of one chromosome."""
        while len(self._full) >= least:
            block = self._full[:PER_BLOCK]
            block = block[block["chrom"] == block["chrom"][0]]
            where = (block["chrom"][0], block["start"][0], block["chrom"][0], block["end"][-1])
            with np.errstate(over="ignore"):  # a square beyond float32 is infinite
                packed = block.astype(SUMMARY).tobytes()
            self.blocks.write(packed, tuple(map(int, where)))  # type: ignore[arg-type]
            self._full = self._full[len(block) :]

    def copy(self, file: BinaryIO) -> tuple[int, int]:
        """Put the level at the end of a file; where it begins, and where its index does."""
        at = file.tell()
        file.write(struct.pack("<I", self.n))
        self.file.seek(0)
        shutil.copyfileobj(self.file, file)
        index_at = file.tell()
        file.write(self.blocks.index(index_at, at + 4))
        return at, index_at


def _merged(finer: np.ndarray, first: np.ndarray) -> np.ndarray:
    """A summary of those from each index on to the next."""
    found = finer[first].copy()
    found["end"] = finer["end"][np.append(first[1:], len(finer)) - 1]
    for name, add in (("n", np.add), ("least", np.minimum), ("most", np.maximum), ("sum", np.add), ("squares", np.add)):
        found[name] = add.reduceat(finer[name], first)
    return found


def _tree(at: int, names: Sequence[str], sizes: Sequence[int]) -> bytes:
    """The chromosomes, to be written at `at`: a tree whose nodes are full, but for the last of each depth."""
    keys = [name.encode() for name in names]
    width = max(map(len, keys))
    levels = [[(key, struct.pack("<II", index, sizes[index])) for index, key in enumerate(keys)]]
    while len(levels[0]) > PER_NODE:
        levels.insert(0, [(key, b"") for key, _ in levels[0][::PER_NODE]])
    parts = [struct.pack("<IIIIQQ", TREE_MAGIC, PER_NODE, width, 8, len(keys), 0)]
    place = at + len(parts[0])
    for depth, level in enumerate(levels):
        is_leaf = depth == len(levels) - 1
        nodes = [level[i : i + PER_NODE] for i in range(0, len(level), PER_NODE)]
        place += sum(4 + len(node) * (width + 8) for node in nodes)  # where the next level begins
        for number, node in enumerate(nodes):
            parts.append(struct.pack("<BBH", is_leaf, 0, len(node)))
            for i, (key, value) in enumerate(node):
                child = place + (number * PER_NODE + i) * (4 + PER_NODE * (width + 8))
                parts.append(key.ljust(width, b"\0") + (value if is_leaf else struct.pack("<Q", child)))
    return b"".join(parts)
