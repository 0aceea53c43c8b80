"""What to do with a store after its report, and links to what has been done already."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import quote

from pipeline.errors import UserError
from pipeline.export_command import WINDOWED
from pipeline.exports.selection import even
from pipeline.reader import Store
from pipeline.variants import has_variants


@dataclass(frozen=True)
class Step:
    """What for, the command line, and the files that it writes, beside the page if it is run there."""

    purpose: str
    command: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Link:
    """A file that the page links to: its name as it is shown, and its address from the page's folder."""

    text: str
    address: str


def next_steps(store: Store, target: str) -> list[Step]:
    """Exports and what follows them, for one target of a store."""
    place, name = shlex.quote(store.url), PurePath(store.url).stem or "out"
    which = f" --target {shlex.quote(target)}" if len(store.targets) > 1 else ""
    stem, first = shlex.quote(name), shlex.quote(str(store.rows["name"][int(store.present.argmax())]))
    rows = "variants" if has_variants(store.plan) else "rows"
    window = even(int(store.codes.shape[1]), WINDOWED["modisco"])
    pair, motifs = f"-s {stem}_modisco/ohe.npz -a {stem}_modisco/attr.npz", f"{stem}_motifs.h5"
    located = [
        Step(
            "files for Fi-NeMo",
            f"dlshap export finemo {place} {stem}_finemo{which}",
            (f"{name}_finemo/regions.npz", f"{name}_finemo/regions.narrowPeak"),
        ),
        Step("a track for a genome browser", f"dlshap export bigwig {place} {stem}.bw{which}", (f"{name}.bw",)),
    ]
    return [
        Step(
            "files for TF-MoDISco",
            f"dlshap export modisco {place} {stem}_modisco{which}",
            tuple(f"{name}_modisco/{file}" for file in ("ohe.npz", "attr.npz", "rows.tsv")),
        ),
        Step("motifs from them", f"modisco motifs {pair} -w {window} -n 2000 -o {motifs}", (f"{name}_motifs.h5",)),
        Step("a page of the motifs", f"modisco report -i {motifs} -o {stem}_motifs", (f"{name}_motifs/report.html",)),
        *(located if (store.rows["start"] >= 0).all() else []),
        Step(f"a table of all {rows}", f"dlshap export tsv {place} {stem}.tsv", (f"{name}.tsv",)),
        Step("a picture of one sequence", f"dlshap logo {place} {first} -o {stem}.png{which}", (f"{name}.png",)),
        Step("read every byte again", f"dlshap verify {place}"),
    ]


def links_of(step: Step, folder: Path) -> list[Link]:
    """Those of the files of a step that are there, beside the page in `folder`."""
    return [_link(file, folder / file, folder) for file in step.files if (folder / file).is_file()]


def links_to(paths: Iterable[str], folder: Path) -> list[Link]:
    """Links to files or folders from a page in `folder`.

    Raises:
        UserError: one of them is not there.
    """
    given = list(paths)
    for path in given:
        if not Path(path).exists():
            raise UserError(f"--link {path}: no such file or folder")
    return [_link(path, Path(path), folder) for path in given]


def _link(text: str, path: Path, folder: Path) -> Link:
    return Link(text, "./" + quote(os.path.relpath(path.absolute(), folder.absolute())))
