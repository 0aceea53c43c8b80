"""What to do with a store after its report, and links to what has been done already."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pipeline.analysis.next_steps import Step, named_like
from pipeline.messages.errors import UserError
from pipeline.store.reader import Store


@dataclass(frozen=True)
class Link:
    """A file that the page links to: its name as it is shown, and its address from the page's folder."""

    text: str
    address: str


def next_steps(store: Store, target: str, exports: Iterable[Step]) -> list[Step]:
    """What to do next with one target of a store: `exports` and what follows them, a picture, a check."""
    place, picture = shlex.quote(store.url), named_like(store.url, ".png")
    which = f" --target {shlex.quote(target)}" if len(store.targets) > 1 else ""
    first = str(store.rows["name"][int(store.present.argmax())])
    options = f"-o {shlex.quote(picture)}{which}{' --' if first.startswith('-') else ''}"
    logo = f"dlshap logo {place} {options} {shlex.quote(first)}"
    return [
        *exports,
        Step("a picture of one sequence", logo, (picture,)),
        Step("read every byte again", f"dlshap verify {place}"),
    ]


def links_of(step: Step, folder: Path) -> list[Link]:
    """Links to the files of a step that exist beside the page in `folder`."""
    return [_link(file, folder / file, folder) for file in step.files if (folder / file).is_file()]


def links_to(paths: Iterable[str], folder: Path) -> list[Link]:
    """Links to files or folders from a page in `folder`; UserError where one does not exist."""
    links = []
    for path in paths:
        if not Path(path).exists():
            raise UserError(f"--link {path}: no such file or folder")
        links.append(_link(path, Path(path), folder))
    return links


def _link(text: str, path: Path, folder: Path) -> Link:
    return Link(text, "./" + quote(os.path.relpath(path.absolute(), folder.absolute())))
