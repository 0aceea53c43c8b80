"""What an export is, and what it gives back.

Every export reads blocks of rows and writes them, so that memory does not grow with the store (but for its row table);
coordinates are 0-based and half-open, and the centre of L bases is base L // 2. What goes to a tool that knows of the
genome is in the forward frame: rows that were reverse-complemented for the run are turned back. Tables hold the
sequences as they were attributed.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Concatenate

from pipeline.analysis.next_steps import Step, named_like
from pipeline.exports.selection import Selection
from pipeline.messages.progress import Advance
from pipeline.messages.visible import in_lines
from pipeline.messages.words import counted
from pipeline.store.reader import Store


@dataclass(frozen=True)
class Written:
    """What an export has written.

    Attributes:
        files: their paths.
        rows: of the store that are in them.
        notes: what the person should know of, a line each.
    """

    files: Sequence[Path]
    rows: int
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {**asdict(self), "files": [str(path) for path in self.files]}

    def text(self) -> str:
        """For people."""
        files = ", ".join(str(path) for path in self.files)
        return in_lines([f"{counted(self.rows, 'row')} in {files}", *self.notes])


@dataclass(frozen=True)
class Export:
    """One format that rows of a store are written in.

    A module of this package that holds one as EXPORT adds it, and so does an entry point of the group `dlshap.exports`
    of any installed package.

    Attributes:
        name: as in `dlshap export NAME STORE OUT`.
        help: the tool that reads it, and what is written.
        write: called with the rows, OUT, `overwrite` (replace existing files), `advance` (told of rows that are done)
            and the `options` by name. It writes to hidden files: `files.appearing`.
        out: what OUT is.
        options: those of its own: each a parameter of `write`, with the arguments that argparse's add_argument takes.
        window: how many bases around the centre are written by default; None: whole sequences, and no --window.
        alleles: which rows of variants can be written ("ref", "alt", "both"), the default first; none: rows of both
            alleles are always needed.
        every_target: whether all targets are written unless one is named.
        purpose: what it is for, as a report's next step; "": it is none.
        suffix: of OUT there, behind the store's name.
        files: of the folder OUT; none: OUT is the file.
        needs_loci: whether it is a next step only where every row has a locus; `write` refuses other stores itself.
    """

    name: str
    help: str
    write: Callable[Concatenate[Selection, Path, bool, Advance, ...], Written]
    out: str = "a file"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    window: int | None = None
    alleles: tuple[str, ...] = ()
    every_target: bool = False
    purpose: str = ""
    suffix: str = ""
    files: tuple[str, ...] = ()
    needs_loci: bool = False

    def width(self, length: int) -> int | None:
        """The default window for sequences of `length` bases: an even number; None: whole sequences."""
        return None if self.window is None else min(self.window, length) // 2 * 2

    def steps(self, store: Store, target: str) -> list[Step]:
        """This export of one target of a store; none where it is not for that store."""
        if not self.purpose or (self.needs_loci and (store.rows["start"] < 0).any()):
            return []
        out = named_like(store.url, self.suffix)
        which = f" --target {shlex.quote(target)}" if len(store.targets) > 1 and not self.every_target else ""
        command = f"dlshap export {self.name} {shlex.quote(store.url)} {shlex.quote(out)}{which}"
        files = tuple(f"{out}/{file}" for file in self.files) or (out,)
        return [Step(self.purpose, command, files)]
