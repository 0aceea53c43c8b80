"""What a source says of the choices that its input left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.compose import compose_config
from pipeline.inputs.ingest import Nowhere, ingest
from pipeline.inputs.open import open_source


def notes(*settings: str) -> list[str]:
    """The lines about an input, which are the same when it is read again."""
    dataset = compose_config(list(settings)).dataset
    source = open_source(dataset)
    found = [ingest(source, dataset, lambda *first: Nowhere(), lambda n: None).notes for _ in range(2)]
    assert found[0] == found[1]
    return found[0]


def test_names_that_are_loci(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">chr1:10-14\nACGT\n>chr1:20-24(-)\nACCT\n>chr1:31-34\nAGGT\n>peak\nTTTT\n")
    first, second = notes("dataset=fasta", f"dataset.path={path}")
    assert first == (
        "x.fa: 2 names such as chr1:100-200 read as 0-based loci; the sequences of 1 with (-) are those of the minus "
        "strand"
    )
    assert second.startswith("x.fa: 1 name such as chr1:100-200 not read as loci")
    path.write_text(">a\nACGT\n")
    assert notes("dataset=fasta", f"dataset.path={path}") == []


def test_columns_and_delimiter_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("id;Seq;name;chr;start;stop\na;ACGT;b;chr1;4;8\n")
    assert notes("dataset=table", f"dataset.path={path}") == [
        "x.txt: split at each semicolon; sequence from column 'Seq', name from column 'id' (not 'name'), chrom from "
        "column 'chr', start from column 'start', end from column 'stop'; start is 0-based"
    ]
    path.write_text("sequence\tname\nACGT\tchr1:4-8\n")
    line, more = notes("dataset=table", f"dataset.path={path}")
    assert line == "x.txt: split at each tab; sequence from column 'sequence', name from column 'name'"
    assert more == "x.txt: 1 name such as chr1:100-200 read as 0-based loci"


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((3, 4, 9), "one-hot (N, 4, L)"),
        ((3, 9, 4), "one-hot (N, L, 4)"),
        ((3, 9), "codes (N, L), 0 to 3 for A, C, G, T"),
    ],
)
def test_axes_of_an_array(tmp_path: Path, shape: tuple[int, ...], text: str) -> None:
    codes = np.random.RandomState(0).randint(0, 4, (3, 9))
    one_hot = np.eye(4, dtype=np.int8)[codes]
    values = {(3, 9): codes, (3, 9, 4): one_hot, (3, 4, 9): one_hot.transpose(0, 2, 1)}[shape]
    np.savez(tmp_path / "x.npz", a=values, b=values[:1])
    (note,) = notes("dataset=array", f"dataset.path={tmp_path / 'x.npz'}", "dataset.key=a")
    assert note.startswith(f"x.npz [a]: shape {shape} read as {text}")


def test_types_of_further_inputs(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("sequence,dose,kind\nACGT,1,2\nACCC,2,3\n")
    np.save(tmp_path / "c.npy", np.zeros((2, 3), np.float32))
    found = notes(
        "dataset=table", f"dataset.path={tmp_path / 'x.csv'}", f"dataset.args=[dose,'kind:float',{tmp_path / 'c.npy'}]"
    )
    assert found[-1] == "dataset.args gives dose as int64 (N, 1), c.npy as float32 (N, 3)"


VCF = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n"


def vcf(folder: Path, *lines: str) -> list[str]:
    (folder / "g.fa").write_text(">chr1\n" + "ACGT" * 20 + "\n")
    (folder / "x.vcf").write_text(VCF + "".join(f"{line}\n" for line in lines))
    return [
        "dataset=variants", f"dataset.vcf={folder / 'x.vcf'}", f"dataset.genome={folder / 'g.fa'}", "dataset.length=8"
    ]  # fmt: skip


def test_names_of_variants_that_come_again(tmp_path: Path) -> None:
    settings = vcf(tmp_path, "chr1\t21\trs1\tA\tC", "chr1\t25\trs1\tA\tC", "chr1\t29\trs2\tA\tC,G", "chr1\t41\t.\tA\tC")
    assert notes(*settings) == ["kept although repeated or overlapping: 1 variant with the name of an earlier one"]


def test_a_vcf_that_counts_from_0_is_recognised(tmp_path: Path) -> None:
    dataset = compose_config(vcf(tmp_path, "chr1\t20\trs1\tA\tC", "chr1\t22\trs2\tA\tC")).dataset
    (rows,) = open_source(dataset).batches()
    assert "REF is A and g.fa has T there; the base to the right fits: is POS 0-based?" in str(rows.problem[0])
    assert "is the VCF of another build" in str(rows.problem[2])
