"""Variants: windows of both alleles, and runs in which they share their references."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

import pipeline
from dlshap_core.references import shuffle_codes
from dlshap_core.sequences import decode
from pipeline.execution.verify import verify
from pipeline.inputs.variants import VariantSource, parse
from pipeline.messages.errors import UserError
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import LENGTH, Inputs, random_sequences

GENOME = random_sequences(1, 400, seed=3)[0]
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def other(base: str) -> str:
    return "ACGT"[("ACGT".index(base) + 1) % 4]


def line(start: int, n_ref: int, alt: str, name: str = ".") -> str:
    """A line of a variant at a 0-based start."""
    return f"chr1\t{start + 1}\t{name}\t{GENOME[start : start + n_ref]}\t{alt}\t.\t.\t.\n"


def files(folder: Path, lines: list[str]) -> tuple[Path, Path]:
    (folder / "genome.fa").write_text(f">chr1\n{GENOME}\n>chr2\nACGT\n")
    (folder / "variants.vcf").write_text(HEADER + "".join(lines))
    return folder / "variants.vcf", folder / "genome.fa"


def windows(folder: Path, lines: list[str]) -> tuple[list[str | None], list[str | None], list[str]]:
    """Sequences, problems and names."""
    (rows,) = VariantSource(*files(folder, lines), LENGTH).batches()
    sequences = [None if codes is None else decode(codes) for codes in rows.codes]
    return sequences, list(rows.problem), list(rows.name)


@pytest.mark.parametrize(
    ("n_ref", "alt"),
    [(1, None), (3, "TTT"), (1, "GATTACA"), (6, "A"), (LENGTH, "C"), (1, "N")],
    ids=["one base", "several", "insertion", "deletion", "long deletion", "unknown"],
)
def test_the_alternate_window_is_the_genome_with_the_allele_put_in(tmp_path: Path, n_ref: int, alt: str | None) -> None:
    start = 100
    alt = other(GENOME[start]) if alt is None else alt
    (ref_window, alt_window), problems, names = windows(tmp_path, [line(start, n_ref, alt, "rs1")])
    edited = GENOME[:start] + alt + GENOME[start + n_ref :]
    first = start - LENGTH // 2
    assert ref_window == GENOME[first : first + LENGTH]
    assert alt_window == edited[first : first + LENGTH]
    assert problems == [None, None]
    assert names == ["rs1:ref", "rs1:alt"]
    assert alt_window[: LENGTH // 2] == ref_window[: LENGTH // 2], "what is left of it keeps its place"


def test_loci_names_and_several_alleles(tmp_path: Path) -> None:
    base = GENOME[60]
    alts = [b for b in "ACGT" if b != base][:2]
    vcf, genome = files(tmp_path, [line(60, 1, ",".join(alts)), line(90, 1, other(GENOME[90]), "rs2")])
    with gzip.open(tmp_path / "variants.vcf.gz", "wb") as file:
        file.write(vcf.read_bytes())
    for path in (vcf, tmp_path / "variants.vcf.gz"):
        (rows,) = VariantSource(path, genome, LENGTH).batches()
        assert rows.name[:4] == [f"chr1:61:{base}>{alt}:{allele}" for alt in alts for allele in ("ref", "alt")]
        assert rows.name[4:] == ["rs2:ref", "rs2:alt"]
        assert list(rows.source_row) == [0, 0, 0, 0, 1, 1]
        assert list(rows.start[:2]) == [60 - LENGTH // 2] * 2
        assert set(rows.end - rows.start) == {LENGTH}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line(100, 1, other(GENOME[100])).replace(GENOME[100], other(other(GENOME[100])), 1), "another build"),
        (line(100, 1, "<DEL>"), r"column 5 \(ALT\) is '<DEL>'"),
        (line(100, 1, "*"), r"column 5 \(ALT\) is '\*'"),
        ("chr1\t0\t.\tA\tC\n", r"column 2 \(POS\) is '0'; expected a whole number from 1 on"),
        ("chr1\t-5\t.\tA\tC\n", r"column 2 \(POS\) is '-5'"),
        ("chr1\t100\t.\t.\tC\n", r"column 4 \(REF\) is '\.'"),
        ("chr1\t100\t.\n", "3 columns; expected CHROM, POS, ID, REF, ALT"),
        (line(5, 1, other(GENOME[5])), "leaves chr1"),
        (line(395, 1, other(GENOME[395])), "leaves chr1"),
        (line(100, 1, GENOME[100].lower()), r"column 5 \(ALT\) is '\w', like column 4 \(REF\)"),
        ("1\t100\t.\tA\tC\n", "no chromosome '1' .*it has 'chr1'"),
    ],
)
def test_variants_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    good = line(200, 1, other(GENOME[200]), "good")
    sequences, problems, names = windows(tmp_path, [text, good])
    assert sequences[:2] == [None, None]
    assert problems[0] == problems[1]
    with pytest.raises(UserError, match=message):
        raise UserError(problems[0])
    assert "(variants.vcf, line 3)" in str(problems[0])
    assert names[2:] == ["good:ref", "good:alt"]


def test_a_symbolic_allele_does_not_take_the_others_of_its_line_along(tmp_path: Path) -> None:
    alt = other(GENOME[100])
    sequences, problems, names = windows(tmp_path, [line(100, 1, f"{alt},<NON_REF>,*", "rs1")])
    assert [problem is None for problem in problems] == [True, True, False, False, False, False]
    assert names[:2] == [f"rs1:{GENOME[100]}>{alt}:ref", f"rs1:{GENOME[100]}>{alt}:alt"]
    assert sequences[0] != sequences[1]


def test_files_that_hold_no_variants(tmp_path: Path) -> None:
    for content, message in [(HEADER, "holds no variants"), ("BCF\2\2stuff", "is BCF; convert it")]:
        vcf, genome = files(tmp_path, [])
        vcf.write_text(content)
        with pytest.raises(UserError, match=message):
            list(VariantSource(vcf, genome, LENGTH).batches())
    assert [variant.alt for variant in parse("1\t5\tx\tA\tC,GG")] == ["C", "GG"]


def overrides(inputs: Inputs, folder: Path, lines: list[str], *more: str) -> list[str]:
    vcf, genome = files(folder, lines)
    kept = [each for each in inputs.overrides(folder / "a.zarr", *more) if not each.startswith("dataset")]
    own = ["dataset=variants", f"dataset.vcf={vcf}", f"dataset.genome={genome}", f"dataset.length={LENGTH}"]
    return [*kept, *own, *(each for each in more if each.startswith("dataset"))]


LINES = [line(start, n, alt, f"v{start}") for start, n, alt in [(60, 1, "ACG"), (90, 2, "T"), (120, 1, "N")]]
LINES += [line(start, 1, other(GENOME[start]), f"v{start}") for start in range(150, 300, 30)]


def test_both_alleles_are_compared_with_the_reference_alleles_shuffles(inputs: Inputs, tmp_path: Path) -> None:
    assert pipeline.run(overrides(inputs, tmp_path, LINES)).rows == 2 * len(LINES)
    store = pipeline.open_store(tmp_path / "a.zarr")
    predictions = np.asarray(store.reference_prediction[:])
    np.testing.assert_allclose(predictions[::2], predictions[1::2], rtol=1e-6)
    checksums = np.asarray(store["reference_checksum"][:])
    np.testing.assert_array_equal(checksums[::2], checksums[1::2])
    for name in ("attribution", "hypothetical", "prediction"):
        values = np.asarray(store[name][:])
        np.testing.assert_array_equal(store[f"{name}_difference"][:], values[1::2] - values[::2])
    assert store["prediction_difference"].shape == (len(LINES), 1)
    references = shuffle_codes(np.asarray(store.codes[2:3]), [0, 1, 2])
    assert zlib.crc32(references[0].tobytes()) == checksums[3]
    findings = verify(RunDirectory(tmp_path / "a.zarr"))
    assert findings.sound, findings.text()
    assert findings.n_sampled == 2 * len(LINES)


def test_a_bad_variant_is_left_out_with_both_alleles(inputs: Inputs, tmp_path: Path) -> None:
    lines = [*LINES[:2], line(5, 1, "A", "edge"), *LINES[2:]]
    with pytest.raises(UserError, match=r"2 of 18 rows cannot be used: row 2 chr1:6 \(variants\.vcf, line 5\)"):
        pipeline.run(overrides(inputs, tmp_path, lines))
    assert pipeline.run(overrides(inputs, tmp_path, lines, "dataset.on_bad=skip")).rows == 2 * len(LINES)
    assert not any("edge" in name for name in pipeline.open_store(tmp_path / "a.zarr").rows["name"])


def test_an_allele_that_is_mostly_unknown_takes_the_other_along(inputs: Inputs, tmp_path: Path) -> None:
    lines = [*LINES, line(310, 1, "N" * LENGTH, "unknown")]
    with pytest.raises(UserError, match=r"2 of 18 rows cannot be used: row 8 'unknown:alt': 50%"):
        pipeline.run(overrides(inputs, tmp_path, lines, "dataset.min_known=0.6"))


def test_alleles_are_never_torn_apart(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"store\.rows_per_shard=5 contradict each other; use an even number"):
        pipeline.run(overrides(inputs, tmp_path, LINES, "store.rows_per_shard=5"))
