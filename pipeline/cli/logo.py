"""`dlshap logo`: draw a sequence of a store as letters to scale."""

import argparse

from pipeline.cli.parser import INCOMPLETE, STORE, Parser, path_on_disk
from pipeline.cli.stores import open_with_rows
from pipeline.messages import errors
from pipeline.messages.errors import require_extra
from pipeline.messages.progress import LOG
from pipeline.messages.words import counted

HELP = "draw a sequence of a store as letters to scale"
DESCRIPTION = """Draw a sequence of a store as letters as high as their attributions: png, svg or pdf.

  dlshap logo example.zarr example_0088 -o site.png --start 100 --end 160
  dlshap logo ctcf.zarr chr1:1,000-1,100 -o site.svg

More than 150 bases are drawn as a track, with the strongest stretches as letters below.

If a region lies in several sequences, the one that covers most of it is drawn; among equals, the one whose centre is
nearest. Coordinates are 0-based, their ends excluded. An existing picture is replaced.
"""
PARENTS = (STORE, INCOMPLETE)
FOLDER_FILES = ("matplotlibrc",)  # that Matplotlib would read from the working folder


def add_arguments(parser: Parser) -> None:
    parser.add_argument("sequence", metavar="NAME|chr1:100-200", help="a sequence by its name, or a region")
    picture = path_on_disk(".png", ".svg", ".pdf")
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=picture, default="logo.png", help="the picture (default: logo.png)"
    )
    parser.add_argument("--target", metavar="LABEL", help="which of the store's targets (default: the only one)")
    parser.add_argument("--start", metavar="N", type=int, help="first base to draw, counted within the sequence from 0")
    parser.add_argument("--end", metavar="N", type=int, help="end of what is drawn, excluded")


def run(options: argparse.Namespace) -> int:
    require_extra("report", "matplotlib")

    from pipeline.exports.files import appearing
    from pipeline.exports.selection import target_index
    from pipeline.report.picture import choose, draw

    store = open_with_rows(options)
    stretch = choose(store, options.sequence, options.start, options.end)
    target = target_index(store, options.target)
    if stretch.n_others:
        LOG.info(f"drawing row {stretch.row}; {counted(stretch.n_others, 'other row')} would fit too")
    with appearing([options.out], overwrite=True) as (hidden,):
        draw(store, stretch, target, hidden, options.out.suffix[1:])
    print(options.out)
    return errors.EXIT_DONE
