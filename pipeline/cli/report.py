"""`dlshap report`: write one page about a store."""

import argparse

from pipeline.cli.parser import INCOMPLETE, STORE, Parser, path_on_disk
from pipeline.cli.stores import open_with_rows
from pipeline.messages import errors
from pipeline.messages.errors import require_extra
from pipeline.messages.progress import RowProgress

HELP = "write one page about a store, with pictures"
DESCRIPTION = """Write one HTML page about a store: what was run, predictions, convergence, sites and k-mers.

The page needs no network and nothing beside it. An existing page is replaced.
"""
PARENTS = (STORE, INCOMPLETE)
FOLDER_FILES = ("matplotlibrc",)  # that Matplotlib would read from the working folder


def add_arguments(parser: Parser) -> None:
    page = path_on_disk(".html", ".htm")
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=page, default="report.html", help="the page (default: report.html)"
    )
    help_ = "a target that gets a section; may be repeated (default: the first four)"
    parser.add_argument("--target", metavar="LABEL", action="append", default=[], help=help_)
    help_ = "a file or folder that the page links to, such as an export; may be repeated. What the page's own commands "
    help_ += "wrote beside it is linked anyway"
    parser.add_argument("--link", metavar="FILE", action="append", default=[], help=help_)


def run(options: argparse.Namespace) -> int:
    require_extra("report", "jinja2", "matplotlib")

    from pipeline.exports.files import appearing
    from pipeline.exports.motifs import motif_step
    from pipeline.exports.registry import export_steps
    from pipeline.exports.selection import target_index
    from pipeline.report.page import N_TARGETS, make_page
    from pipeline.report.steps import links_to, next_steps

    folder = options.out.parent
    store, links = open_with_rows(options), links_to(options.link, folder)
    chosen = [target_index(store, label) for label in dict.fromkeys(options.target)]
    targets = chosen or list(range(min(N_TARGETS, len(store.targets))))
    label = store.targets[targets[0]]
    steps = next_steps(store, label, [motif_step(store, label), *export_steps(store, label)])
    with appearing([options.out], overwrite=True) as (hidden,):
        with RowProgress("reading", None) as progress:
            page = make_page(store, targets, progress.advance, folder, steps, links)
        hidden.write_text(page, encoding="utf-8")
    print(options.out)
    return errors.EXIT_DONE
