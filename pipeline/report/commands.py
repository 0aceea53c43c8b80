"""`dlshap report` and `dlshap logo`: a page about a store, and a picture of one of its sequences."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import errors
from pipeline.arguments import Parser
from pipeline.errors import UserError
from pipeline.progress import RowProgress, note
from pipeline.store_commands import open_whole
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.reader import Store

REPORT_DESCRIPTION = """Write one HTML page about a store: what was run, predictions, convergence, sites and k-mers.

The page needs no network and nothing beside it. A page that is there already is replaced.
"""
LOGO_DESCRIPTION = """Draw a sequence of a store as letters as high as their attributions: png, svg or pdf.

  dlshap logo example.zarr example_0088 -o site.png --start 100 --end 160
  dlshap logo ctcf.zarr chr1:1,000-1,100 -o site.svg

Of a region that lies in several sequences, the one is drawn that covers most of it, and then the one whose centre is
nearest. Coordinates are 0-based, their ends excluded. A picture that is there already is replaced.
"""


def report_command(arguments: Sequence[str]) -> int:
    """`dlshap report`: returns the exit code."""
    parser = _parser("report", REPORT_DESCRIPTION)
    parser.add_argument("-o", "--out", metavar="FILE", default="report.html", help="default: report.html")
    parser.add_argument(
        "--target",
        metavar="LABEL",
        action="append",
        default=[],
        help="a target that gets a section; may be repeated (default: the first four)",
    )
    parser.add_argument(
        "--link",
        metavar="FILE",
        action="append",
        default=[],
        help="a file or folder that the page links to, such as an export; may be repeated. What the page's own "
        "commands wrote beside it is linked in any case",
    )
    options = parser.parse_args(arguments)
    out = _require_suffix(options.out, (".html", ".htm"))
    require_extra("report", "jinja2", "matplotlib")

    from pipeline.exports.files import appearing
    from pipeline.exports.selection import target_index
    from pipeline.report.page import N_TARGETS, make_page
    from pipeline.report.steps import links_to

    store, links = _open(options), links_to(options.link, out.parent)
    chosen = [target_index(store, label) for label in dict.fromkeys(options.target)]
    targets = chosen or list(range(min(N_TARGETS, len(store.targets))))
    with appearing([out], overwrite=True) as (hidden,):
        with RowProgress("reading", None) as progress:
            page = make_page(store, targets, progress.advance, out.parent, links)
        hidden.write_text(page, encoding="utf-8")
    print(out)
    return errors.EXIT_DONE


def logo_command(arguments: Sequence[str]) -> int:
    """`dlshap logo`: returns the exit code."""
    parser = _parser("logo", LOGO_DESCRIPTION)
    parser.add_argument("sequence", metavar="NAME|chr1:100-200", help="a sequence by its name, or a region")
    parser.add_argument("-o", "--out", metavar="FILE", default="logo.png", help="default: logo.png")
    parser.add_argument("--target", metavar="LABEL", help="which of the store's targets (default: the only one)")
    parser.add_argument("--start", metavar="N", type=int, help="first base within the sequence, 0-based")
    parser.add_argument("--end", metavar="N", type=int, help="end within the sequence, excluded")
    options = parser.parse_args(arguments)
    out = _require_suffix(options.out, (".png", ".svg", ".pdf"))
    require_extra("report", "matplotlib")

    from pipeline.exports.files import appearing
    from pipeline.exports.selection import target_index
    from pipeline.report.picture import choose, draw

    store = _open(options)
    stretch = choose(store, options.sequence, options.start, options.end)
    target = target_index(store, options.target)
    if stretch.n_others:
        note(f"{counted(stretch.n_others, 'other row')} would do; drawn is row {stretch.row}")
    with appearing([out], overwrite=True) as (hidden,):
        draw(store, stretch, target, hidden, out.suffix[1:])
    print(out)
    return errors.EXIT_DONE


def _parser(command: str, description: str) -> Parser:
    parser = Parser(f"dlshap {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", metavar="STORE", help="path or URL of the store")
    parser.add_argument(
        "--allow-incomplete", action="store_true", help="of a store that is not complete, what is there"
    )
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="of an object store, such as endpoint=...; may be repeated",
    )
    return parser


def _open(options: argparse.Namespace) -> "Store":
    """The store, which has one row at least."""
    store = open_whole(options.store, options.allow_incomplete, options.option)
    if not store.present.any():
        raise UserError(f"{store.url} is not complete, and none of its {counted(len(store), 'row')} is there yet")
    return store


def _require_suffix(path: str, suffixes: Sequence[str]) -> Path:
    """A file to write, on a disk."""
    if "://" in path:
        raise UserError(f"-o {path}: it is written to a disk; give a path")
    if Path(path).suffix not in suffixes:
        raise UserError(f"-o {path}: expected a name that ends with {', '.join(suffixes)}")
    return Path(path)


def require_extra(extra: str, *modules: str) -> None:
    """Raises UserError when a library is not installed, naming the extra that brings it."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name or module} is not installed; `pip install 'dlshap[{extra}]'` adds it"
            ) from None
