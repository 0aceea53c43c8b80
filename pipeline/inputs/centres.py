"""The centre of a locus's window: its summit if the line is narrowPeak by content, else its middle.

narrowPeak's columns 7 to 10 are signalValue, pValue, qValue (numbers) and the summit's offset from the start, -1 for
none; more columns may follow (IDR's output has 20). BED's are thickStart, thickEnd, itemRgb and blockCount, then lists
of blocks. A line that fits both is read like the others of its file; where all fit both, the name of the file decides.
"""

import re
from collections import Counter
from collections.abc import Sequence
from enum import Enum

from pipeline.messages.visible import shown
from pipeline.messages.words import counted

WHOLE = re.compile(r"[+-]?\d{1,18}")  # 18 digits: what fits int64
_MISSING = ("", ".", "na", "nan", "none")  # in lower case
_RGB = re.compile(r"0|\.|\d{1,3},\d{1,3},\d{1,3}")
_N_COLUMNS = 10
_FIX = "; dataset.centre=middle centres all windows on the middles"


class LineKind(Enum):
    """What columns 7 to 10 of a line are."""

    FEW = "not there"
    SUMMIT = "narrowPeak with a summit"
    NO_SUMMIT = "narrowPeak without a summit"
    DAMAGED = "narrowPeak but for column 10"
    BED = "BED"
    BOTH = "narrowPeak or BED"
    OTHER = "neither"


def kind_of(fields: Sequence[str], start: int, end: int) -> LineKind:
    """What the columns of a line from the 7th on are, of a locus [start, end)."""
    if len(fields) < _N_COLUMNS or all(map(_is_missing, fields[6:10])):
        return LineKind.FEW
    are_scores = all(_is_missing(field) or _number(field) is not None for field in fields[6:9])
    peak = _peak_kind(fields[9], end - start) if are_scores else LineKind.OTHER
    if _is_bed(fields, start, end):
        return LineKind.BOTH if peak is LineKind.SUMMIT and len(fields) == _N_COLUMNS else LineKind.BED
    return peak


def _peak_kind(field: str, length: int) -> LineKind:
    """What column 10 is behind three scores."""
    if _is_missing(field) or field == "-1":
        return LineKind.NO_SUMMIT
    if WHOLE.fullmatch(field):
        return LineKind.SUMMIT if 0 <= int(field) < max(length, 1) else LineKind.DAMAGED
    number = _number(field)
    return (
        LineKind.OTHER if number is not None and number % 1 else LineKind.DAMAGED
    )  # a share or a p-value is no summit


def _is_missing(field: str) -> bool:
    return field.lower() in _MISSING


def _number(field: str) -> float | None:
    try:
        return None if "_" in field else float(field)
    except ValueError:
        return None


def _is_bed(fields: Sequence[str], start: int, end: int) -> bool:
    """Whether columns 7 to 9 are a thick part of the locus and a colour, or columns 10 to 12 its blocks."""
    thick = [int(field) for field in fields[6:8] if WHOLE.fullmatch(field)]
    if len(thick) == 2 and start <= thick[0] <= thick[1] <= end and _RGB.fullmatch(fields[8]):
        return True
    if len(fields) < 12 or not WHOLE.fullmatch(fields[9]):
        return False
    sizes, starts = (field.rstrip(",").split(",") for field in fields[10:12])
    if not len(sizes) == len(starts) == int(fields[9]) or not all(WHOLE.fullmatch(part) for part in (*sizes, *starts)):
        return False
    return int(starts[0]) == 0 and int(starts[-1]) + int(sizes[-1]) == end - start


class Centring:
    """What the lines of the file `name` are, all together; `setting` is `dataset.centre`."""

    def __init__(self, name: str, setting: str = "auto") -> None:
        self._name, self._setting = name, setting
        self._kinds: Counter[LineKind] = Counter()

    def clear(self) -> None:
        """Before the file is read again."""
        self._kinds.clear()

    def add(self, fields: Sequence[str]) -> None:
        """Count a line that may be narrowPeak; one with a bad interval is ignored."""
        if len(fields) >= _N_COLUMNS and WHOLE.fullmatch(fields[1]) and WHOLE.fullmatch(fields[2]):
            self._kinds[kind_of(fields, int(fields[1]), int(fields[2]))] += 1

    @property
    def is_narrow_peak(self) -> bool:
        """Whether lines that fit both narrowPeak and BED are read as narrowPeak."""
        kinds = self._kinds
        if kinds[LineKind.SUMMIT] or kinds[LineKind.NO_SUMMIT]:
            return True
        return bool(kinds[LineKind.BOTH]) and not kinds[LineKind.BED] and "narrowpeak" in self._name.lower()

    def centre(self, fields: Sequence[str], start: int, end: int) -> tuple[int, bool]:
        """The centre of a window, and whether it is a summit. Raises ValueError where column 10 should be one."""
        middle = (start + end) // 2
        if self._setting == "middle":
            return middle, False
        if self._setting == "summit":
            return start + _required(fields, end - start), True
        kind = kind_of(fields, start, end)
        if kind is LineKind.SUMMIT or (kind is LineKind.BOTH and self.is_narrow_peak):
            return start + int(fields[9]), True
        if kind is LineKind.DAMAGED:
            raise ValueError(_no_summit(fields[9], end - start) + _FIX)
        if kind is LineKind.OTHER and self.is_narrow_peak:
            raise ValueError(
                f"columns 7 to 10 are {', '.join(map(shown, fields[6:10]))}, and other lines are narrowPeak: expected "
                f"three numbers and the offset of a summit{_FIX}"
            )
        return middle, False

    def note(self, n_summits: int, n_middles: int) -> str:
        """A line about the centres of windows."""
        parts = [counted(n, noun) for n, noun in ((n_summits, "summit"), (n_middles, "middle")) if n]
        line = f"{self._name}: windows centred on {' and '.join(parts) or 'nothing'}"
        has_more = any(self._kinds[kind] for kind in (LineKind.BED, LineKind.BOTH, LineKind.OTHER))
        if self._setting == "auto" and not n_summits and has_more:
            line += "; columns 7 to 10 are not narrowPeak's (dataset.centre=summit takes column 10 all the same)"
        return line


def _required(fields: Sequence[str], length: int) -> int:
    """The summit's offset. Raises ValueError where a line has none."""
    if len(fields) < _N_COLUMNS:
        raise ValueError(f"dataset.centre=summit: no column 10, the line has {counted(len(fields), 'column')}{_FIX}")
    field = fields[9]
    if field == "-1":
        raise ValueError(
            "dataset.centre=summit: column 10 is -1, no summit; dataset.centre=auto takes the middle there"
        )
    if not WHOLE.fullmatch(field) or not 0 <= int(field) < max(length, 1):
        raise ValueError(f"dataset.centre=summit: {_no_summit(field, length)}{_FIX}")
    return int(field)


def _no_summit(field: str, length: int) -> str:
    """Why column 10 is no summit of a locus of so many bases."""
    if not WHOLE.fullmatch(field):
        return f"column 10 (summit offset) is {shown(field)}; expected a whole number"
    if int(field) < 0:
        return f"column 10: summit offset {field} is negative; expected an offset from the start, or -1 for none"
    return f"column 10: summit offset {field} lies beyond the peak, which is {length} long"
