"""`dlshap export KIND STORE OUT`: rows of a store, for the next tool."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import errors
from pipeline.arguments import Parser
from pipeline.errors import UserError
from pipeline.progress import RowProgress, note
from pipeline.store_commands import open_whole, whole_number
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.exports import Written
    from pipeline.exports.selection import Advance, Filters, Selection
    from pipeline.reader import Store

DESCRIPTION = """Write rows of a store in the format of another tool.

  modisco      OUT/ohe.npz, attr.npz, rows.tsv: TF-MoDISco; rows shuffled, rows.tsv says which is which
  finemo       OUT/regions.npz, regions.narrowPeak: Fi-NeMo; the lines of one are the rows of the other
  chrombpnet   OUT.counts_scores.h5, OUT.interpreted_regions.bed: the layout of ChromBPNet
  bigwig       OUT: the observed base's attribution along the genome; the nearest centre wins where windows overlap
  parquet      OUT: a line for each row: locus, predictions, worst convergence delta, strongest k-mer; of variants a
               line for each: alleles, difference of predictions, where attributions change most
  tsv          OUT: the same as text

  dlshap export modisco ctcf.zarr ctcf_modisco --top 5000
  dlshap export bigwig ctcf.zarr ctcf.bw --region chr1:0-1,000,000

Files appear when they are whole. `dlshap export KIND --help` lists the options of a kind.
"""
KINDS = ("modisco", "finemo", "chrombpnet", "bigwig", "parquet", "tsv")
WINDOWED = {"modisco": 400, "finemo": 1000}  # and the bases of each tool's own default
TABLES = ("parquet", "tsv")  # have a line for a variant, of both alleles
ALLELE = {"modisco": "ref", "finemo": "both", "chrombpnet": "both", "bigwig": "ref"}  # of each variant, if not asked
MEANT_FOR = {
    "modisco": "TF-MoDISco: one-hot sequences and hypothetical attributions around the centres, rows shuffled.",
    "finemo": "Fi-NeMo: regions around the centres, and a narrowPeak whose lines are their rows.",
    "chrombpnet": "The layout of ChromBPNet's own scores: HDF5, and the interpreted regions.",
    "bigwig": "A track of the observed base's attribution; where windows overlap, the nearest centre gives the value.",
    "parquet": "A table with a line for each row, or for each variant.",
    "tsv": "A table as text, with a line for each row, or for each variant.",
}


_SHIFTED = "behind an insertion or a deletion, places are not those of the genome"
SAID_OF_ALLELES = {
    "ref": "rows are the reference alleles of the variants, without the alternate ones",
    "alt": f"rows are the alternate alleles of the variants; {_SHIFTED}",
    "both": f"rows are both alleles of each variant; {_SHIFTED}",
}


def export_command(arguments: Sequence[str]) -> int:
    """`dlshap export`: returns the exit code."""
    parser = Parser("dlshap export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, help=", ".join(KINDS))
    for kind in KINDS:
        _add_options(kinds.add_parser(kind, description=MEANT_FOR[kind]), kind)
    options = parser.parse_args(arguments)

    if "://" in options.out:
        raise UserError(f"{options.out}: exports are written to a disk; give a path")
    store = open_whole(options.store, options.allow_incomplete, options.option)
    if not store.complete:
        present = int(store.present.sum())
        note(f"{store.url} is not complete: {present} of {counted(len(store), 'row')} are there, the rest is left out")
    with RowProgress("exporting", None) as progress:
        result = _export(store, options, progress.advance)
    print(json.dumps(result.to_dict()) if options.json else result.text())
    return errors.EXIT_DONE


def _export(store: "Store", options: argparse.Namespace, advance: "Advance") -> "Written":
    """Select the rows and write them."""
    from pipeline.exports.selection import even, select

    window = getattr(options, "window", None)
    if window is None and options.kind in WINDOWED:
        window = even(int(store.codes.shape[1]), WINDOWED[options.kind])
    every_target = options.kind in TABLES and options.target is None and options.top is None
    target = store.targets[0] if every_target else options.target
    allele = allele_of(store, options.kind, getattr(options, "allele", None))
    selection = select(store, _filters(options, allele), target, window)
    targets = list(range(len(store.targets))) if every_target else [selection.target]
    result = _write(selection, targets, options, advance)
    return replace(result, notes=[*result.notes, *([] if allele is None else [SAID_OF_ALLELES[allele]])])


def allele_of(store: "Store", kind: str, asked: str | None) -> str | None:
    """Which rows of variants an export has: ref, alt or both; None where rows are no variants, or a line is of both.

    Raises:
        UserError: one is asked for, and the rows are no variants.
    """
    from pipeline.variants import has_variants

    if has_variants(store.plan):
        return asked or ALLELE.get(kind)
    if asked is not None:
        raise UserError(f"--allele {asked}: the rows of {store.url} are no variants (dataset=variants)")
    return None


def _write(selection: "Selection", targets: list[int], options: argparse.Namespace, advance: "Advance") -> "Written":
    from pipeline.exports import bigwig, chrombpnet, finemo, modisco, summary, variant_table
    from pipeline.variants import has_variants

    out = Path(options.out)
    if options.kind == "modisco":
        return modisco.export(selection, out, options.seed, options.overwrite, advance)
    if options.kind == "finemo":
        return finemo.export(selection, out, options.dtype, options.overwrite, advance)
    if options.kind == "chrombpnet":
        return chrombpnet.export(selection, out, options.head, options.dtype, options.overwrite, advance)
    if options.kind == "bigwig":
        sizes = None if options.chrom_sizes is None else Path(options.chrom_sizes)
        return bigwig.export(selection, out, sizes, options.overwrite, advance)
    table = variant_table if has_variants(selection.store.plan) else summary
    return table.export(selection, targets, out, options.kind, options.k, options.overwrite, advance)


def _filters(options: argparse.Namespace, allele: str | None) -> "Filters":
    from pipeline.exports.selection import Filters

    names = list(options.name)
    if options.names is not None:
        names += read_names(Path(options.names))
    only = None if allele == "both" else allele
    return Filters(tuple(names), tuple(options.region), options.top, options.max_rows, options.seed, only)


def read_names(path: Path) -> list[str]:
    """Names from a file, one a line; of a line with tabs the first column.

    Raises:
        UserError: there is no such file, it is not UTF-8 text, or no name is in it.
    """
    from pipeline.exports.text import lines_of

    names = [line.partition("\t")[0].strip() for _, line in lines_of(path, "--names")]
    if not any(names):
        raise UserError(f"--names {path} holds no names; expected one a line")
    return [name for name in names if name]


def _add_options(parser: Parser, kind: str) -> None:
    """What an export of this kind understands."""
    parser.add_argument("store", metavar="STORE", help="path or URL of the store")
    parser.add_argument("out", metavar="OUT", help=_out(kind))
    rows = parser.add_argument_group("rows; a row must pass all that is given")
    rows.add_argument("--name", metavar="A", action="append", default=[], help="the rows called A; may be repeated")
    rows.add_argument("--names", metavar="FILE", help="the rows named in a file, one a line")
    rows.add_argument(
        "--region",
        metavar="CHR:START-END",
        action="append",
        default=[],
        help="rows whose window shares a base with a region, such as chr1 or chr1:100-200 (0-based, the end excluded); "
        "may be repeated",
    )
    few = rows.add_mutually_exclusive_group()
    few.add_argument(
        "--top", metavar="N", type=whole_number(1), help="the N with the largest sum of |attribution| in the window"
    )
    few.add_argument("--max-rows", metavar="N", type=whole_number(1), help="at most N, drawn at random")
    rows.add_argument("--seed", metavar="N", type=whole_number(0), default=0, help=_seed(kind))
    if kind in ALLELE and kind != "bigwig":
        help_ = f"of variants these alleles, which are rows of their own (default: {ALLELE[kind]})"
        rows.add_argument("--allele", choices=["ref", "alt", "both"], help=help_)
    rows.add_argument("--allow-incomplete", action="store_true", help="of a store that is not complete, what is there")
    own = parser.add_argument_group("what is written")
    own.add_argument("--target", metavar="LABEL", help=_target(kind))
    if kind in WINDOWED:
        default = WINDOWED[kind]
        own.add_argument(
            "--window", metavar="W", type=whole_number(1), help=f"bases around the centre (default: {default})"
        )
    if kind in ("finemo", "chrombpnet"):
        own.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="default: float16")
    if kind == "chrombpnet":
        own.add_argument("--head", choices=["counts", "profile"], help="in the file's name (default: the model's)")
    if kind == "bigwig":
        own.add_argument("--chrom-sizes", metavar="FILE", help="chromosomes and sizes, such as a .fai")
    if kind in TABLES:
        help_ = "bases of the strongest k-mer, or of a variant's strongest change (default: 10)"
        own.add_argument("--k", metavar="K", type=whole_number(1), default=10, help=help_)
    own.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--json", action="store_true", help="print the answer as a JSON object")
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="of an object store, such as endpoint=...; may be repeated",
    )


def _out(kind: str) -> str:
    return {"modisco": "a folder", "finemo": "a folder", "chrombpnet": "prefix of the files' names"}.get(kind, "a file")


def _target(kind: str) -> str:
    every = "all" if kind in TABLES else "the only one"
    return f"which of the store's targets (default: {every})"


def _seed(kind: str) -> str:
    return f"of --max-rows{' and of the order of rows' if kind == 'modisco' else ''} (default: 0)"
