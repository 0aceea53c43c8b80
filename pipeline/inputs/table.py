"""Sequences in a column of a table: CSV, TSV, Parquet, Arrow or Feather.

The sequence is text, read as in FASTA; in Parquet and Arrow it may also be one-hot or codes, as lists (see lists.py).
Other columns are used where they are found by their usual names, whatever the case, or are named in `dataset.columns`:
the row's name, and its chromosome, start and end, 0-based and half-open. Without these three, a name such as
`chr1:100-200` is a locus, as in FASTA. Without a name, a row is called by its locus, or `row_5`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dlshap_core.sequences import encode
from pipeline.config.dataset_args import ExtraInput
from pipeline.config.settings import setting, to_dict
from pipeline.inputs import cells
from pipeline.inputs.base import Row, RowSource, Source, Values
from pipeline.inputs.columnar import MAGIC, Columnar, kind_of, list_shape
from pipeline.inputs.columns import listed, require_column
from pipeline.inputs.compressed import first_bytes
from pipeline.inputs.delimited import NAMES, Delimited, Line
from pipeline.inputs.fasta import LocusNames, locus_of
from pipeline.inputs.file_types import DELIMITERS
from pipeline.inputs.form import InputForm
from pipeline.inputs.lists import Decoded, fixed, fixed_type, numbers
from pipeline.inputs.onehot import AXES, READ_AS, axes_of
from pipeline.messages.errors import UserError
from pipeline.messages.visible import shown

SEQUENCE = ("sequence", "seq")
USUAL = {
    "name": ("name", "id"),
    "chrom": ("chrom", "chr", "chromosome"),
    "start": ("start", "chromstart", "chrom_start"),
    "end": ("end", "stop", "chromend", "chrom_end"),
    "strand": ("strand",),
}
LOCUS = ("chrom", "start", "end")
NOT_USED = "none"  # as the name of a column
_INTEGER = re.compile(r"[+-]?\d{1,18}(\.0*)?")  # a column with gaps is one of floats to many tools
_STRANDS = {"+": "+", "-": "-", "1": "+", "-1": "-", ".": ".", "": ".", "*": "."}


@dataclass
class ColumnsConfig:
    """Names of columns where they are not the usual ones; none leaves a column out."""

    name: str | None = setting("column of the row's name; null: name or id", None, is_plain=True)
    chrom: str | None = setting("column of the chromosome; null: chrom, chr or chromosome", None, is_plain=True)
    start: str | None = setting("column of the 0-based start; null: start or chromStart", None, is_plain=True)
    end: str | None = setting("column of the exclusive end; null: end, stop or chromEnd", None, is_plain=True)
    strand: str | None = setting("column of the strand, + or -; null: strand", None, is_plain=True)


@dataclass
class Table(InputForm):
    """A column of a table: CSV, TSV, Parquet, Arrow or Feather."""

    is_called: ClassVar[str] = "a table"
    suffixes: ClassVar[tuple[str, ...]] = (*DELIMITERS, ".parquet", ".pq", ".arrow", ".feather", ".ipc")
    magic: ClassVar[tuple[bytes, ...]] = MAGIC
    has_columns: ClassVar[bool] = True

    name: str = "table"
    path: str = setting("the table; text may be compressed", is_file=True, is_plain=True)
    column: str | None = setting("column of the sequence; null: the one called sequence or seq", None, is_plain=True)
    columns: ColumnsConfig = setting("the other columns", ColumnsConfig)
    delimiter: str | None = setting(
        "comma, tab, semicolon or pipe; null: from the file's name and its header",
        None,
        choices=tuple(NAMES),
        is_plain=True,
    )
    axes: str | None = setting(
        "N4L, NL4 or NL, where the shape does not tell their order", None, choices=AXES, is_plain=True
    )

    def open(self) -> Source:
        return TableSource(self.file("path"), self.column, to_dict(self.columns), self.delimiter, self.axes)

    def values_of(self, entry: ExtraInput) -> Values:
        path = self.file("path")
        if first_bytes(path).startswith(MAGIC):
            return cells.columnar(entry, path)
        return cells.delimited(entry, path, self.delimiter)


class TableSource(RowSource):
    """Every row of one table, in order; arguments as in `Table`."""

    def __init__(
        self,
        path: Path,
        column: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        delimiter: str | None = None,
        axes: str | None = None,
    ) -> None:
        self.path, self._delimiter, self._axes = path, delimiter, axes
        self._column, self._columns = column, columns or {}
        self._is_columnar = first_bytes(path).startswith(MAGIC)
        if self._is_columnar and delimiter is not None:
            raise UserError(f"dataset.delimiter={delimiter} is for text; {path} is not text: leave it out")
        self.description: dict[str, Any] = {"kind": "table", "path": path.name}

    def _choose(self, columns: list[str], form: str) -> dict[str, str]:
        roles = choose(columns, self._column, self._columns, self.path)
        self.description["columns"] = roles
        used = ", ".join(f"{role} from {_among(columns, role, name)}" for role, name in roles.items())
        self.description["notes"] = [
            f"{self.path.name}: {form}{used}{'; start is 0-based' if 'start' in roles else ''}"
        ]
        return roles

    def _rows(self) -> Iterator[Row]:
        names = LocusNames()
        for row in self._columnar() if self._is_columnar else self._delimited():
            if "chrom" not in self.description["columns"]:
                names.add(row)
            yield row
        self.description["notes"] += names.notes(self.path.name)

    def _delimited(self) -> Iterator[Row]:
        table = Delimited(self.path, self._delimiter)
        roles = self._choose(table.columns, f"split at each {table.delimiter}; ")
        places = {role: table.columns.index(column) for role, column in roles.items()}
        line = None
        for line in table.lines():
            yield self._row_of_line(line, places)
        if line is None:
            raise UserError(f"{self.path} holds no rows below its header")

    def _row_of_line(self, line: Line, places: Mapping[str, int]) -> Row:
        where = f"line {line.number}"
        if line.problem is not None:
            return self._bad(line.index, f"row_{line.index}", where, line.problem)
        values = {role: line.fields[place].strip() for role, place in places.items()}
        letters = values.pop("sequence")
        return self._row(line.index, where, values, letters.encode("latin-1", "replace") if letters else None)

    def _columnar(self) -> Iterator[Row]:
        table = Columnar(self.path)
        roles = self._choose(table.columns, "")
        where = f"{self.path}, column {roles['sequence']!r}"
        type_ = fixed_type(table.types[roles["sequence"]], table.values(roles["sequence"]))
        shape = list_shape(type_)
        if shape is None and not _is_text(type_):
            raise UserError(f"{where} is {type_}; expected text, or one-hot or codes as lists of numbers")
        axes = shape and axes_of((0, *shape), kind_of(type_), self._axes, where)
        if axes:
            self.description["axes"] = axes
            self.description["notes"].append(
                f"{self.path.name}: lists of {roles['sequence']!r} read as {READ_AS[axes]}"
            )
        index = 0
        for batch in table.batches(list(roles.values())):
            others = {role: batch.column(name).to_pylist() for role, name in roles.items() if role != "sequence"}
            given = batch.column(roles["sequence"])
            sequences = numbers(fixed(given, type_, where), shape, axes, where) if shape and axes else _letters(given)
            for i, sequence in enumerate(sequences):
                values = {role: "" if column[i] is None else str(column[i]).strip() for role, column in others.items()}
                yield self._row(index, "", values, sequence)
                index += 1
        if index == 0:
            raise UserError(f"{self.path} holds no rows")

    def _row(self, index: int, where: str, values: Mapping[str, str], sequence: bytes | Decoded | None) -> Row:
        """A row from its letters or codes, if any, and the values of the other columns, by role."""
        name = values.get("name", "")
        label = name or f"row_{index}"
        try:
            if not sequence:
                raise ValueError("it has no sequence")
            codes = sequence.codes if isinstance(sequence, Decoded) else encode(sequence)
            chrom, start, end, strand = _locus(values, len(codes)) or locus_of(name, len(codes))
            strand = _strand(values, strand)
        except ValueError as error:
            return self._bad(index, label, where, str(error))
        if chrom and not name:
            label = f"{chrom}:{start}-{end}"
        return Row(index, codes, None, label, chrom, start, end, strand)

    def _bad(self, index: int, label: str, where: str, problem: str) -> Row:
        place = f"{self.path.name}, {where}" if where else self.path.name
        return Row(index, None, f"row {index} {shown(label)} ({place}): {problem}", label)


def choose(columns: list[str], sequence: str | None, given: Mapping[str, str | None], path: Path) -> dict[str, str]:
    """The column of each role that has one.

    Args:
        columns: names of all columns.
        sequence: `dataset.column`.
        given: `dataset.columns`, by role; NOT_USED leaves a role out.
        path: for errors.

    Raises:
        UserError: no column of a given name, or several; or no column, or several, may be the sequence.
    """
    found = [name for name in columns if name.lower() in SEQUENCE]
    if sequence is None and len(found) != 1:
        why = f"{len(found)} columns may be the sequence" if found else "no column is called sequence or seq"
        raise UserError(
            f"{path}: {why}; its columns are {listed(columns)}: say which with dataset.column=... (the first line "
            f"names them)"
        )
    roles = {"sequence": sequence or found[0]}
    for role, usual in USUAL.items():
        wanted = given.get(role)
        like = [name for name in columns if name.lower() in usual and name != roles["sequence"]]
        if wanted is not None and wanted != NOT_USED:
            roles[role] = wanted
        elif wanted is None and like:
            roles[role] = like[0]
    for role, name in roles.items():
        require_column(name, columns, "dataset.column" if role == "sequence" else f"dataset.columns.{role}", path)
    missing = [role for role in LOCUS if role not in roles]
    if missing and any(given.get(role) not in (None, NOT_USED) for role in LOCUS):
        raise UserError(
            f"{path}: a locus needs chrom, start and end; give dataset.columns.{missing[0]}=..., one of "
            f"{listed(columns)}"
        )
    return {role: name for role, name in roles.items() if not (missing and role in LOCUS)}


def _among(columns: list[str], role: str, name: str) -> str:
    """The column chosen, and others of its usual names."""
    usual = SEQUENCE if role == "sequence" else USUAL[role]
    others = [repr(other) for other in columns if other.lower() in usual and other != name]
    return f"column {name!r}" + (f" (not {' or '.join(others)})" if others else "")


def _locus(values: Mapping[str, str], length: int) -> tuple[str, int, int, str] | None:
    """(chrom, start, end, strand) of a row; None where it has none. Raises ValueError for impossible ones."""
    if "chrom" not in values or not any(values[role] for role in LOCUS):
        return None
    start, end = (_integer(values[role], role) for role in ("start", "end"))
    leave = "; dataset.columns.chrom=none leaves loci out"
    if not values["chrom"]:
        raise ValueError(f"it has a start and no chromosome{leave}")
    if start < 0:
        raise ValueError(f"start {start} is negative; coordinates are 0-based{leave}")
    if end < start:
        raise ValueError(f"end {end} lies before start {start}; for the minus strand use a column 'strand'{leave}")
    if end - start != length:
        hint = "; coordinates are 0-based and half-open" if end - start == length - 1 else ""
        raise ValueError(f"its locus {start}-{end} has {end - start} bases, and its sequence {length}{hint}{leave}")
    return values["chrom"], start, end, "."


def _integer(text: str, role: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(
            f"{role} is {shown(text)}; expected a whole number; dataset.columns.chrom=none leaves loci out"
        )
    return int(text.partition(".")[0])


def _strand(values: Mapping[str, str], otherwise: str) -> str:
    given = values.get("strand", "")
    if given not in _STRANDS:
        raise ValueError(f"strand is {shown(given)}; expected +, - or .; dataset.columns.strand=none leaves it out")
    return _STRANDS[given] if given else otherwise


def _is_text(type_: pa.DataType) -> bool:
    inner = type_.value_type if pa.types.is_dictionary(type_) else type_
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    views = (pa.types.is_string_view, pa.types.is_binary_view)
    return any(test(inner) for test in (*tests, *views))


def _letters(column: pa.Array) -> Iterator[bytes | None]:
    """The sequences of a column of text."""
    binary = column.cast(pa.string() if pa.types.is_dictionary(column.type) else column.type).cast(pa.large_binary())
    return (None if value is None else value.strip() for value in binary.to_pylist())
