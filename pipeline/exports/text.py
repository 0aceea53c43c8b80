"""Text tables of exports: tab-separated columns, a line for each row."""

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.exports.selection import Selection
from pipeline.sources.text import numbered_lines, text_of


def field(text: object) -> str:
    """A name as one column: a tab or a line end in it becomes a space."""
    return re.sub(r"[\t\r\n]", " ", str(text))


def lines_of(path: Path, option: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that an option names, plain or gzip, and their 1-based numbers.

    Raises:
        UserError: there is no such file, or it is not UTF-8 text.
    """
    if not path.is_file():
        raise UserError(f"{option} {path}: no such file")
    for number, line in numbered_lines(path):
        text, is_utf8 = text_of(line)
        if not is_utf8:
            raise UserError(f"{option} {path}, line {number}: it is not UTF-8 text")
        yield number, text


def narrow_peak(selection: Selection) -> Iterator[str]:
    """Lines of a 10-column narrowPeak, one for each row in order: the window as the peak and its centre as the summit.

    With an even number of bases W the summit is W / 2, so that a tool that centres on start + summit and one that
    centres on half the window agree.
    """
    columns = zip(
        selection.column("chrom"), selection.start, selection.column("name"), selection.column("strand"), strict=True
    )
    summit = selection.width // 2
    for chrom, start, name, strand in columns:
        strand = strand if strand in ("+", "-") else "."
        yield f"{chrom}\t{start}\t{start + selection.width}\t{field(name)}\t0\t{strand}\t0\t-1\t-1\t{summit}\n"
