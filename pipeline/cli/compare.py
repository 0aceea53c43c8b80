"""`dlshap compare`: what differs between two stores of the same sequences."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.parser import INCOMPLETE, JSON, STORE, Parser, amount, path_on_disk
from pipeline.cli.stores import open_with_rows
from pipeline.messages import errors
from pipeline.messages.errors import require_extra
from pipeline.messages.progress import RowProgress
from pipeline.messages.visible import brief, in_lines, to_json
from pipeline.messages.words import counted

if TYPE_CHECKING:
    from pipeline.analysis.comparison import Comparison

HELP = "show what differs between two stores of the same sequences"
DESCRIPTION = """Compare two stores of the same sequences: of two models, folds, seeds, cell types or versions.

  dlshap compare one.zarr other.zarr
  dlshap compare k562.zarr hepg2.zarr -o compared.html --tsv rows.tsv
  dlshap compare before.zarr after.zarr --tolerance 1e-5

Shows what was run differently, and for every array whether it has the same bits, or how far its values lie apart. Then
it shows how well the attributions of each sequence agree, which changed most, and which 6-mers gain and lose. The exit
code is 0 where all values have the same bits, or differ by at most --tolerance of the largest one; otherwise 1.
Existing files are replaced.
"""
PARENTS = (STORE, INCOMPLETE, JSON)
FOLDER_FILES = ("matplotlibrc",)  # that Matplotlib would read from the working folder
N_TOLD = 5  # rows, 6-mers and settings in the answer


def add_arguments(parser: Parser) -> None:
    parser.add_argument("other", metavar="OTHER", help="path or URL of the second store")
    help_ = "a target, by its label, or LABEL=LABEL_OF_OTHER; may be repeated (default: those of the same label)"
    parser.add_argument("--target", metavar="LABEL", action="append", default=[], help=help_)
    help_ = "the largest difference for an exit code of 0, as a share of the largest value (default: 0)"
    parser.add_argument("--tolerance", metavar="X", type=amount, default=0.0, help=help_)
    help_ = "write one page with pictures"
    parser.add_argument("-o", "--out", metavar="FILE", type=path_on_disk(".html", ".htm"), help=help_)
    parser.add_argument("--tsv", metavar="FILE", type=path_on_disk(), help="write a table, a line for each row")


def run(options: argparse.Namespace) -> int:
    if options.out is not None:
        require_extra("report", "jinja2", "matplotlib")

    from pipeline.analysis.comparison import compare, pair_targets

    a = open_with_rows(options)
    b = open_with_rows(argparse.Namespace(**{**vars(options), "store": options.other}))
    pairs = pair_targets(a, b, options.target)
    with RowProgress("comparing", None) as progress:
        found = compare(a, b, pairs, progress.advance)
    same = found.identical or found.largest <= options.tolerance
    if options.tsv is not None:
        _write_table(found, options.tsv)
    if options.out is not None:
        _write_page(found, options.out)
    files = [str(path) for path in (options.out, options.tsv) if path is not None]
    answer = {**_to_dict(found), "tolerance": options.tolerance, "same": same, "files": files}
    print(to_json(answer) if options.json else in_lines([*_lines(found, same, options.tolerance), *files]))
    return errors.EXIT_DONE if same else errors.EXIT_FAILED


def _write_page(found: "Comparison", path: Path) -> None:
    from pipeline.exports.files import appearing
    from pipeline.report.comparison import make_comparison_page

    page = make_comparison_page(found)
    with appearing([path], overwrite=True) as (hidden,):
        hidden.write_text(page, encoding="utf-8")


def _write_table(found: "Comparison", path: Path) -> None:
    from pipeline.exports import tsv
    from pipeline.exports.files import appearing

    with appearing([path], overwrite=True) as (hidden,):
        tsv.write(hidden, _columns(found))


def _columns(found: "Comparison") -> Iterator[dict[str, Any]]:
    """The table, a pair of targets after the other."""
    table = found.a.rows
    for target in found.targets:
        rows = target.rows
        n = len(rows)
        yield {
            "row": rows.tolist(),
            **{name: table[name][rows].tolist() for name in ("name", "chrom", "start", "end", "strand")},
            "target": [found.a.targets[target.a]] * n,
            "target_of_other": [found.b.targets[target.b]] * n,
            "prediction": target.prediction[:, 0],
            "prediction_of_other": target.prediction[:, 1],
            "correlation": target.correlation,
            "rms": target.rms[:, 0],
            "rms_of_other": target.rms[:, 1],
            "largest_difference": target.largest,
            "change": target.change,
        }


def _to_dict(found: "Comparison") -> dict[str, Any]:
    """Plain values, for programs."""
    from pipeline.analysis.comparison import QUANTILES

    def number(value: float) -> float | None:
        return value if abs(value) < float("inf") else None

    return {
        "stores": [found.a.url, found.b.url],
        "rows": len(found.rows),
        "identical": found.identical,
        "largest_relative_difference": number(found.largest),
        "settings": found.settings,
        "not_compared": found.not_compared,
        "arrays": [
            {
                "name": array.name,
                "identical": array.identical,
                "largest_values": [array.a.largest, array.b.largest],
                "largest_difference": array.difference.largest,
                "quantiles": {f"{part:g}": number(array.difference.quantile(part)) for part in QUANTILES},
                "not_finite": array.n_not_finite,
            }
            for array in found.arrays
        ],
        "targets": [
            {
                "labels": [found.a.targets[target.a], found.b.targets[target.b]],
                "scale": list(target.scale),
                "correlation": target.correlation_quantiles(),
                "most_changed": [
                    {
                        "row": int(target.rows[place]),
                        "name": str(found.a.rows["name"][target.rows[place]]),
                        "correlation": number(float(target.correlation[place])),
                        "change": float(target.change[place]),
                    }
                    for place in target.most_changed(N_TOLD).tolist()
                ],
                "gained": [[kmer.text, kmer.attribution] for kmer in target.gained],
                "lost": [[kmer.text, kmer.attribution] for kmer in target.lost],
            }
            for target in found.targets
        ],
    }


def _lines(found: "Comparison", same: bool, tolerance: float) -> Iterator[str]:
    """For people."""
    what = "the same bits" if found.identical else f"the same within {tolerance:g}" if same else "different"
    yield f"{counted(len(found.rows), 'row')} compared: {what}"
    more = f"; and {len(found.settings) - N_TOLD} more" if len(found.settings) > N_TOLD else ""
    differ = f"settings differ: {'; '.join(found.settings[:N_TOLD])}{more}"
    yield differ if found.settings else "no setting that values depend on differs"
    for array in found.arrays:
        if array.identical:
            yield f"{array.name}: the same bits"
            continue
        half, most = (array.difference.quantile(part) for part in (0.5, 0.99))
        more = f"; differing values that are not finite: {array.n_not_finite:,}" if array.n_not_finite else ""
        largest = f"{array.a.largest:.3g} and {array.b.largest:.3g}"
        yield (
            f"{array.name}: half of the values differ by at most {half:.2g}, 99% by {most:.2g}, all by "
            f"{array.difference.largest:.2g}; the largest values are {largest}{more}"
        )
    yield from (f"not compared: {reason}" for reason in found.not_compared)
    if found.identical:
        return
    for target in found.targets:
        labels = dict.fromkeys([brief(found.a.target_names[target.a]), brief(found.b.target_names[target.b])])
        yield f"{' and '.join(labels)}:"
        if known := target.correlation_quantiles():
            yield (
                f"  correlation of a sequence's attributions: {known['median']:.3f} (half reach it), "
                f"{known['percentile_10']:.3f} (90% do), {known['lowest']:.3f} (all do)"
            )
        places = target.most_changed(N_TOLD).tolist()
        if places:
            names = [brief(str(found.a.rows["name"][target.rows[place]])) for place in places]
            told = [f"{name} ({target.correlation[p]:.3f})" for name, p in zip(names, places, strict=True)]
            yield f"  changed most (with their correlations): {', '.join(told)}"
        for word, kmers in (("gain", target.gained), ("lose", target.lost)):
            if kmers:
                yield f"  6-mers that {word} in the second: {', '.join(kmer.text for kmer in kmers[:N_TOLD])}"
