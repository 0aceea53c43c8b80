"""Names and chromosomes that would forge columns or lines of tables are refused where they come in."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.schema import DatasetConfig
from pipeline.inputs.base import Source
from pipeline.inputs.fasta import FastaSource
from pipeline.inputs.ingest import Ingested, Nowhere, first_good, ingest
from pipeline.inputs.loci import LociSource
from pipeline.inputs.table import TableSource
from pipeline.inputs.tiles import TileSource
from pipeline.inputs.variants import VariantSource
from pipeline.messages.errors import UserError
from pipeline.messages.visible import is_visible

ACGT = "ACGTACGT"


def read(source: Source, **settings: str) -> Ingested:
    return ingest(source, DatasetConfig(**settings), lambda *first: Nowhere(), lambda n: None)


def table(folder: Path, **columns: list[str]) -> TableSource:
    pq.write_table(pa.table(columns), folder / "t.parquet")
    return TableSource(folder / "t.parquet")


@pytest.mark.parametrize(
    "name", ["a\tb", "a\nchr1\t0\t9", "a\rb", "\x1b[2J", "\x9b31m", "\u202ea", "a\u200bb", "a\u2028b", "a\x00", "a\x7f"]
)
def test_a_name_of_a_table(tmp_path: Path, name: str) -> None:
    names = ["good", f"x{name}y"]
    with pytest.raises(
        UserError, match=r"row 1 'x.*y' \(t\.parquet\): its name is 'x.*y'; expected one without"
    ) as error:
        read(table(tmp_path, sequence=[ACGT, ACGT], name=names))
    assert is_visible(str(error.value))
    found = read(table(tmp_path, sequence=[ACGT, ACGT], name=names), on_bad="skip")
    assert (found.n_rows, found.n_bad) == (1, 1)
    assert first_good(table(tmp_path, sequence=[ACGT, ACGT], name=names[::-1]), DatasetConfig())[1] == "good"


@pytest.mark.parametrize("name", ["Zürich", "配列", "a b", "=1+1", "-x", "[red]", "%s", "N" * 4096])
def test_an_honest_name_of_a_table(tmp_path: Path, name: str) -> None:
    assert read(table(tmp_path, sequence=[ACGT], name=[name])).n_rows == 1


@pytest.mark.parametrize(
    "chrom", ["chr1\tchr9", "chr 1", "chr1\n", "\x1bchr1", "#chr1", "=chr1", "track", "chr1\u2066"]
)
def test_a_chromosome_of_a_table(tmp_path: Path, chrom: str) -> None:
    source = table(
        tmp_path,
        sequence=[ACGT],
        name=["a"],
        chrom=[f"{chrom}x" if chrom == "chr1\n" else chrom],
        start=["0"],
        end=["8"],
    )
    with pytest.raises(
        UserError, match=r"row 0 'a' \(t\.parquet\): its chromosome is '.*'; expected a name such as chr1"
    ):
        read(source)


def test_text_files(tmp_path: Path) -> None:
    for file, text in {
        "x.fa": f">a\x1b[2J\n{ACGT}\n",
        "y.fa": f">c\u202e:0-8\n{ACGT}\n",
        "g.fa": f">c\x1b\n{ACGT}\n",
        "l.bed": "c\x1b\t2\t6\ta\n",
        "n.bed": "c\x1b\t2\t6\ta\u202eb\n",
        "v.vcf": "c\x1b\t5\tx\tA\tC\n",
    }.items():
        (tmp_path / file).write_text(text)
    genome = tmp_path / "g.fa"
    sources = {
        "(x.fa): its name is": FastaSource(tmp_path / "x.fa"),
        "(y.fa): its name is": FastaSource(tmp_path / "y.fa"),
        "(l.bed): its chromosome is": LociSource(tmp_path / "l.bed", genome, 4),
        "(n.bed): its name is": LociSource(tmp_path / "n.bed", genome, 4),
        "(v.vcf): its chromosome is": VariantSource(tmp_path / "v.vcf", genome, 4),
        "(g.fa): its name is": TileSource(genome, 4),
    }
    for text, source in sources.items():
        with pytest.raises(UserError) as error:
            read(source)
        assert text in str(error.value)
        assert is_visible(str(error.value))
