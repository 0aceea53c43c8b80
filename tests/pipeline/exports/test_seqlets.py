"""Seqlets: those of tangermeme's caller, where they are on the genome, and the motif that memelite finds nearest."""

from __future__ import annotations

import csv
import itertools
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dlshap_core.sequences import decode, encode, reverse_complement, reverse_complement_text
from pipeline.cli.main import dispatch
from pipeline.exports.files import in_blocks
from pipeline.exports.seqlets import COLUMNS, MOTIF_COLUMNS, Seqlets, _overlapping, _tails
from pipeline.store.reader import Store
from tests.pipeline.exports.stores import make_store, random_codes

MOTIF = "GATTACAGC"
N, STRANDS = 12, ["+", "-", "."] * 4
SITES = {0: (7, "+"), 1: (3, "-"), 4: (30, "+"), 7: (19, "-")}  # row: start in the forward frame, strand
LOW = (9, 12)  # a row, and where 8 bases hold it down


def planted(path: Path, length: int) -> Store:
    """Rows on both strands with noise, but for some sites of a motif and one stretch of negative attributions."""
    codes, values = random_codes(N, length), np.random.default_rng(4).normal(scale=0.01, size=(N, 2, length))
    for row, (start, strand) in SITES.items():
        text = MOTIF if strand == "+" else reverse_complement_text(MOTIF)
        codes[row, start : start + len(MOTIF)] = encode(text.encode())
        values[row, 1, start : start + len(MOTIF)] += 0.5
    values[LOW[0], 1, LOW[1] : LOW[1] + 8] -= 0.5
    for row in np.flatnonzero(np.array(STRANDS) == "-"):  # as a run on the minus strand holds them
        codes[row], values[row] = reverse_complement(codes[row : row + 1])[0], values[row, :, ::-1]
    one_hot = codes[:, None, None, :] == np.arange(4)[:, None]
    loci = [("chr2" if row % 2 else "chr10", 1000 + 100 * row) for row in range(N)]
    names = [f"peak {row}" for row in range(N)]
    settings = {"kind": "loci", "strand": "apply"}
    hypothetical = values[:, :, None] * one_hot
    return make_store(path, codes, loci, names, STRANDS, (0, 7), hypothetical=hypothetical, source=settings)


def meme(path: Path) -> Path:
    """Random motifs, and among them the planted one."""
    generator = np.random.default_rng(1)
    matrices = {f"M{i} other": generator.dirichlet([0.3] * 4, 10) for i in range(30)}
    matrices["M30 planted"] = 0.01 + 0.96 * (np.array(list(MOTIF))[:, None] == np.array(list("ACGT")))
    lines = ["MEME version 4", "", "ALPHABET= ACGT", ""]
    for name, matrix in matrices.items():
        lines += [f"MOTIF {name}", f"letter-probability matrix: alength= 4 w= {len(matrix)} nsites= 20 E= 0"]
        lines += [" ".join(f"{value:.6f}" for value in row) for row in matrix] + [""]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow  # both libraries are compiled: minutes where it is the first time
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("length", [60, 61])
def test_planted_sites_are_found_where_they_are(
    tmp_path: Path, length: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.exports.seqlets.in_blocks", partial(in_blocks, rows=5))  # not all at once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it imports
        from memelite import tomtom
        from tangermeme.seqlet import recursive_seqlets
    store = planted(tmp_path / "a.zarr", length)
    command = ["export", "seqlets", store.url, str(tmp_path / "a.bed"), "--target", "7"]
    assert dispatch([*command, "--p-value", "1e-4", "--meme", str(meme(tmp_path / "m.meme"))]) == 0
    assert "no error rate" in capfd.readouterr().out
    null, header, *lines = (tmp_path / "a.bed").read_text().splitlines()
    assert null.startswith("# p_value: the chance")
    assert tuple(header.removeprefix("#").split("\t")) == (*COLUMNS, *MOTIF_COLUMNS)
    found = list(csv.DictReader(lines, (*COLUMNS, *MOTIF_COLUMNS), delimiter="\t"))

    values = np.asarray(store.attribution[:, 1])
    values[store.on_minus_strand] = values[store.on_minus_strand][:, ::-1]
    expected = {
        (int(row), start, end): (total, p)
        for _, row, start, end, total, p in recursive_seqlets(values, 1e-4).itertuples()
    }
    negative = recursive_seqlets(-values, 1e-4)
    expected |= {(int(row), start, end): (-total, p) for _, row, start, end, total, p in negative.itertuples()}
    assert len(found) == len(expected) == len(SITES) + 1
    assert [(line["chrom"], int(line["start"])) for line in found] == sorted(
        (line["chrom"], int(line["start"])) for line in found
    )
    for line in found:
        row = int(line["row"])
        start, end = (int(line[name]) - int(store.rows["start"][row]) for name in ("start", "end"))
        total, p_value = expected[row, start, end]
        assert float(line["attribution"]) == pytest.approx(total, rel=1e-5)
        assert float(line["attribution"]) == pytest.approx(values[row, start:end].sum(dtype=np.float64), rel=1e-4)
        assert float(line["p_value"]) == pytest.approx(p_value, rel=1e-3)
        assert int(line["score"]) == round(-10 * np.log10(p_value))
        assert (line["name"], line["target"]) == (f"peak {row}", "7")
        if row == LOW[0]:
            begin, width = LOW[1], 8
        else:
            (begin, strand), width = SITES[row], len(MOTIF)
            assert (line["motif"], line["strand"]) == ("M30 planted", strand)
        assert (total < 0) == (row == LOW[0])
        assert start <= begin < begin + width <= end, "it may go a little beyond"
        assert end - start <= width + 5
    without = tmp_path / "b.bed"
    assert dispatch([*command[:3], str(without), "--target", "7", "--p-value", "1e-4"]) == 0
    plain = [line.split("\t") for line in without.read_text().splitlines()[2:]]
    assert [line[5] for line in plain] == ["."] * len(found)
    assert [line[:5] for line in plain] == [line.split("\t")[:5] for line in lines]
    (tmp_path / "no.meme").write_text("MOTIF one\nletter-probability matrix: w= 1\n0.1 0.2 x 0.3\n")
    assert dispatch([*command[:3], str(tmp_path / "c.bed"), "--meme", str(tmp_path / "no.meme")]) == 2
    assert "no.meme: it cannot be read as a MEME file" in capfd.readouterr().err
    codes = np.asarray(store.codes[:])
    codes[store.on_minus_strand] = reverse_complement(codes[store.on_minus_strand])
    row, (start, _) = 0, SITES[0]
    from memelite.io import read_meme

    query = (np.array(list(decode(codes[row, start : start + len(MOTIF)]))) == np.array(list("ACGT"))[:, None]).astype(
        float
    )
    nearest = tomtom([query], list(read_meme(str(tmp_path / "m.meme")).values()), n_nearest=1)[0, 0, 0]
    of_row = next(line for line in found if int(line["row"]) == row)
    assert float(of_row["motif_p_value"]) == pytest.approx(nearest, rel=1e-3)


def test_the_null_is_that_of_independent_positions() -> None:
    """The chance of each sum, by counting all ways to it."""
    frequency = np.array([0.5, 0.0, 0.3, 0.2])
    tails = _tails(frequency, 3)
    assert tails.shape == (4, 13)
    for length in (1, 2, 3):
        ways = list(itertools.product(range(4), repeat=length))
        chances = np.array([np.prod(frequency[list(way)]) for way in ways])
        for least in range(13):
            expected = chances[[sum(way) >= least for way in ways]].sum()
            assert tails[length, least] == pytest.approx(expected)


def test_a_negative_seqlet_gives_way_to_a_positive_one() -> None:
    def at(*places: tuple[int, int, int]) -> Seqlets:
        place, start, end = (np.array(column) for column in zip(*places, strict=True))
        return Seqlets(place, place * 0, start, end, place * 1.0, place * 1.0)

    some = at((0, 0, 4), (0, 6, 9), (0, 20, 24), (1, 3, 7), (2, 0, 5))
    others = at((1, 0, 3), (0, 4, 7), (0, 8, 20))
    assert _overlapping(some, others, 24).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--p-value", "0"], "--p-value 0.0: expected a number above 0"),
        (["--min-length", "9", "--max-length", "8"], "--min-length 9 --max-length 8: expected lengths in that order"),
    ],
)
def test_options_that_mean_nothing(
    plain: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert dispatch(["export", "seqlets", plain.url, str(tmp_path / "a.bed"), *options]) == 2
    assert message in capfd.readouterr().err
