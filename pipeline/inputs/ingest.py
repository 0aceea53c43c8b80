"""One pass over the input: every row is checked and hashed, and the good ones go to a sink."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dlshap_core.sequences import UNKNOWN
from pipeline.config import dataset_args, limits
from pipeline.config.schema import DatasetConfig
from pipeline.config.settings import expanded, settings_of
from pipeline.inputs.base import RowBatch, Source
from pipeline.inputs.duplicates import Repeats, input_notes
from pipeline.inputs.facts import InputFacts, InputHash
from pipeline.inputs.form import InputForm
from pipeline.inputs.names import chrom_problem, name_problem
from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG
from pipeline.messages.visible import shown
from pipeline.planning.extra_inputs import ExtraInputs, describe_extra_inputs, extra_input_names
from pipeline.store.schema import TABLE

N_NAMED = 3  # rows left out that the store names


class Sink(Protocol):
    """Takes the good rows one by one."""

    def append(self, **row: Any) -> None: ...


class Nowhere:
    """Takes rows and keeps none: for a pass that only hashes."""

    def append(self, **row: Any) -> None:
        """Drop it."""


@dataclass
class Ingested:
    """What the pass over the input found.

    Attributes:
        n_rows: good rows.
        length: bases in each.
        n_bad: rows that cannot be used.
        problems: of the first few of them.
        base_counts: (4,) int64; how often A, C, G and T occur in the good rows.
        input_hash: over the good rows.
        extra_inputs: shape and type of each extra input of the model, as in the plan.
        of_file: what errors about a row say of its file.
        notes: lines about choices and repeated rows.
        longest_name: characters that a name or a chromosome may have.
    """

    n_rows: int = 0
    length: int = 0
    n_bad: int = 0
    problems: list[str] = field(default_factory=list)
    base_counts: np.ndarray = field(default_factory=lambda: np.zeros(UNKNOWN, dtype=np.int64))
    input_hash: InputHash = field(default_factory=InputHash)
    extra_inputs: list[dict[str, Any]] = field(default_factory=list)
    of_file: str = ""
    notes: list[str] = field(default_factory=list)
    longest_name: int = field(default_factory=lambda: limits.current().name)

    @staticmethod
    def begun(source: Source, dataset: DatasetConfig) -> "Ingested":
        """Nothing yet."""
        files = (source.description.get(key) for key in ("path", "loci", "vcf", "genome"))
        file = next(filter(None, files), None)
        return Ingested(length=dataset.length or 0, of_file=f" ({file})" if file else "")

    @property
    def facts(self) -> InputFacts:
        counts = self.base_counts.tolist()
        return InputFacts(
            self.input_hash.hexdigest(), self.n_rows, self.length, counts, self.input_hash.of_extra_inputs()
        )

    def reject(self, problem: str) -> None:
        """Count a bad row."""
        self.n_bad += 1
        if len(self.problems) < N_NAMED:
            self.problems.append(problem)


def ingest(
    source: Source,
    dataset: DatasetConfig,
    begin: Callable[[np.ndarray, str, ExtraInputs], Sink],
    progress: Callable[[int], None],
) -> Ingested:
    """Check and hash every row, and give the good ones to a sink.

    Args:
        source: the input; the numbers of repeated rows are added to its description.
        dataset: with `length`, `min_known` and `on_bad`.
        begin: called with the codes, the name and the extra inputs of the first good row, returns the sink.
        progress: called with the number of rows of each batch.

    Raises:
        UserError: bad rows, unless dataset.on_bad=skip; or no good row at all.
    """
    found, sink, repeats = Ingested.begun(source, dataset), None, Repeats()
    for group in _groups(source, dataset.rows_per_group, progress):
        problems = [_problem(rows, i, found, dataset) for rows, i in group]
        problem = next(filter(None, problems), None)
        if problem is not None:  # of one row: the whole group is bad
            for own in problems:
                found.reject(own or problem)
            continue
        for rows, i in group:
            codes, extra = rows.codes[i], rows.extra_inputs_of(i)
            assert codes is not None  # see _problem
            if sink is None:
                sink = begin(codes, rows.name[i], extra)
                found.length, found.extra_inputs = len(codes), describe_extra_inputs(extra)
            row = {name: getattr(rows, name)[i] for name in TABLE}
            found.input_hash.add(codes, **{**row, **{name: int(row[name]) for name in ("source_row", "start", "end")}})
            found.input_hash.add_extra_inputs(extra)
            found.base_counts += np.bincount(codes, minlength=UNKNOWN + 1)[:UNKNOWN]
            found.n_rows += 1
            if found.n_bad == 0 or dataset.on_bad == "skip":
                sink.append(codes=codes, **row, **dict(zip(extra_input_names(len(extra)), extra, strict=True)))
        if dataset.has_repeats:
            rows, i = group[0]
            repeats.add(rows.name[i], rows.chrom[i] if len(group) == 1 else "", int(rows.start[i]))
    _refuse_bad_rows(found, dataset, source.description)
    source.description.update(repeats.counts(found.length))
    found.notes = input_notes(source.description)
    for line in found.notes:
        LOG.info(line)
    return found


def _groups(source: Source, n: int, progress: Callable[[int], None]) -> Iterator[list[tuple[RowBatch, int]]]:
    """The rows, n of them at a time, each as a batch and its index in it."""
    group: list[tuple[RowBatch, int]] = []
    for rows in source.batches():
        for i in range(len(rows)):
            group.append((rows, i))
            if len(group) == n:
                yield group
                group = []
        progress(len(rows))


def first_good(source: Source, dataset: DatasetConfig) -> tuple[np.ndarray, str, ExtraInputs]:
    """(L,) codes, name and extra inputs of the first good row. Raises UserError where there is none."""
    found = Ingested.begun(source, dataset)
    for rows in source.batches():
        for i, codes in enumerate(rows.codes):
            problem = _problem(rows, i, found, dataset)
            if problem is None and codes is not None:
                return codes, rows.name[i], rows.extra_inputs_of(i)
            found.reject(str(problem))
    _refuse_bad_rows(found, dataset, source.description)
    raise UserError("the input holds no sequences")


def _problem(rows: RowBatch, i: int, found: Ingested, dataset: DatasetConfig) -> str | None:
    """Why a row cannot be used; None if it can."""
    if rows.problem[i] is not None:
        return rows.problem[i]
    what = _what_is_wrong(rows, i, found, dataset)
    return None if what is None else f"row {rows.source_row[i]} {shown(rows.name[i])}{what}"


def _what_is_wrong(rows: RowBatch, i: int, found: Ingested, dataset: DatasetConfig) -> str | None:
    """What an error says of a row behind its name; None where nothing is wrong."""
    codes, name, chrom = rows.codes[i], rows.name[i], rows.chrom[i]
    if codes is None or len(codes) == 0:
        return " has no sequence"
    if (n_characters := max(len(name), len(chrom))) > found.longest_name:
        return f"{found.of_file} {limits.long_name_problem(n_characters)}"
    if (strange := name_problem(name) or chrom_problem(chrom)) is not None:
        return f"{found.of_file}: {strange}"
    if found.length and len(codes) != found.length:
        if dataset.length:
            return f" has {len(codes)} bases where dataset.length={found.length}; sequences are not cut"
        return f" has {len(codes)} bases where the first sequence has {found.length}"
    if not found.length and (problem := limits.sequence_problem(len(codes))) is not None:
        return f" {problem}"
    known = np.count_nonzero(codes != UNKNOWN) / len(codes)
    if known < dataset.min_known or known == 0:
        return f": {known:.0%} of its bases are known (not N), less than dataset.min_known={dataset.min_known}"
    return None


def _refuse_bad_rows(found: Ingested, dataset: DatasetConfig, description: Mapping[str, Any]) -> None:
    if found.n_bad and (dataset.on_bad == "error" or found.n_rows == 0):
        total = found.n_rows + found.n_bad
        more = f"; and {found.n_bad - 1} more" if found.n_bad > 1 else ""
        fix = ". dataset.on_bad=skip leaves them out" if found.n_rows else ""
        raise UserError(f"{found.n_bad} of {total} rows cannot be used: {found.problems[0]}{more}{fix}")
    if found.n_rows == 0:
        why = "; ".join(["the input holds no sequences", *input_notes(description)])
        raise UserError(f"{why}. Lower dataset.min_known?" if description.get("n_unknown") else why)


def signature(dataset: DatasetConfig) -> dict[str, Any] | None:
    """The settings of an input, and size and times of its files; while they are the same, so is the input. None for a
    pipe."""
    assert isinstance(dataset, InputForm)
    found = settings_and_files(dataset, [*dataset.packaged_files(), *dataset_args.files_of(dataset.args)])
    if found is not None:
        found["settings"] |= {"args": dataset_args.absolute(dataset.args)}
        del found["settings"]["timeout_s"]
    return found


def settings_and_files(config: Any, packaged: Iterable[str | Path] = ()) -> dict[str, Any] | None:
    """The settings of a group that name no file, and the state of each file, by its absolute path; None where the state
    of one of them is not known."""
    settings = list(settings_of(config))
    named = [each.value for each in settings if each.is_file and each.value is not None]
    paths = [expanded(path).absolute() for path in (*named, *packaged)]
    if not all(path.is_file() or path.is_dir() for path in paths):
        return None
    files = {str(path): _state(path) for path in paths}
    return {"settings": {each.key: each.value for each in settings if not each.is_file}, "files": files}


def _state(path: Path) -> list[Any]:
    """Size in bytes and times in nanoseconds of a file; of a folder the number of files and a hash over their states.

    The time of the last change of the file itself counts too: tools may set that of its content back (rsync -t, tar).
    """
    if path.is_file():
        found = path.stat()
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    inside = sorted(item for item in path.rglob("*") if item.is_file())
    digest = hashlib.sha256("".join(f"{item}{_state(item)}\n" for item in inside).encode())
    return [len(inside), digest.hexdigest()]


def known_facts(stored: Mapping[str, Any], dataset: DatasetConfig) -> InputFacts | None:
    """The facts of an input that has not changed since `to_store` gave `stored`; None where it has."""
    now = signature(dataset)
    return InputFacts(**stored["facts"]) if now is not None and stored.get("signature") == now else None


def to_store(before: Mapping[str, Any] | None, facts: InputFacts) -> dict[str, Any]:
    """Plain values for the store: the signature from before the pass, and what the pass found."""
    return {"signature": before, "facts": asdict(facts)}
