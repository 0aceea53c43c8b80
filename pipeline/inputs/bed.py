"""Lines of BED and its like: columns, intervals, and whether a window lies within a genome.

Coordinates are 0-based and half-open.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.inputs.centres import WHOLE
from pipeline.inputs.genome import Genome
from pipeline.inputs.text import numbered_lines
from pipeline.messages.visible import shown

N_NEEDED = 3  # columns: chromosome, start, end


def data_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(0-based row, 1-based line number, line) of every line that is data."""
    index = 0
    for number, line in numbered_lines(path):
        stripped = line.lstrip()
        if not stripped or stripped.startswith(b"#") or stripped.split(None, 1)[0] in (b"track", b"browser"):
            continue
        yield index, number, line
        index += 1


def columns(line: str) -> list[str]:
    """The columns of a data line, by tabs where it has any, by blanks otherwise; without empty ones at its end."""
    if "\t" not in line:
        return line.split()
    found = [column.strip() for column in line.split("\t")]
    while len(found) > N_NEEDED and not found[-1]:
        found.pop()
    return found


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
    """Raises ValueError when a genome or track has no such chromosome, with one of nearly that name, if any."""
    if chrom not in sizes:
        known = ", ".join(list(sizes)[:3]) + (", ..." if len(sizes) > 3 else "")
        near = next((other for other in sizes if _bare(other) == _bare(chrom)), None)
        hint = f"it has {near!r}: rename one of the two" if near else f"it has {known}"
        raise ValueError(f"no chromosome {shown(chrom)} in {where}; {hint}")


def _bare(chrom: str) -> str:
    """A chromosome's name in all conventions: chr1, Chr1 and 1; chrM, MT and M."""
    name = chrom.lower().removeprefix("chr")
    return "m" if name == "mt" else name


def _integer(text: str, column: str) -> int:
    if not WHOLE.fullmatch(text):
        raise ValueError(f"{column} is {shown(text)}; expected a whole number")
    return int(text)
