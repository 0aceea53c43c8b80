"""What is counted and said of an input: rows that are there twice; and the strand of loci."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

import pipeline
from dlshap_core.sequences import decode
from pipeline.config.compose import compose_config
from pipeline.inputs.duplicates import Repeats, input_notes
from pipeline.inputs.ingest import Nowhere, ingest
from pipeline.inputs.loci import LociSource
from pipeline.inputs.open import open_source
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import Inputs, random_sequences, write_fasta

GENOME = ">chr1\nACGTTGCAAGGCTTACGATN\n"


def test_repeats_are_those_that_a_slow_count_finds() -> None:
    generator = random.Random(0)
    for _ in range(50):
        length = generator.randint(1, 9)
        rows = [
            (str(generator.randint(0, 20)), generator.choice(["", "a", "b"]), generator.randint(0, 40))
            for _ in range(20)
        ]
        repeats = Repeats()
        for row in rows:
            repeats.add(*row)
        loci = [row[1:] for row in rows if row[1]]
        near = {
            locus
            for one, other in itertools.permutations(set(loci), 2)
            for locus in [one]
            if one[0] == other[0] and abs(one[1] - other[1]) < length
        }
        assert repeats.counts(length) == {
            "n_same_name": len(rows) - len({row[0] for row in rows}),
            "n_same_locus": len(loci) - len(set(loci)),
            "n_overlapping": len(near),
        }


def test_no_rows_and_no_remarks() -> None:
    assert Repeats().counts(5) == {"n_same_name": 0, "n_same_locus": 0, "n_overlapping": 0}
    assert input_notes(Repeats().counts(5)) == []


def test_what_is_said_of_loci(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dlshap")
    (tmp_path / "g.fa").write_text(GENOME)
    (tmp_path / "l.bed").write_text("chr1\t4\t8\tp\nchr1\t4\t8\tp\nchr1\t6\t10\tq\nchr1\t12\t16\tp\n")
    settings = ["dataset=loci", f"dataset.genome={tmp_path / 'g.fa'}", f"dataset.loci={tmp_path / 'l.bed'}"]
    dataset = compose_config([*settings, "dataset.length=4"]).dataset
    source = open_source(dataset)
    assert ingest(source, dataset, lambda *first: Nowhere(), lambda n: None).n_rows == 4
    counts = {key: value for key, value in source.description.items() if key.startswith("n_")}
    assert counts == {"n_same_name": 2, "n_same_locus": 1, "n_overlapping": 2, "n_summits": 0, "n_middles": 4}
    assert caplog.messages == [
        "l.bed: windows centred on 4 middles",
        "kept although repeated or overlapping: 2 rows with the name of an earlier one, 1 row with the locus "
        "of an earlier one, 2 windows that share bases with other windows",
    ]


def test_rows_that_are_there_twice_are_kept_and_counted_in_the_store(inputs: Inputs, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", random_sequences(4))
    path.write_text(path.read_text().replace(">s2", ">s1").replace(">s3", ">s1"))
    pipeline.run(inputs.overrides(tmp_path / "a.zarr", f"dataset.path={path}"))
    store = pipeline.open_store(tmp_path / "a.zarr")
    assert store.rows["name"].tolist() == ["s0", "s1", "s1", "s1"]
    assert store.attrs["dataset"]["n_same_name"] == 2


@pytest.mark.parametrize(
    ("strand", "expected"),
    [("ignore", ["TTGCA", "TTGCA", "TTGCA"]), ("apply", ["TTGCA", "TGCAA", "TTGCA"])],
)
def test_the_strand_is_applied_on_request(tmp_path: Path, strand: str, expected: list[str]) -> None:
    (tmp_path / "g.fa").write_text(GENOME)
    (tmp_path / "l.bed").write_text("chr1\t3\t8\ta\t0\t+\nchr1\t3\t8\tb\t0\t-\nchr1\t3\t8\tc\t0\t.\n")
    source = LociSource(tmp_path / "l.bed", tmp_path / "g.fa", 5, strand)
    (rows,) = source.batches()
    assert [decode(codes) for codes in rows.codes if codes is not None] == expected
    assert rows.strand == ["+", "-", "."]
    assert rows.start.tolist() == [3, 3, 3]
    assert source.description["strand"] == strand


def test_a_strand_to_apply_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(GENOME)
    (tmp_path / "l.bed").write_text("chr1\t3\t8\ta\t0\t.\nchr1\t3\t8\n")
    with pytest.raises(UserError, match=r"dataset\.strand=apply: no row of \S+l\.bed has \+ or -"):
        list(LociSource(tmp_path / "l.bed", tmp_path / "g.fa", 5, "apply").batches())


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["dataset=table"], ["dataset=table needs dataset.path"]),
        (["dataset=array"], ["dataset=array needs dataset.path"]),
        (["dataset=tiles"], ["dataset=tiles needs dataset.genome"]),
        (["dataset=tiles", "dataset.genome=x", "dataset.length=null"], ["tiles needs dataset.length (the width"]),
        (["dataset=tiles", "dataset.genome=x", "dataset.stride=0"], ["dataset.stride=0; expected a whole number"]),
        (["dataset=tiles", "dataset.genome=x", "dataset.length=0"], ["dataset.length=0; expected a whole number"]),
        (
            ["dataset=tiles", "dataset.genome=x", "dataset.loci=y"],
            ["tiles has no dataset.loci, which belongs to dataset=loci"],
        ),
        (["dataset=tiles", "dataset.genome=x", "dataset.chroms=[a,a]"], ["names a chromosome twice"]),
        (
            ["dataset=tiles", "dataset.genome=x", "dataset.strand=apply"],
            ["tiles and dataset.strand contradict", "=loci"],
        ),
        (
            ["dataset=fasta", "dataset.path=x", "dataset.key=y"],
            ["fasta and dataset.key contradict", "use dataset=array"],
        ),
        (
            ["dataset=fasta", "dataset.path=x", "dataset.columns.name=y"],
            ["fasta and dataset.columns contradict", "=table"],
        ),
        (
            ["dataset=table", "dataset.path=x", "dataset.axes=LN4"],
            ["axes=LN4; expected N4L, NL4 or NL", "did you mean"],
        ),
        (["dataset=table", "dataset.path=x", "dataset.delimiter=','"], ["delimiter=,; expected comma, tab, semicolon"]),
        (["dataset=table", "dataset.path=x", "dataset.columns.nam=y"], ["dataset.columns.nam is not a setting"]),
        (
            ["dataset=array", "dataset.path=x", "dataset.genome=y"],
            ["array has no dataset.genome, which belongs to dataset=loci, tiles or variants; it takes dataset.path"],
        ),
        (
            ["dataset=loci", "dataset.loci=x", "dataset.genome=y", "dataset.strand=aply"],
            ["dataset.strand=aply; expected ignore or apply; did you mean apply?"],
        ),
        (["dataset=tabel", "dataset.path=x"], ["dataset=tabel; expected array, example", "did you mean table?"]),
    ],
)
def test_settings_that_cannot_be(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        compose_config(overrides)
    for part in parts:
        assert part in str(caught.value)
