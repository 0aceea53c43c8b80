"""Tables as text: CSV, TSV and their like, plain or compressed, streamed line by line.

The first line names the columns. A field may be in double quotes, doubled within; the end of a line always ends a row.
Blank lines, and comments (#) above the header, are skipped and not counted as rows.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.inputs.file_types import DELIMITERS, suffix_of
from pipeline.inputs.text import numbered_lines, text_of
from pipeline.messages.errors import UserError
from pipeline.messages.words import counted

NAMES = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
_LONGEST_FIELD = (1 << 31) - 1  # the csv module refuses fields above 131,072 characters unless told otherwise


@dataclass(frozen=True)
class Line:
    """A line of data: 0-based row, 1-based line of the file, its fields, or what is wrong with it."""

    index: int
    number: int
    fields: list[str]
    problem: str | None = None


class Delimited:
    """A text table: the name of its delimiter, those of its columns, and its lines.

    Args:
        path: of the file.
        delimiter: a name of NAMES, or None to tell from the file's name and its header.

    Raises:
        UserError: there is no header, or the delimiter does not fit it.
    """

    def __init__(self, path: Path, delimiter: str | None = None) -> None:
        self.path = path
        csv.field_size_limit(_LONGEST_FIELD)
        header = next(_header_and_data(path), None)
        if header is None:
            raise UserError(
                f"{path} is empty; expected a first line that names the columns, and a line for each sequence"
            )
        number, line = header
        text, is_utf8 = text_of(line)
        if not is_utf8:
            raise UserError(f"{path}, line {number}: the header is not UTF-8 text; save the table as UTF-8")
        self._delimiter = _delimiter_of(path, number, text, delimiter)
        self.delimiter = next(name for name, character in NAMES.items() if character == self._delimiter)
        try:
            self.columns = [name.strip() for name in _split(text.lstrip("# "), self._delimiter)]
        except csv.Error as error:
            raise UserError(f"{path}, line {number}: the header cannot be read: {error}") from None

    def lines(self) -> Iterator[Line]:
        """The lines below the header, in order."""
        found = _header_and_data(self.path)
        next(found, None)
        for index, (number, line) in enumerate(found):
            text, is_utf8 = text_of(line)
            if not is_utf8:
                yield Line(index, number, [], "the line is not UTF-8 text")
                continue
            try:
                fields = _split(text, self._delimiter)
            except csv.Error as error:
                yield Line(index, number, [], f"its quotes do not close within the line ({error})")
                continue
            problem = None
            if len(fields) != len(self.columns):
                problem = f"{counted(len(fields), 'field')} where the header has {len(self.columns)}"
            yield Line(index, number, fields, problem)


def _header_and_data(path: Path) -> Iterator[tuple[int, bytes]]:
    """The header, then the lines of data, each with its 1-based number."""
    header: tuple[int, bytes] | None = None
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        if header is None:
            header = number, line
        elif header[1].startswith(b"##") or (header[1].startswith(b"# ")):
            header = number, line  # the line before was a comment
        else:
            break
    if header is None:
        return
    yield header
    for number, line in numbered_lines(path):
        if number > header[0] and line.strip():
            yield number, line


def _delimiter_of(path: Path, number: int, header: str, given: str | None) -> str:
    """The given delimiter, else that of the file's name, else the only one in the header."""
    has = [name for name, character in NAMES.items() if character in header]
    by_name = {character: name for name, character in NAMES.items()}.get(DELIMITERS.get(suffix_of(path), ""))
    wanted = given or by_name
    if wanted is None:
        if len(has) > 1:
            raise UserError(
                f"{path}, line {number}: the header has {' and '.join(has)}s; say dataset.delimiter={has[0]}"
            )
        return NAMES[has[0]] if has else "\t"
    if has and wanted not in has:
        said = f"dataset.delimiter={given}" if given else f"its name says {wanted}"
        raise UserError(f"{path}, line {number}: {said}, the header has {has[0]}s; give dataset.delimiter={has[0]}")
    return NAMES[wanted]


def _split(line: str, delimiter: str) -> list[str]:
    """The fields of a line. Raises csv.Error where quotes do not close."""
    if '"' not in line:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, strict=True))
