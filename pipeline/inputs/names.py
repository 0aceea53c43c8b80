"""What a row and a chromosome may be called: what stands in a line of a table is one column of one line."""

import functools
import re

from pipeline.messages.visible import is_visible, shown

_NO_CHROM = re.compile(r"[#=*@+-]|(track|browser)$")  # how lines that are no loci begin, options, and formulas


def name_problem(name: str) -> str | None:
    """Why a row cannot be called so; None if it can."""
    if is_visible(name):
        return None
    return f"its name is {shown(name)}; expected one without tabs, line ends, control and invisible characters"


@functools.lru_cache(1024)
def chrom_problem(chrom: str) -> str | None:
    """Why a chromosome cannot be called so; None if it can."""
    if not chrom or (is_visible(chrom) and not re.search(r"\s", chrom) and not _NO_CHROM.match(chrom)):
        return None
    return (
        f"its chromosome is {shown(chrom)}; expected a name such as chr1, without blanks, control and invisible "
        f"characters, that does not begin with one of # = * @ + - and is not track or browser"
    )
