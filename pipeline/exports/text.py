"""Text tables of exports: tab-separated columns, a line for each row."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.exports.selection import Selection
from pipeline.inputs.text import numbered_lines, text_of
from pipeline.messages.errors import UserError
from pipeline.messages.visible import visible

_FORMULA = re.compile(r"[=@]|[+-](?!$|\.?\d[\d.]*(e[+-]?\d+)?$|inf$)")


def field(value: object) -> str:
    """A value as one column of a table of text.

    What would begin another column or line, or act on a terminal, is an escape: a tab is \\t. So is the first character
    of a name that a spreadsheet would run as a formula: =, @, + and -, unless it is a sign alone or a number's.
    """
    text = visible(str(value))
    return f"\\x{ord(text[0]):02x}{text[1:]}" if _FORMULA.match(text) else text


def lines_of(path: Path, option: str) -> Iterator[tuple[int, str]]:
    """The 1-based numbers and lines of a text file, plain or compressed, that an option names; UserError for others."""
    if not path.is_file():
        raise UserError(f"{option} {path}: no such file")
    for number, line in numbered_lines(path):
        text, is_utf8 = text_of(line)
        if not is_utf8:
            raise UserError(f"{option} {path}, line {number}: it is not UTF-8 text")
        yield number, text


def windows_of(selection: Selection) -> tuple[list[str], np.ndarray]:
    """The first two columns of a BED of the windows: (M,) chromosomes and (M,) int64 starts.

    Where the input had no loci, a sequence is a chromosome of its own, called like the row.
    """
    if selection.has_loci:
        return selection.column("chrom").tolist(), selection.start
    names = [field(name) for name in selection.column("name")]
    names = [f"\\x23{name[1:]}" if name.startswith("#") else name for name in names]  # not a comment
    return names, np.full(len(selection), selection.window.start)


def write_narrow_peak(selection: Selection, paths: Sequence[Path]) -> None:
    """A 10-column narrowPeak to each path, a line for each row in order: the window is the peak, its centre the summit.

    With an even number of bases W the summit is W / 2, so that a tool that centres on start + summit and one that
    centres on half the window agree.
    """
    chroms, names, strands = (selection.column(name) for name in ("chrom", "name", "strand"))
    width = selection.width
    for path in paths:
        with path.open("w", encoding="utf-8") as file:
            for chrom, start, name, strand in zip(chroms, selection.start, names, strands, strict=True):
                known = strand if strand in ("+", "-") else "."
                file.write(f"{chrom}\t{start}\t{start + width}\t{field(name)}\t0\t{known}\t0\t-1\t-1\t{width // 2}\n")
