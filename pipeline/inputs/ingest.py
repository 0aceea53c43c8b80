"""One pass over the input: every row is checked and hashed, and the good ones are handed on."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dlshap_core.sequences import UNKNOWN
from pipeline import entries
from pipeline.args import Args, arg_names, args_of
from pipeline.config import DatasetConfig, to_dict
from pipeline.errors import UserError
from pipeline.fingerprint import InputFacts, InputHash
from pipeline.progress import note
from pipeline.sources import EXAMPLE_SEQUENCES, FILES, Rows, Source
from pipeline.sources.remarks import Repeats, remarks
from pipeline.sources.text import shown
from pipeline.store import ALLELES, TABLE

N_NAMED = 3  # rows left out that the store names
UNREPEATED = ("tiles", "variants")  # inputs that cannot hold a row twice, or hold each locus twice by design


class Sink(Protocol):
    """Takes the good rows one by one."""

    def append(self, **row: Any) -> None: ...


class Nowhere:
    """Takes rows and keeps none: for a pass that only hashes."""

    def append(self, **row: Any) -> None:
        """Drop it."""


@dataclass
class Intake:
    """What the pass over the input found.

    Attributes:
        n_rows: good rows.
        length: bases in each.
        n_bad: rows that cannot be used.
        problems: of the first few of them.
        base_counts: (4,) int64; how often A, C, G and T occur in the good rows.
        input_hash: over the good rows.
        args: shape and type of each further input of the model, as in the plan.
    """

    n_rows: int = 0
    length: int = 0
    n_bad: int = 0
    problems: list[str] = field(default_factory=list)
    base_counts: np.ndarray = field(default_factory=lambda: np.zeros(UNKNOWN, dtype=np.int64))
    input_hash: InputHash = field(default_factory=InputHash)
    args: list[dict[str, Any]] = field(default_factory=list)

    @property
    def facts(self) -> InputFacts:
        counts = self.base_counts.tolist()
        return InputFacts(self.input_hash.hexdigest(), self.n_rows, self.length, counts, self.input_hash.of_args())

    def reject(self, problem: str) -> None:
        """Count a bad row."""
        self.n_bad += 1
        if len(self.problems) < N_NAMED:
            self.problems.append(problem)


def take_in(
    source: Source,
    dataset: DatasetConfig,
    begin: Callable[[np.ndarray, str, Args], Sink],
    progress: Callable[[int], None],
) -> Intake:
    """Check and hash every row, and hand the good ones on.

    Args:
        source: the input; what it says of itself is completed by what is there twice.
        dataset: `length`, `min_known` and `on_bad` are what a row is judged by.
        begin: called with the codes, the name and the further inputs of the first good row, returns where rows go.
        progress: told the number of rows of each batch.

    Raises:
        UserError: bad rows, unless dataset.on_bad=skip; or no good row at all.
    """
    intake, sink, repeats = Intake(length=dataset.length or 0), None, Repeats()
    for group in _groups(source, rows_per_group(dataset), progress):
        problems = [rows.problem[i] or judge(rows.codes[i], _where(rows, i), intake, dataset) for rows, i in group]
        problem = next(filter(None, problems), None)
        if problem is not None:  # of one of them: none of them can be used
            for own in problems:
                intake.reject(own or problem)
            continue
        for rows, i in group:
            codes, args = rows.codes[i], rows.args_of(i)
            assert codes is not None  # see judge
            if sink is None:
                sink = begin(codes, rows.name[i], args)
                intake.length, intake.args = len(codes), args_of(args)
            row = {name: getattr(rows, name)[i] for name in TABLE}
            intake.input_hash.add(codes, **{**row, **{name: int(row[name]) for name in ("source_row", "start", "end")}})
            intake.input_hash.add_args(args)
            intake.base_counts += np.bincount(codes, minlength=UNKNOWN + 1)[:UNKNOWN]
            if dataset.name not in UNREPEATED:
                repeats.add(row["name"], row["chrom"], int(row["start"]))
            intake.n_rows += 1
            if intake.n_bad == 0 or dataset.on_bad == "skip":
                sink.append(codes=codes, **row, **dict(zip(arg_names(len(args)), args, strict=True)))
    _refuse_bad_rows(intake, dataset, source.description)
    if dataset.name not in UNREPEATED:
        source.description.update(repeats.counts(intake.length))
    for line in remarks(source.description):
        note(line)
    return intake


def rows_per_group(dataset: DatasetConfig) -> int:
    """Rows that follow each other and belong together: the alleles of a variant, or a row by itself."""
    return ALLELES if dataset.name == "variants" else 1


def _groups(source: Source, n: int, progress: Callable[[int], None]) -> Iterator[list[tuple[Rows, int]]]:
    """The rows, n of them at a time, each as a batch and its index in it."""
    group: list[tuple[Rows, int]] = []
    for rows in source.batches():
        for i in range(len(rows)):
            group.append((rows, i))
            if len(group) == n:
                yield group
                group = []
        progress(len(rows))


def first_good(source: Source, dataset: DatasetConfig) -> tuple[np.ndarray, str, Args]:
    """(L,) codes, name and further inputs of the first row that can be used.

    Raises:
        UserError: there is none.
    """
    intake = Intake(length=dataset.length or 0)
    for rows in source.batches():
        for i, codes in enumerate(rows.codes):
            problem = rows.problem[i] or judge(codes, _where(rows, i), intake, dataset)
            if problem is None and codes is not None:
                return codes, rows.name[i], rows.args_of(i)
            intake.reject(problem or f"{_where(rows, i)} has no sequence")
    _refuse_bad_rows(intake, dataset, source.description)
    raise UserError("the input holds no sequences")


def judge(codes: np.ndarray | None, where: str, intake: Intake, dataset: DatasetConfig) -> str | None:
    """Why (L,) codes cannot be used; None if they can."""
    if codes is None or len(codes) == 0:
        return f"{where} has no sequence"
    if intake.length and len(codes) != intake.length:
        if dataset.length:
            return f"{where} has {len(codes)} bases where dataset.length={intake.length}; sequences are not cut"
        return f"{where} has {len(codes)} bases where the first sequence has {intake.length}"
    known = np.count_nonzero(codes != UNKNOWN) / len(codes)
    if known < dataset.min_known or known == 0:
        return f"{where}: {known:.0%} of its bases are known (not N), less than dataset.min_known={dataset.min_known}"
    return None


def _where(rows: Rows, i: int) -> str:
    return f"row {rows.source_row[i]} {shown(rows.name[i])}"


def _refuse_bad_rows(intake: Intake, dataset: DatasetConfig, description: Mapping[str, Any]) -> None:
    if intake.n_bad and (dataset.on_bad == "error" or intake.n_rows == 0):
        total = intake.n_rows + intake.n_bad
        more = f"; and {intake.n_bad - 1} more" if intake.n_bad > 1 else ""
        fix = ". dataset.on_bad=skip leaves them out" if intake.n_rows else ""
        raise UserError(f"{intake.n_bad} of {total} rows cannot be used: {intake.problems[0]}{more}{fix}")
    if intake.n_rows == 0:
        why = "; ".join(["the input holds no sequences", *remarks(description)])
        raise UserError(f"{why}. Lower dataset.min_known?" if description.get("n_unknown") else why)


def signature(dataset: DatasetConfig) -> dict[str, Any] | None:
    """The settings of an input, and size and time of its files: while they are the same, so is the input.

    None where that cannot be told, as of a pipe.
    """
    settings = to_dict(dataset)
    paths = [settings.pop(name) for name in FILES] + [EXAMPLE_SEQUENCES if dataset.name == "example" else None]
    paths += entries.files_of(dataset.args)
    settings["args"] = entries.absolute(dataset.args)
    del settings["timeout_s"]
    files: dict[str, list[Any]] = {}
    for path in paths:
        if path is not None:
            place = Path(path).expanduser().absolute()
            if not (place.is_file() or place.is_dir()):
                return None
            files[str(place)] = _state(place)
    return {"settings": settings, "files": files}


def _state(place: Path) -> list[Any]:
    """Size in bytes and time in nanoseconds of a file; of a folder the number of files and a hash over their states."""
    if place.is_file():
        return [place.stat().st_size, place.stat().st_mtime_ns]
    inside = sorted(item for item in place.rglob("*") if item.is_file())
    digest = hashlib.sha256("".join(f"{item}{_state(item)}\n" for item in inside).encode())
    return [len(inside), digest.hexdigest()]


def known_facts(stored: Mapping[str, Any], dataset: DatasetConfig) -> InputFacts | None:
    """The facts of an input that was read before and has not changed since.

    Args:
        stored: what `to_store` gave then.
        dataset: the input now.
    """
    now = signature(dataset)
    return InputFacts(**stored["facts"]) if now is not None and stored.get("signature") == now else None


def to_store(before: Mapping[str, Any] | None, facts: InputFacts) -> dict[str, Any]:
    """Plain values for the store: the signature from before the pass, and what the pass found."""
    return {"signature": before, "facts": asdict(facts)}
