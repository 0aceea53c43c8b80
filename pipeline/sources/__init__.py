"""Where sequences come from: one module per input form, all giving the same batches of rows."""

from dataclasses import fields
from pathlib import Path

from pipeline.config import DatasetConfig
from pipeline.errors import UserError
from pipeline.sources.arrays import ArraySource
from pipeline.sources.base import Rows, Source
from pipeline.sources.fasta import FastaSource
from pipeline.sources.forms import FORMS, require_form
from pipeline.sources.further import WithArgs
from pipeline.sources.loci import LociSource
from pipeline.sources.patience import PatientSource
from pipeline.sources.table import TableSource
from pipeline.sources.text import require_file, require_place
from pipeline.sources.tiles import TileSource
from pipeline.sources.variants import VariantSource

__all__ = ["Rows", "Source", "open_source"]

EXAMPLE_SEQUENCES = Path(__file__).parent.parent / "example" / "sequences.fa.gz"
FILES = ("path", "loci", "vcf", "genome", "blacklist")  # settings of a dataset that name files


def open_source(dataset: DatasetConfig) -> Source:
    """The source that a dataset configuration describes, read on a thread of its own.

    Raises:
        UserError: a ValueError; a missing or unreadable file, a missing or impossible setting, a file of another form,
            or an input that gives nothing for `timeout_s`.
    """
    given = {name: getattr(dataset, name, None) for name in FILES}
    where = (
        " or ".join(f"dataset.{name}={path}" for name, path in given.items() if path is not None)
        or f"dataset={dataset.name}"
    )
    return PatientSource(lambda: _with_args(dataset), dataset.timeout_s, where)


def _with_args(dataset: DatasetConfig) -> Source:
    source = _open(dataset)
    return WithArgs(source, dataset) if dataset.args else source


def _open(dataset: DatasetConfig) -> Source:
    match dataset.name:
        case "example":
            return FastaSource(EXAMPLE_SEQUENCES)
        case "fasta":
            return FastaSource(_require(dataset))
        case "table":
            columns = {item.name: getattr(dataset.columns, item.name) for item in fields(dataset.columns)}
            return TableSource(_require(dataset), dataset.column, columns, dataset.delimiter, dataset.axes)
        case "array":
            return ArraySource(_require(dataset), dataset.key, dataset.axes)
        case "loci":
            loci, genome = require_file(dataset.loci, "dataset.loci"), require_file(dataset.genome, "dataset.genome")
            return LociSource(loci, genome, _length(dataset), dataset.strand)
        case "variants":
            vcf, genome = require_file(dataset.vcf, "dataset.vcf"), require_file(dataset.genome, "dataset.genome")
            return VariantSource(vcf, genome, _length(dataset))
        case "tiles":
            blacklist = None if dataset.blacklist is None else require_file(dataset.blacklist, "dataset.blacklist")
            genome = require_file(dataset.genome, "dataset.genome")
            return TileSource(genome, _length(dataset), dataset.stride, blacklist, dataset.chroms, dataset.min_known)
    raise UserError(f"dataset.name={dataset.name!r} is not a dataset; expected example or one of {FORMS}")


def _require(dataset: DatasetConfig) -> Path:
    """The file (for arrays, or the folder) at dataset.path, if it is of the form that is asked for."""
    path = require_place(dataset.path, "dataset.path")
    require_form(path, dataset.name)
    return path if dataset.name == "array" else require_file(path, "dataset.path")


def _length(dataset: DatasetConfig) -> int:
    if dataset.length is None or dataset.length < 1:
        raise UserError(
            f"dataset.length={dataset.length}; give the length of a window in bases, as the model expects it"
        )
    return int(dataset.length)
