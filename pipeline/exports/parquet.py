"""The table as Parquet."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.base import Export
from pipeline.exports.tables import K_OPTION, Columns, export


def write(path: Path, blocks: Iterator[Columns]) -> None:
    """A Parquet file whose columns have the types of the first rows."""
    first = pa.table(next(blocks))
    with pq.ParquetWriter(path, first.schema) as file:
        for table in itertools.chain([first], map(pa.table, blocks)):
            file.write_table(table)


EXPORT = Export(
    name="parquet",
    help="a table with a line for each row: locus, predictions, worst convergence delta, strongest k-mer; of variants "
    "a line for each: alleles, difference of predictions, where attributions change most",
    write=partial(export, write),
    options=K_OPTION,
    every_target=True,
)
