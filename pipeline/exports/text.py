"""Text tables of exports: tab-separated columns, a line for each row."""

import re
from collections.abc import Iterator

from pipeline.exports.selection import Selection


def field(text: object) -> str:
    """A name as one column: a tab or a line end in it becomes a space."""
    return re.sub(r"[\t\r\n]", " ", str(text))


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
