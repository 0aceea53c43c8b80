"""`dataset.args` as it is written: where the values of each extra input of the model come from.

dose                a column of the table, of the loci (by name, or by number from 1), or an array beside the sequences
control.npy         an array with a row for each record; also control.zarr, and of several npz:KEY or zarr:KEY
control.bw          a bigWig track along each window; [plus.bw,minus.bw] are the two strands of one input
score:float         any of the first two, converted to float32; :int converts to int64
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.settings import absolute_path

_FILE = re.compile(r"(?P<path>.+?\.(?:npy|npz|zarr|bw|bigwig))(?::(?P<key>.+))?", re.IGNORECASE)
_TYPED = re.compile(r"(?P<rest>.+):(?P<type>float|int)")
_TYPES = {"float": "float32", "int": "int64"}
EXAMPLES = "a path such as x.npy, x.npz:key or x.zarr:key with a row for each record"


@dataclass(frozen=True)
class ExtraInput:
    """One extra input.

    Attributes:
        text: as it was written.
        name: of a column or an array within the input; "" where the values come from files.
        paths: of an array, of a bigWig, or of those of the plus and the minus strand.
        key: which array of a file.
        dtype: that the values are converted to, where one is given.
    """

    text: str
    name: str = ""
    paths: tuple[str, ...] = ()
    key: str | None = None
    dtype: str | None = None

    @property
    def is_track(self) -> bool:
        """Whether the values are those of bigWigs."""
        return any(map(_is_track, self.paths))


def parse(entry: Any) -> ExtraInput:
    """What an element of `dataset.args` means. Raises ValueError that says what is wrong with it."""
    if isinstance(entry, list):
        paths = [str(path) for path in entry]
        pair = ExtraInput(f"[{','.join(paths)}]", paths=tuple(paths))
        if len(paths) != 2 or not all(map(_is_track, paths)):
            raise ValueError(f"{pair.text} is a list; expected two bigWigs, of the plus and the minus strand")
        return pair
    if isinstance(entry, bool) or not isinstance(entry, str | int):
        raise ValueError(f"{entry} is neither a name nor a path; quote a name that looks like something else")
    text = str(entry)
    typed = _TYPED.fullmatch(text)
    rest, dtype = (typed["rest"], _TYPES[typed["type"]]) if typed else (text, None)
    file = _FILE.fullmatch(rest)
    if file is None:
        return ExtraInput(text, name=rest, dtype=dtype)
    if _is_track(file["path"]) and (file["key"] or dtype):
        raise ValueError(f"{text}: a bigWig has no keys, and its values are float32; leave out what follows its name")
    return ExtraInput(text, paths=(file["path"],), key=file["key"], dtype=dtype)


def _is_track(path: str) -> bool:
    return path.lower().endswith((".bw", ".bigwig"))


def entry_problems(dataset: str, args: Sequence[Any], has_columns: bool, is_of_genome: bool) -> Iterator[str]:
    """What is wrong with `dataset.args`, the entries of an input form; looks at no file."""
    for arg in args:
        try:
            entry = parse(arg)
        except ValueError as error:
            yield f"dataset.args: {error}"
            continue
        if not entry.text:
            yield "dataset.args holds an empty name; leave it out"
        elif entry.name and not has_columns:
            yield f"dataset.args: dataset={dataset} has no column or array {entry.name!r}; expected {EXAMPLES}"
        elif entry.is_track and not is_of_genome:
            yield (
                f"dataset.args: {entry.text} is a track of a genome, and dataset={dataset} has no windows of one; use "
                f"dataset=loci, tiles or variants, or {EXAMPLES}"
            )


def files_of(args: Sequence[Any]) -> list[str]:
    """The files and folders that `dataset.args` names."""
    return [path for arg in args for path in parse(arg).paths]


def absolute(args: Sequence[Any]) -> list[Any]:
    """`dataset.args` with the paths of files as they are from anywhere."""
    return [absolute_path(arg) if parse(arg).paths else arg for arg in args]
