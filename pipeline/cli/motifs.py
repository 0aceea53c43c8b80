"""`dlshap motifs STORE OUT`: from a store to motifs, a page of them, and where they are."""

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.cli.export import ALLELES_NOTE, add_row_options, selected
from pipeline.cli.parser import JSON, STORE, Parser, path_on_disk, whole_number
from pipeline.cli.stores import open_whole
from pipeline.messages import errors
from pipeline.messages.visible import in_lines, to_json

HELP = "find motifs in a store, and where they are on the genome"
DESCRIPTION = """Find the motifs of a store with TF-MoDISco, and their instances.

  dlshap motifs ctcf.zarr ctcf_motifs

Writes OUT/report/report.html (the motifs), OUT/seqlets.bed (the stretches that they were made of, on the genome) and,
where Fi-NeMo is installed, OUT/hits/hits.bed (every instance). OUT/motifs.json has the command of each step, which can
be run alone. A command that was stopped goes on where it was. To see the instances in a genome browser:

  dlshap export hub ctcf.zarr ctcf_hub --motifs ctcf_motifs
"""
PARENTS = (STORE, JSON)
ALLELES = ("ref", "alt", "both")
WINDOW, HITS_WINDOW = 400, 1000  # the tools' own defaults


def add_arguments(parser: Parser) -> None:
    parser.set_defaults(allow_incomplete=False)
    parser.add_argument("out", metavar="OUT", type=path_on_disk(), help="a folder")
    add_row_options(parser, ALLELES)
    own = parser.add_argument_group("motifs")
    own.add_argument("--target", metavar="LABEL", help="which of the store's targets (default: the only one)")
    help_ = f"bases around the centre in which motifs are sought (default: {WINDOW}; of tiles, all of the genome)"
    own.add_argument("--window", metavar="W", type=whole_number(2), help=help_)
    help_ = "most seqlets of each sign (default: 2000); time grows faster than their number"
    own.add_argument("--max-seqlets", metavar="N", type=whole_number(1), default=2000, help=help_)
    help_ = "known motifs in MEME's format: the page names the likeliest of them for each motif"
    own.add_argument("--meme", metavar="FILE", type=Path, help=help_)
    help_ = f"bases around the centre in which Fi-NeMo calls hits (default: {HITS_WINDOW}; of tiles, all of the genome)"
    own.add_argument("--hits-window", metavar="W", type=whole_number(2), help=help_)
    own.add_argument("--no-hits", action="store_true", help="do not call hits, even if Fi-NeMo is installed")
    own.add_argument("--overwrite", action="store_true", help="start again even if OUT holds motifs")


def run(options: argparse.Namespace) -> int:
    from pipeline.exports.motifs import LINKED, RECORD, Settings, find_motifs, tiled
    from pipeline.exports.selection import require_even
    from pipeline.exports.seqlets import read_motifs
    from pipeline.store.windows import centred

    store = open_whole(options)
    length = int(store.codes.shape[1])
    tiles = tiled(store)
    window = options.window or tiles or min(WINDOW, length // 2 * 2)
    hits_window = options.hits_window or tiles or min(HITS_WINDOW, length // 2 * 2)
    require_even(window, "TF-MoDISco")
    require_even(hits_window, "Fi-NeMo", "--hits-window")
    selection, filters, allele = selected(store, options, ALLELES, window)
    if options.meme is not None:
        read_motifs(options.meme)  # what is wrong with it is told before an hour of work
    settings = Settings(
        store.targets[selection.target],
        window,
        options.max_seqlets,
        "" if options.meme is None else str(options.meme),
        0 if options.no_hits else hits_window,
        filters,
    )
    of_hits = replace(selection, window=centred(length, hits_window))
    record = find_motifs((selection, of_hits), settings, options.out, options.overwrite)
    files = [str(options.out / name) for name in (*LINKED, RECORD) if (options.out / name).is_file()]
    notes = [note for step in record["steps"] for note in step["notes"]] + record["notes"]
    notes += [] if allele is None else [ALLELES_NOTE[allele]]
    print(to_json(record) if options.json else in_lines([*files, *notes]))
    return errors.EXIT_DONE
