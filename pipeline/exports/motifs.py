"""From a store to motifs and their instances: exports, TF-MoDISco, its page, seqlets on the genome, Fi-NeMo's hits.

    OUT/modisco/         what `dlshap export modisco` writes
    OUT/motifs.h5        of `modisco motifs`
    OUT/report/          of `modisco report`: report.html
    OUT/seqlets.bed      the stretches that the motifs were made of, with their motif
    OUT/finemo/          what `dlshap export finemo` writes
    OUT/hits/            of `finemo call-hits`: hits.bed, hits.tsv
    OUT/logs/            what each tool said
    OUT/motifs.json      what was run: settings, versions, and of each step the command, the files and the time
    OUT/.lock            held by the command that is at work

The tools are the commands that lie beside this Python. A step is recorded when its files are whole; what is recorded
is not made again by the same command. Coordinates are 0-based and half-open.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.analysis.next_steps import Step, named_like
from pipeline.exports import finemo, modisco
from pipeline.exports.files import appearing
from pipeline.exports.selection import Filters, Selection
from pipeline.exports.text import field, lines_of
from pipeline.messages.errors import RunError, UserError, require_extra
from pipeline.messages.progress import LOG, RowProgress
from pipeline.store.backends.local import LocalBackend
from pipeline.store.json_files import parse_object
from pipeline.store.reader import Store

RECORD, LOCK = "motifs.json", ".lock"
TOLD_EVERY_S = 60.0  # that a tool is still at work: some say nothing for minutes
SUFFIX = "_motifs"  # of OUT in a report, behind the store's name
LINKED = ("report/report.html", "seqlets.bed", "hits/hits.bed")  # what a report links to
VERSIONS = ("dlshap", "modisco", "modisco-lite", "finemo", "memelite")
COLUMNS = ("chrom", "start", "end", "motif", "score", "strand", "name", "row", "attribution")
MADE = ("modisco", "motifs.h5", "seqlets.bed", "report", "finemo", "hits")  # by the steps, in order
SIGNS = ("pos_patterns", "neg_patterns")  # groups of the file of motifs
NO_MOTIFS = (
    f"TF-MoDISco found no motif: it needs more than {modisco.MIN_SEQLETS} seqlets of one sign; give it more rows or a "
    "wider --window"
)
NO_HITS = "no hits: Fi-NeMo is not installed; `pip install 'dlshap[motifs]'` adds it, and the same command goes on"


@dataclass(frozen=True)
class Settings:
    """What is asked for; with the store it says what every step gives.

    Attributes:
        target: label of the one that motifs are found for.
        window: bases around the centre that motifs are looked for in.
        max_seqlets: of a sign, at most.
        meme: a file of known motifs, the likeliest of which the page names; "": none. Its content counts, wherever it
            lies.
        hits_window: bases around the centre that Fi-NeMo calls hits in; 0: it is not run.
        filters: which rows.
    """

    target: str
    window: int
    max_seqlets: int
    meme: str
    hits_window: int
    filters: Filters


@dataclass(frozen=True)
class Task:
    """One step: its name, the command that does it alone ("": none does), what it makes within OUT, and how it is
    done, which returns notes."""

    name: str
    command: str
    makes: str
    run: Callable[[], Sequence[str]]


def find_motifs(
    selections: tuple[Selection, Selection], settings: Settings, out: Path, overwrite: bool
) -> dict[str, Any]:
    """Take every step that is not done yet, and return the record, which is in `out`/motifs.json too.

    Args:
        selections: the rows with the windows for motifs, and with those for hits.
        out: the folder.
        overwrite: begin anew.

    Raises:
        UserError: a tool is not installed, or the folder holds the motifs of something else.
        RunError: a tool failed.
    """
    require_extra("motifs", "h5py")
    if not _tool("modisco").is_file():
        raise UserError(f"{_tool('modisco')} is not there; `pip install 'dlshap[motifs]'` adds TF-MoDISco")
    made_of = {"store": _identity(selections[0].store), "settings": asdict(settings) | {"meme": _digest(settings.meme)}}
    record = json.loads(json.dumps(made_of))  # as it is read back
    _read(out, record, overwrite)  # nothing is left in a folder that is refused
    with _locked(out):
        return _go_on(selections, settings, out, record, _read(out, record, overwrite))


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Within this context no other command writes to the folder."""

    def waiting(holder: str) -> None:
        LOG.info(f"waiting for {holder}, which is at work in {out}")

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(LocalBackend(out).lock(LOCK, waiting))
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror or error}; give another folder") from error
        yield


def _go_on(
    selections: tuple[Selection, Selection],
    settings: Settings,
    out: Path,
    record: dict[str, Any],
    before: dict[str, Any],
) -> dict[str, Any]:
    """Take the steps that are not in the record from `before`."""
    more = {"url": selections[0].store.url, "meme": settings.meme, "versions": _versions(), "steps": [], "notes": []}
    record = record | more
    done = {step["name"]: step for step in before.get("steps", [])}
    (out / "logs").mkdir(parents=True, exist_ok=True)
    _write(out / RECORD, record)
    for task in _tasks(selections, settings, out):
        step = done.get(task.name)
        if step is None or step["files"] != _sizes(out, task.makes):
            done.clear()  # what was made of it is old
            _remove(out, MADE[MADE.index(task.makes) :])
            step = _do(task, out)
        record["steps"].append(step)
        _write(out / RECORD, record)
    if not _has_motifs(out / "motifs.h5"):
        record["notes"].append(NO_MOTIFS)
    elif settings.hits_window and not _tool("finemo").is_file():
        record["notes"].append(NO_HITS)
    _write(out / RECORD, record)
    return record


def tiled(store: Store) -> int | None:
    """The bases around the centre of each window that tile the genome together, an even number; None of other inputs,
    whose centres are what they are about."""
    dataset = store.attrs.get("dataset", {})
    if dataset.get("kind") != "tiles":
        return None
    length = int(store.codes.shape[1])
    width = min(int(dataset.get("stride") or length), length)
    return min(width + width % 2, length - length % 2)


def motif_step(store: Store, target: str) -> Step:
    """The command for one target of a store, as a report's next step."""
    out = named_like(store.url, SUFFIX)
    which = f" --target {shlex.quote(target)}" if len(store.targets) > 1 else ""
    command = f"dlshap motifs {shlex.quote(store.url)} {shlex.quote(out)}{which}"
    return Step("motifs, and where they are", command, tuple(f"{out}/{name}" for name in LINKED))


# --- the steps ------------------------------------------------------------------------------------------------------


def _tasks(selections: tuple[Selection, Selection], settings: Settings, out: Path) -> Iterator[Task]:
    """The steps in order; each is asked for when the one before it is done."""
    whole, hits = selections
    pair = ["-s", out / "modisco/ohe.npz", "-a", out / "modisco/attr.npz"]
    motifs, known = out / "motifs.h5", ["-m", settings.meme, "-l"] if settings.meme else []

    def export_modisco() -> Sequence[str]:
        with RowProgress("exporting", None) as progress:
            written = modisco.export(whole, out / "modisco", True, progress.advance)
        return written.notes[1:]  # without what to do next

    def export_finemo() -> Sequence[str]:
        with RowProgress("exporting", None) as progress:
            return finemo.export(hits, out / "finemo", True, progress.advance, "float32").notes

    yield Task("export modisco", _export_command(whole, settings, out / "modisco"), "modisco", export_modisco)
    sizes = ["-w", whole.width, "-n", settings.max_seqlets]
    yield _by_tool("motifs.h5", out, "modisco", "motifs", *pair, *sizes, "-o", motifs)
    if not _has_motifs(motifs):
        return
    yield Task("seqlets", "", "seqlets.bed", partial(_write_seqlets, out))  # at once; the page takes minutes
    yield _by_tool("report", out, "modisco", "report", "-i", motifs, "-o", out / "report", *known)
    if settings.hits_window and _tool("finemo").is_file():
        command = f"{_export_command(hits, settings, out / 'finemo')} --dtype float32"
        yield Task("export finemo", command, "finemo", export_finemo)
        regions = out / "finemo/regions.npz"
        yield _by_tool("hits", out, "finemo", "call-hits", "-r", regions, "-m", motifs, "-o", out / "hits")


def _do(task: Task, out: Path) -> dict[str, Any]:
    """Do a step, and return what is recorded of it."""
    LOG.info(f"{task.name}: {task.command}" if task.command else f"{task.name}: {out / task.makes}")
    begin = time.monotonic()
    notes = list(task.run())
    seconds = round(time.monotonic() - begin, 1)
    files = _sizes(out, task.makes)
    return {"name": task.name, "command": task.command, "files": files, "seconds": seconds, "notes": notes}


def _remove(out: Path, names: Sequence[str]) -> None:
    """What steps made that stopped, or of other settings."""
    for made in (out / name for name in names):
        if made.is_dir():
            shutil.rmtree(made)
        else:
            made.unlink(missing_ok=True)


def _by_tool(makes: str, out: Path, tool: str, command: str, *arguments: Any) -> Task:
    """A step that a command beside this Python does."""
    words = [command, *map(str, arguments)]
    log = out / "logs" / f"{tool}_{command}.txt"

    def run() -> Sequence[str]:
        if code := _exit_code([_tool(tool), *words], log):
            last = (log.read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing"])[-1]
            raise RunError(
                f"{tool} {command} ended with exit code {code}; the last that it said is {last!r}, all of it "
                f"is in {log}; the same command goes on from there"
            )
        return ()

    return Task(f"{tool} {command}", shlex.join([tool, *words]), makes, run)


def _exit_code(command: Sequence[str | Path], log: Path) -> int:
    """Run a command, whose words go to a file. Whatever ends us on the way ends it, and what it has started."""
    with (
        log.open("wb") as said,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # the file has what was said so far
        ) as process,
    ):
        begin = time.monotonic()
        try:
            while True:
                try:
                    return process.wait(TOLD_EVERY_S)
                except subprocess.TimeoutExpired:
                    minutes = (time.monotonic() - begin) / 60
                    LOG.info(f"{Path(command[0]).name}: at work for {minutes:.0f} min; what it says is in {log}")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _tool(name: str) -> Path:
    """A command of this Python's environment."""
    return Path(sys.executable).with_name(name)


def _export_command(selection: Selection, settings: Settings, out: Path) -> str:
    """The command line that writes the same files."""
    filters = settings.filters
    words = ["dlshap", "export", out.name, selection.store.url, str(out)]
    words += ["--target", settings.target, "--window", str(selection.width)]
    words += [word for name in filters.names for word in ("--name", name)]
    words += [word for region in filters.regions for word in ("--region", region)]
    named = {"top": filters.top, "max-rows": filters.max_rows, "seed": filters.seed, "allele": filters.allele}
    return shlex.join([*words, *(word for name, value in named.items() if value for word in (f"--{name}", str(value)))])


# --- seqlets --------------------------------------------------------------------------------------------------------


def _has_motifs(motifs: Path) -> bool:
    import h5py

    with h5py.File(motifs) as file:
        return any(len(file.get(sign, ())) for sign in SIGNS)


def _write_seqlets(out: Path) -> Sequence[str]:
    """A line for each seqlet of each motif, in the order of the genome: columns of a BED, the row, its attribution."""
    rows = [line.split("\t") for _, line in lines_of(out / "modisco/rows.bed", "the exported")]
    store_rows = [line.split("\t")[1] for _, line in lines_of(out / "modisco/rows.tsv", "the exported")][1:]
    lines = []
    for motif, example, start, end, strand, total in _seqlets(out / "motifs.h5"):
        chrom, left, _, name, *_ = rows[example]
        place = int(left) + start, int(left) + end
        lines.append((chrom, *place, motif, 0, strand, name, store_rows[example], f"{total:.6g}"))
    with appearing([out / "seqlets.bed"], overwrite=True) as (hidden,), hidden.open("w", encoding="utf-8") as file:
        file.write("#" + "\t".join(COLUMNS) + "\n")
        file.writelines("\t".join(map(str, line)) + "\n" for line in sorted(lines))
    return ()


def _seqlets(motifs: Path) -> Iterator[tuple[str, int, int, int, str, float]]:
    """Of each seqlet: its motif, the row of the export, [start, end) in the window, the strand that the motif lies on,
    and the attribution of its bases, summed."""
    import h5py

    with h5py.File(motifs) as file:
        for sign in SIGNS:
            for name, pattern in file.get(sign, {}).items():
                seqlets = pattern["seqlets"]
                examples, starts, ends, reverse = (
                    np.asarray(seqlets[key]).tolist() for key in ("example_idx", "start", "end", "is_revcomp")
                )
                totals = np.asarray(seqlets["contrib_scores"], dtype=np.float64).sum(axis=(1, 2)).tolist()
                for example, start, end, turned, total in zip(examples, starts, ends, reverse, totals, strict=True):
                    yield f"{sign}.{name}", example, start, end, "-" if turned else "+", total


# --- the record -----------------------------------------------------------------------------------------------------


def _identity(store: Store) -> str:
    """Equal for stores of equal values: a digest of the checksums of their files."""
    return hashlib.sha256(np.asarray(store["shard_crc32"][:]).tobytes()).hexdigest()


def _digest(path: str) -> str:
    """sha256 of a file's content, in hexadecimal; "" of none."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # one of two names of TF-MoDISco, or not installed
    return found


def _sizes(out: Path, made: str) -> dict[str, int]:
    """The bytes of the file, or of the files of the folder, that a step made."""
    place = out / made
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    return {str(path.relative_to(out)): path.stat().st_size for path in files if path.is_file()}


def _read(out: Path, wanted: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The record of earlier steps; empty where there is none, or to begin anew.

    UserError where it is of another store or other settings, and where a folder with anything in it has none: what lies
    there is not ours to replace.
    """
    path = out / RECORD
    if not path.exists():
        if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
            raise UserError(f"{out} holds files, and no {RECORD} of this command; give a new or an empty folder")
        return {}
    _require_plain(out)
    if overwrite:
        return {}
    try:
        found = parse_object(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}; give --overwrite, or another folder") from error
    for name, whose in (("store", "another store"), ("settings", "other settings")):
        if found.get(name) != wanted[name]:
            raise UserError(
                f"{out} holds the motifs of {whose}: {_difference(found.get(name), wanted[name])}; give another "
                "folder, or --overwrite to make them anew"
            )
    return found


def _require_plain(out: Path) -> None:
    """Raises UserError where a link or a pipe lies in the folder: tools write to what they find there."""
    for folder, folders, names in os.walk(out):
        for path in (Path(folder, name) for name in (*folders, *names)):
            about = path.lstat()
            is_own = stat.S_ISDIR(about.st_mode) or (stat.S_ISREG(about.st_mode) and about.st_nlink == 1)
            if not is_own:
                raise UserError(
                    f"{path} is a link, a pipe, or a file with another name too (a hard link), and would be written "
                    f"through; remove it, or give another folder"
                )


def _difference(found: Any, wanted: Any) -> str:
    """What is not as it was."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return f"{field(found)[:16]} there, {field(wanted)[:16]} here, by the checksums of its files"
    return ", ".join(
        f"{name} {_said(found.get(name))} there, {_said(value)} here"
        for name, value in wanted.items()
        if found.get(name) != value
    )


def _said(value: Any) -> str:
    """Of a digest the beginning."""
    return f"of sha256 {value[:12]}" if isinstance(value, str) and len(value) == 64 else repr(value)


def _write(path: Path, record: dict[str, Any]) -> None:
    with appearing([path], overwrite=True) as (hidden,):
        hidden.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
