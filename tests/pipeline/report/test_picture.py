"""dlshap logo: a sequence by its name or its place, and what is said when there is none."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle, StepPatch

import pipeline
from pipeline.cli.main import dispatch
from pipeline.messages.errors import UserError
from pipeline.report.picture import Stretch, _strongest, choose, draw
from pipeline.report.sites import on_genome
from tests.pipeline.report.stores import Synthetic, random_codes

LOCI = [("chr1", 100, "+"), ("chr1", 120, "-"), ("chr1", 100, "+"), ("chr2", 500, "."), ("chr3", 500, ".")]


@pytest.fixture(scope="module")
def located(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows of 60 bases; the second is the reverse complement of its locus. The fourth has no finite values."""
    names = ["one", "two", "one", "chr2:500-510", "chr1:1-9"]
    values = {"attribution": np.ones((5, 2, 60), np.float32)}
    values["attribution"][3] = np.nan
    dataset = {"kind": "loci", "strand": "apply"}
    made = Synthetic(random_codes(5, 60), (0, 5), loci=LOCI, names=names, dataset=dataset, values=values)
    return made.write(tmp_path_factory.mktemp("located") / "a.zarr")


@pytest.mark.parametrize(
    ("wanted", "start", "end", "stretch"),
    [
        ("two", None, None, Stretch(1, 0, 60)),
        ("two", 10, 20, Stretch(1, 10, 20)),
        ("one", None, 5, Stretch(0, 0, 5, n_others=1)),
        ("chr1:100-110", None, None, Stretch(0, 0, 10, 1, "chr1")),
        ("chr1:170-175", None, None, Stretch(1, 5, 10)),
        ("chr1:150-170", None, None, Stretch(1, 10, 30, n_others=2)),
        ("chr1:1-1,000", None, None, Stretch(1, 0, 60, n_others=2)),
        ("chr1:140-150", None, None, Stretch(1, 30, 40, n_others=2)),
        ("chr2:500-510", None, None, Stretch(3, 0, 10, chrom="chr2")),  # the region of the row that is called so
        ("chr2:500-510", 3, 50, Stretch(3, 3, 50, chrom="chr2")),
        ("chr1:1-9", None, None, Stretch(4, 0, 60)),  # a name that lies nowhere near its row
        ("chr2:520-530", None, None, Stretch(3, 20, 30, chrom="chr2")),
    ],
)
def test_the_row_and_the_part_that_are_drawn(
    wanted: str, start: int | None, end: int | None, stretch: Stretch, located: Path
) -> None:
    assert choose(pipeline.open_store(located), wanted, start, end) == stretch


def test_a_place_on_the_minus_strand_counts_from_its_end(located: Path) -> None:
    store = pipeline.open_store(located)
    assert on_genome(store, 0, 5, 10) == ("chr1", 105, 110)
    assert on_genome(store, 1, 5, 10) == ("chr1", 170, 175)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("wanted", ["two", "chr1:100-130"])
def test_a_picture_of_each_format(
    wanted: str, suffix: str, located: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / f"l.{suffix}"
    assert dispatch(["logo", str(located), wanted, "--target", "5", "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    data = out.read_bytes()
    assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert dispatch(["logo", str(located), wanted, "--target", "5", "-o", str(out)]) == 0
    assert out.read_bytes() == data
    if suffix == "png":
        assert imread(out).min() < 0.5
    if suffix == "svg":
        where = "in the sequence" if wanted == "two" else "on chr1"
        assert f"position {where} (bp)" in data.decode()
        assert f"{wanted if wanted == 'two' else 'one'}   chr1:1" in data.decode()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["tow"], "is called 'tow'; did you mean two?"),
        (["chr1:300-400"], "none shares a base with that region"),
        (["chr7:1-2"], "no row lies on 'chr7'"),
        (["1:100-110"], "the store calls it 'chr1'"),
        (["chr1:200-100"], "the end does not lie behind the start"),
        (["two"], "has 2 targets; choose one with --target: 0, 5"),
        (["two", "--target", "7"], "--target 7"),
        (["two", "--target", "0", "--start", "50", "--end", "61"], "expected a part of its 60 bases, 0 to 60"),
        (["two", "--target", "0", "--start", "9", "--end", "9"], "expected a part of its 60 bases"),
        (["two", "--target", "0", "--start", "-1"], "expected a part of its 60 bases"),
        (["chr2:500-510", "--target", "0"], "are not finite; there is nothing to draw"),
        (["two", "-o", "l.jpg"], "expected a name that ends with .png, .svg, .pdf"),
        (["two", "-o", "s3://bucket/l.png"], "give a path"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(
    options: list[str], said: str, located: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["logo", str(located), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(in_folder.iterdir()) == []


def test_regions_need_loci(tmp_path: Path) -> None:
    store = pipeline.open_store(Synthetic(random_codes(2, 20)).write(tmp_path / "a.zarr"))
    with pytest.raises(UserError, match="had no loci"):
        choose(store, "chr1:1-10", None, None)


def test_a_row_that_is_not_there_yet(located: Path) -> None:
    store = dataclasses.replace(pipeline.open_store(located), done=[])
    with pytest.raises(UserError, match="is called 'two'"):
        choose(store, "two", None, None)


def test_without_the_extra(
    located: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert dispatch(["logo", str(located), "two", "-o", str(tmp_path / "l.png")]) == 2
    assert "pip install 'dlshap[report]'" in capsys.readouterr().err


def test_a_long_sequence_is_a_track_with_letters_where_it_is_strongest(tmp_path: Path) -> None:
    """On one scale; the head is named; a shorter one has letters alone, of all its bases."""
    values = {"attribution": np.zeros((1, 2, 2114), np.float32)}
    values["attribution"][0, 1, [700, 1503]] = [2.0, -1.5]
    store = pipeline.open_store(
        Synthetic(random_codes(1, 2114), (0, 5), loci=LOCI[:1], values=values).write(tmp_path / "a.zarr")
    )
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
        draw(store, choose(store, "chr1:100-2214", None, None), 1, tmp_path / "a.svg", "svg")
        draw(store, choose(store, "chr1:780-930", None, None), 1, tmp_path / "b.svg", "svg")
    track, first, second = drawn[0].axes
    assert track.get_xlim() == (100, 2214)
    assert [axes.get_xlim() for axes in (first, second)] == [(750, 850), (1553, 1653)]
    assert {axes.get_ylim() for axes in drawn[0].axes} == {(-1.5 - 0.05 * 3.5, 2 + 0.05 * 3.5)}
    shaded = [patch.get_x() for patch in track.patches if isinstance(patch, Rectangle)]
    assert shaded == [750, 1553]
    heights = np.concatenate([patch.get_data().values for patch in track.patches if isinstance(patch, StepPatch)])
    assert (heights.max(), heights.min()) == (2, -1.5)
    assert drawn[0].get_supylabel() == f"attribution ({store.target_names[1]})"
    (letters,) = drawn[1].axes
    assert letters.get_xlim() == (780, 930)


@pytest.mark.parametrize("length", [151, 300, 2114])
def test_strongest_stretches(length: int) -> None:
    generator = np.random.default_rng(length)
    for _ in range(50):
        attribution = generator.normal(size=length) * generator.exponential(size=length) ** 3
        found = _strongest(attribution)
        assert 1 <= len(found) <= 3
        assert all(0 <= start < end <= length and end - start == 100 for start, end in found)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))
        assert any(
            start <= np.abs(np.convolve(np.abs(attribution), np.ones(20), "valid")).argmax() < end
            for start, end in found
        )
    assert len(_strongest(np.zeros(length))) == 1


def test_a_weak_stretch_is_not_drawn() -> None:
    attribution = np.zeros(2114)
    attribution[[500, 1500]] = [1, 0.2]
    assert _strongest(attribution) == [(450, 550)]
    attribution[1500] = -0.3
    assert len(_strongest(attribution)) == 2
