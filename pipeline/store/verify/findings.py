"""What reading a store again has shown, for people and for programs."""

import shlex
from dataclasses import dataclass, field
from typing import Any

from pipeline.messages.visible import in_lines


@dataclass(frozen=True)
class Problem:
    """A file that is not what it was, or a value that does not follow from it.

    Attributes:
        key: of the file.
        what: what is wrong, in words.
        shard: index, where the file belongs to one.
        rows: [start, stop) of it.
    """

    key: str
    what: str
    shard: int | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        array = self.key.rpartition("/")[0] or "the group"
        where = (
            array if self.rows is None else f"{array}, shard {self.shard} (rows {self.rows[0]} to {self.rows[1] - 1})"
        )
        return f"{where}: {self.key} {self.what}"


@dataclass
class Findings:
    """What reading a store again has shown.

    Attributes:
        store: its url.
        complete: whether it says that it is.
        is_recorded: whether it is known what its files were when they were committed.
        n_files, n_bytes: read.
        n_shards, n_done: of the run.
        n_sampled: rows whose references were drawn again.
        n_recomputed: rows that the model was run on again.
        largest_error: of these, by the largest value of each row's array.
        problems: what is wrong.
        strays: files that are not the store's.
        not_checked: what was asked for and could not be looked at, and why.
        notes: what else there is to say.
    """

    store: str
    complete: bool = False
    is_recorded: bool = True
    n_files: int = 0
    n_bytes: int = 0
    n_shards: int = 0
    n_done: int = 0
    n_sampled: int = 0
    n_recomputed: int = 0
    largest_error: float = 0.0
    problems: list[Problem] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.problems

    def text(self, repaired: str | None = None) -> str:
        """For people; `repaired` says what was done about it."""
        lines = [f"damaged: {problem}" for problem in self.problems]
        lines += [f"stray: {key} is not a file of the store" for key in self.strays]
        lines += [f"not checked: {what}" for what in self.not_checked]
        lines += [f"note: {note}" for note in self.notes]
        n = len(self.problems)
        state = "" if self.complete else f", not complete: {self.n_done} of {self.n_shards} shards are done"
        verdict = "1 problem" if n == 1 else f"{n} problems" if n else "all as committed"
        if self.not_checked and not n:
            verdict = "the files are as committed, and not all could be checked"
        again = ""
        if self.n_recomputed:
            again = f", {self.n_recomputed} rows computed again (largest difference {self.largest_error:.1e})"
        lines.append(
            f"{self.store}: {self.n_files} files, {self.n_bytes / 1e6:.1f} MB read, references of {self.n_sampled} "
            f"rows drawn again{again}: {verdict}{state}"
        )
        if n:
            advice = (
                f"`dlshap verify --repair {shlex.quote(self.store)}` discards what is damaged, and then the "
                "command that made the store makes it again"
            )
            lines.append(repaired or advice)
        return in_lines(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        problems = [{"file": p.key, "what": p.what, "shard": p.shard, "rows": p.rows} for p in self.problems]
        return {**vars(self), "problems": problems, "sound": self.sound}
