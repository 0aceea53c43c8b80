"""`dlshap export KIND STORE OUT`: rows of a store, for the next tool."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.parser import INCOMPLETE, JSON, STORE, Parser, path_on_disk, whole_number
from pipeline.cli.stores import open_whole
from pipeline.messages import errors
from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG, RowProgress
from pipeline.messages.visible import to_json
from pipeline.messages.words import counted

if TYPE_CHECKING:
    from pipeline.exports.base import Export, Written
    from pipeline.exports.selection import Filters, Selection
    from pipeline.messages.progress import Advance
    from pipeline.store.reader import Store

HELP = "write rows of a store in the format of another tool"
DESCRIPTION = """Write rows of a store in the format of another tool.

  dlshap export modisco ctcf.zarr ctcf_modisco --top 5000
  dlshap export bigwig ctcf.zarr ctcf.bw --region chr1:0-1,000,000

Files appear when they are whole. `dlshap export KIND --help` lists the options of a kind.
"""
PARENTS = ()

_SHIFTED = "behind an insertion or a deletion, positions are not those of the genome"
ALLELES_NOTE = {
    "ref": "rows are the reference alleles of the variants, without the alternate ones",
    "alt": f"rows are the alternate alleles of the variants; {_SHIFTED}",
    "both": f"rows are both alleles of each variant; {_SHIFTED}",
}


def add_arguments(parser: Parser) -> None:
    """A subcommand for each export, with its options."""
    from pipeline.exports.registry import exports

    parser.commands = parser.add_subparsers(title="kinds", metavar="KIND", required=True)
    for export in exports().values():
        kind = parser.commands.add_parser(
            export.name, help=export.help, description=export.help, parents=[STORE, INCOMPLETE, JSON]
        )
        kind.set_defaults(export=export, run=run)
        _add_options(kind, export)


def _add_options(parser: Parser, export: "Export") -> None:
    parser.add_argument("out", metavar="OUT", type=path_on_disk(), help=export.out)
    add_row_options(parser, export.alleles)
    own = parser.add_argument_group("what is written")
    every = "all" if export.every_target else "the only one"
    own.add_argument("--target", metavar="LABEL", help=f"which of the store's targets (default: {every})")
    if export.window is not None:
        help_ = f"bases around the centre (default: {export.window})"
        own.add_argument("--window", metavar="W", type=whole_number(1), help=help_)
    for name, settings in export.options.items():
        own.add_argument(f"--{name.replace('_', '-')}", **settings)
    own.add_argument("--overwrite", action="store_true", help="replace existing files")


def add_row_options(parser: Parser, alleles: Sequence[str]) -> None:
    """Which rows; of variants, where there is more than one way to take them, the default first, also which alleles."""
    rows = parser.add_argument_group("rows; a row must pass all that is given")
    rows.add_argument("--name", metavar="A", action="append", default=[], help="the rows called A; may be repeated")
    rows.add_argument("--names", metavar="FILE", type=Path, help="the rows named in a file, one per line")
    help_ = "rows whose window shares a base with a region, such as chr1 or chr1:100-200 (0-based, the end excluded); "
    rows.add_argument("--region", metavar="CHR:START-END", action="append", default=[], help=help_ + "may be repeated")
    few = rows.add_mutually_exclusive_group()
    help_ = "the N rows with the largest sum of |attribution| in the window"
    few.add_argument("--top", metavar="N", type=whole_number(1), help=help_)
    few.add_argument("--max-rows", metavar="N", type=whole_number(1), help="at most N rows, drawn at random")
    help_ = "seed for rows that are drawn or shuffled (default: 0)"
    rows.add_argument("--seed", metavar="N", type=whole_number(0), default=0, help=help_)
    if len(alleles) > 1:
        help_ = f"which alleles of variants; each is a row of its own (default: {alleles[0]})"
        rows.add_argument("--allele", choices=["ref", "alt", "both"], help=help_)


def run(options: argparse.Namespace) -> int:
    store = open_whole(options)
    with RowProgress("exporting", None) as progress:
        written = _export(store, options, progress.advance)
    if not store.complete:
        n_present, rows = int(store.present.sum()), counted(len(store), "row")
        LOG.info(f"{store.url} is not complete: {n_present} of {rows} are finished, and only these can be exported")
    print(to_json(written.to_dict()) if options.json else written.text())
    return errors.EXIT_DONE


def _export(store: "Store", options: argparse.Namespace, advance: "Advance") -> "Written":
    """Select the rows and write them."""
    export: Export = options.export
    window = getattr(options, "window", None) or export.width(int(store.codes.shape[1]))
    selection, _, allele = selected(store, options, export.alleles, window, export.every_target)
    own = {name: getattr(options, name) for name in export.options}
    written = export.write(selection, options.out, options.overwrite, advance, **own)
    return written if allele is None else replace(written, notes=[*written.notes, ALLELES_NOTE[allele]])


def selected(
    store: "Store",
    options: argparse.Namespace,
    alleles: Sequence[str],
    window: int | None,
    every_target: bool = False,
) -> "tuple[Selection, Filters, str | None]":
    """The rows that the options ask for, by which filters, and the alleles that they are of."""
    from pipeline.exports.selection import Filters, select

    allele = allele_of(store, alleles, getattr(options, "allele", None))
    names = (*options.name, *([] if options.names is None else names_in(options.names)))
    only = None if allele == "both" else allele
    filters = Filters(names, tuple(options.region), options.top, options.max_rows, options.seed, only)
    return select(store, filters, options.target, window, every_target), filters, allele


def allele_of(store: "Store", alleles: Sequence[str], asked: str | None) -> str | None:
    """Which rows of variants an export has: ref, alt or both; None where rows are no variants, or a line is of both."""
    from pipeline.analysis.variant_effects import has_variants

    if has_variants(store.plan):
        return asked or next(iter(alleles), None)
    if asked is not None:
        raise UserError(f"--allele {asked}: the rows of {store.url} are no variants (dataset=variants)")
    return None


def names_in(path: Path) -> list[str]:
    """Names from a file, one a line; of a line with tabs the first column. UserError where none can be read."""
    from pipeline.exports.text import lines_of

    names = [line.partition("\t")[0].strip() for _, line in lines_of(path, "--names")]
    if not any(names):
        raise UserError(f"--names {path} holds no names; expected one a line")
    return [name for name in names if name]
