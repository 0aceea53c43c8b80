"""A motif planted in a genome, and a model that sees nothing else: the track is 0 everywhere but on its very bases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyBigWig
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pipeline
from dlshap_core.one_hot import one_hot
from dlshap_core.sequences import encode
from pipeline.cli.main import dispatch
from tests.pipeline.conftest import random_sequences

MOTIF = "GATTACAGC"
K = len(MOTIF)
REVERSED = "GCTGTAATC"  # the same on the other strand
PLUS, MINUS = 500, 1500  # where they begin
HIDDEN = 2200  # where one begins that is seen by no row that gives the track its values


class Detector(nn.Module):
    """By how much the best match of any position goes beyond all but one base of the motif."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 1, K)
        with torch.no_grad():
            self.conv.weight.copy_(one_hot(encode(MOTIF.encode())[None]))
            self.conv.bias.fill_(0.5 - K)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).sum(dim=-1)


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (bases,) = random_sequences(1, 3000, seed=5)
    assert MOTIF not in bases
    assert REVERSED not in bases
    for start, text in ((PLUS, MOTIF), (MINUS, REVERSED), (HIDDEN, MOTIF)):
        bases = bases[:start] + text + bases[start + K :]
    path = tmp_path_factory.mktemp("planted") / "genome.fa"
    path.write_text(f">chr1\n{bases}\n")
    return path


def track(store: Path, genome: Path, length: int, *settings: str) -> np.ndarray:
    """(3000,) values of the bigWig of a run; NaN where it has none."""
    weights = genome.with_suffix(".safetensors")
    save_file(Detector().state_dict(), weights)
    model = ["model=module", f"model._target_={Detector.__module__}.Detector", f"model.checkpoint={weights}"]
    own = ["cluster=none", f"dataset.genome={genome}", f"dataset.length={length}", f"store.path={store}"]
    assert pipeline.run([*model, *own, *settings]).complete
    assert dispatch(["export", "bigwig", str(store), str(store.with_suffix(".bw"))]) == 0
    with pyBigWig.open(str(store.with_suffix(".bw"))) as opened:
        assert opened.chroms() == {"chr1": 3000}
        return np.array(opened.values("chr1", 0, 3000))


def peak(start: int, end: int, summit: int, strand: str) -> str:
    return f"chr1\t{start}\t{end}\t.\t0\t{strand}\t0\t0\t0\t{summit}\n"


@pytest.mark.parametrize("length", [60, 61])
def test_of_summits_on_both_strands(tmp_path: Path, genome: Path, length: int) -> None:
    lines = [
        peak(430, 700, 105, "+"),  # its summit, 535, is far from the middle of the peak
        peak(MINUS + 3, MINUS + 21, -1, "-"),  # no summit: the middle, 1512
        peak(PLUS, PLUS + 5, 2, "+"),  # overlaps the first
        peak(HIDDEN + 25, HIDDEN + 99, 0, "+"),  # sees the motif from afar
        peak(HIDDEN - 40, HIDDEN + 40, 44, "-"),  # nearer, and on the other strand there is no motif
    ]
    (tmp_path / "l.narrowPeak").write_text("".join(lines))
    loci = ["dataset=loci", f"dataset.loci={tmp_path / 'l.narrowPeak'}", "dataset.strand=apply"]
    values = track(tmp_path / "a.zarr", genome, length, *loci)
    centres = np.array([535, MINUS + 12, PLUS + 2, HIDDEN + 25, HIDDEN + 4])
    covered = {base for centre in centres for base in range(centre - length // 2, centre - length // 2 + length)}
    assert set(np.flatnonzero(np.isfinite(values))) == covered
    assert np.flatnonzero(np.nan_to_num(values)).tolist() == [*range(PLUS, PLUS + K), *range(MINUS, MINUS + K)]
    store = pipeline.open_store(tmp_path / "a.zarr")
    seen = np.abs(np.asarray(store.attribution[:, 0])).sum(axis=1) > 0
    assert seen.tolist() == [length // 2 >= 535 - PLUS, True, True, True, False]


@pytest.mark.parametrize("length", [60, 61])
def test_of_tiles(tmp_path: Path, genome: Path, length: int) -> None:
    values = track(tmp_path / "a.zarr", genome, length, "dataset=tiles", "dataset.stride=23")
    planted = [*range(PLUS, PLUS + K), *range(HIDDEN, HIDDEN + K)]
    assert np.flatnonzero(np.nan_to_num(values)).tolist() == planted
    assert (values[planted] > 0).all()
