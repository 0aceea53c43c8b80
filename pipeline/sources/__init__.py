"""Where sequences come from: one module per input form, all giving the same batches of rows."""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.sources.base import Rows, Source
from pipeline.sources.fasta import FastaSource
from pipeline.sources.loci import LociSource
from pipeline.sources.patience import PatientSource
from pipeline.sources.text import require_file

__all__ = ["Rows", "Source", "open_source"]

EXAMPLE_SEQUENCES = Path(__file__).parent.parent / "example" / "sequences.fa.gz"


def open_source(dataset: Any) -> Source:
    """The source that a dataset configuration describes, read on a thread of its own.

    Args:
        dataset: has `name` (example, fasta or loci) and `timeout_s` (seconds); for fasta `path`; for loci `loci`,
            `genome` and `length` (bases).

    Raises:
        UserError: a ValueError; a missing or unreadable file, a missing or impossible setting, or an input that gives
            nothing for `timeout_s`.
    """
    names = [name for name in ("path", "loci", "genome") if getattr(dataset, name, None) is not None]
    where = " or ".join(f"dataset.{name}={getattr(dataset, name)}" for name in names) or f"dataset={dataset.name}"
    return PatientSource(lambda: _open(dataset), dataset.timeout_s, where)


def _open(dataset: Any) -> Source:
    if dataset.name == "example":
        return FastaSource(require_file(getattr(dataset, "path", None) or EXAMPLE_SEQUENCES, "dataset.path"))
    if dataset.name == "fasta":
        return FastaSource(require_file(dataset.path, "dataset.path"))
    if dataset.name == "loci":
        length = dataset.length
        if length is None or length < 1:
            raise UserError(f"dataset.length={length}; give the length of a window in bases, as the model expects it")
        loci = require_file(dataset.loci, "dataset.loci")
        return LociSource(loci, require_file(dataset.genome, "dataset.genome"), int(length))
    raise UserError(f"dataset.name={dataset.name!r} is not a dataset; expected example, fasta or loci")
