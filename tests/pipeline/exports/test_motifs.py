"""From a run to motifs: TF-MoDISco itself, run on what is exported for it, finds what is known to be there."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyBigWig
import pytest
from benchmarks.motifs import CTCF, PLANTED, frequencies, read_motifs, similarity

import pipeline
from pipeline.analysis.planted_motifs import EXAMPLE_TRUTH, read_truth
from pipeline.cli.main import dispatch
from tests.conftest import real_data_directory

SIMILAR = 0.9  # the planted motifs are at most 0.75 similar to each other
SIMILAR_TO_CORE = 0.8  # half of its letters are ambiguous: a perfect site of one kind is 0.85 similar


def test_similarity_is_1_for_the_consensus_itself_on_either_strand() -> None:
    around = np.full((5, 4), 0.25)
    site = np.concatenate([around, frequencies("AGATAAG"), around])
    assert similarity(site, "AGATAAG") == pytest.approx(1)
    assert similarity(site[::-1, ::-1], "AGATAAG") == pytest.approx(1)
    assert similarity(site, "TGACTCA") < 0.6
    assert similarity(np.concatenate([around, frequencies(PLANTED["CTCF"]), around]), CTCF) > SIMILAR_TO_CORE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_planted_motifs_of_the_example_are_found(tmp_path: Path) -> None:
    store = tmp_path / "example.zarr"
    assert pipeline.run(["cluster=none", "references.n_shuffles=10", f"store.path={store}"]).complete
    assert dispatch(["motifs", str(store), str(tmp_path / "out"), "--window", "300"]) == 0
    motifs = read_motifs(tmp_path / "out/motifs.h5")
    best = {name: max(similarity(motif.frequencies, text) for motif in motifs) for name, text in PLANTED.items()}
    assert min(best.values()) > SIMILAR, best
    assert (tmp_path / "out/report/report.html").stat().st_size > 10_000
    assert (tmp_path / "out/hits/hits.tsv").is_file()

    placed = places_of_planted(tmp_path / "out/seqlets.bed")
    usual = {motif: counts.most_common(1)[0] for motif, counts in placed.items() if motif.startswith("pos_patterns")}
    assert {place[0] for place, _ in usual.values()} == set(PLANTED)
    for motif, (place, count) in usual.items():
        of_this = sum(n for other, n in placed[motif].items() if other[0] == place[0])
        assert count > 0.75 * of_this, f"{motif}: planted sites lie elsewhere than at {place}"


def places_of_planted(seqlets: Path) -> dict[str, Counter[tuple[str, int, bool]]]:
    """Of each motif, where the planted sites that its seqlets overlap lie in them: name, offset, whether on its strand.

    The offset is that of the site's first base on the seqlet's strand.
    """
    sites, found = read_truth(EXAMPLE_TRUTH), defaultdict[str, Counter[tuple[str, int, bool]]](Counter)
    for line in seqlets.read_text().splitlines()[1:]:
        name, first, last, motif, _, strand, *_ = line.split("\t")
        start, end = int(first), int(last)
        for site in sites:
            if site.sequence == name and site.start < end and start < site.end:
                offset = site.start - start if strand == "+" else end - site.end
                found[motif][site.motif, offset, site.strand == strand] += 1
    return found


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(2400)
def test_ctcf_is_found_in_the_attributions_of_a_trained_model(tmp_path: Path) -> None:
    real = real_data_directory()
    peaks = (real / "ctcf_peaks.chr1_1m.narrowPeak").read_text()
    tiles = [
        f"chr1\t{start}\t{start + 2114}\ttile{start}\t0\t.\t0\t-1\t-1\t1057\n"
        for start in range(760_000, 990_000, 1057)
    ]
    (tmp_path / "both.narrowPeak").write_text(peaks + "".join(tiles))
    store = tmp_path / "ctcf.zarr"
    model = ["model=bpnet", f"model.checkpoint={real}/bpnet_ctcf_k562.torch", "references.n_shuffles=2"]
    loci = ["dataset=loci", f"dataset.loci={tmp_path}/both.narrowPeak", f"dataset.genome={real}/hg38_chr1_1m.fa.gz"]
    assert pipeline.run([*model, *loci, "cluster=none", f"store.path={store}"]).complete

    out = tmp_path / "motifs"
    assert dispatch(["motifs", str(store), str(out), "--window", "1000"]) == 0
    assert max(similarity(motif.frequencies, CTCF) for motif in read_motifs(out / "motifs.h5")) > SIMILAR_TO_CORE
    hits = [line.split("\t") for line in (out / "hits/hits.bed").read_text().splitlines()]
    assert {line[0] for line in hits} == {"chr1"}

    assert dispatch(["export", "bigwig", str(store), str(tmp_path / "ctcf.bw")]) == 0
    opened = pipeline.open_store(store)
    centre = opened.rows["start"] + 1057
    with pyBigWig.open(str(tmp_path / "ctcf.bw")) as track:
        for base in range(760_000, 990_000, 997):
            row = int(np.lexsort((centre, np.abs(centre - base)))[0])  # the nearest, the left one of two
            value = opened.attribution[row, 0, base - int(opened.rows["start"][row])]
            assert track.values("chr1", base, base + 1) == [pytest.approx(float(value), abs=0)], base
