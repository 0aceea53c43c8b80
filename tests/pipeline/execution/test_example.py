"""The packaged example: made by its script, and attributions find what was planted; scoring, by hand."""

from __future__ import annotations

import gzip
import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from dlshap_core.references import shuffle_codes
from dlshap_core.sequences import encode
from pipeline.analysis import planted_motifs
from pipeline.analysis.planted_motifs import EXAMPLE_TRUTH, Site
from pipeline.inputs.example import EXAMPLE_SEQUENCES
from pipeline.inputs.open import open_source
from pipeline.messages.errors import UserError
from pipeline.models.example import EXAMPLE_CHECKPOINT
from pipeline.models.load import LoadedModel, load_model
from tests.pipeline.conftest import chosen

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """scripts/make_example as a module."""
    loader = SourceFileLoader("make_example", str(ROOT / "scripts" / "make_example"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(chosen("model", "example"))


@pytest.fixture(scope="module")
def example() -> tuple[list[str], np.ndarray, list[Site]]:
    """Names, (N, L) codes, planted sites."""
    batches = list(open_source(chosen("dataset", "example")).batches())
    codes = np.stack([codes for rows in batches for codes in rows.codes if codes is not None])
    return [name for rows in batches for name in rows.name], codes, planted_motifs.read_truth(EXAMPLE_TRUTH)


def test_its_files_are_small_and_complete(example: tuple[list[str], np.ndarray, list[Site]]) -> None:
    names, codes, sites = example
    assert EXAMPLE_CHECKPOINT.stat().st_size < 1_000_000
    assert len(names) == len(set(names)) == len(codes) >= 256
    assert not (codes == 4).any()
    assert {site.motif for site in sites} == {"AP1", "CTCF", "EBOX", "GATA"}
    assert len({site.sequence for site in sites}) == len(names) // 2


def test_its_sequences_have_the_stated_composition(
    maker: ModuleType, example: tuple[list[str], np.ndarray, list[Site]]
) -> None:
    codes = example[1][1::2].astype(int)  # the half without motifs
    counts = np.zeros((4, 4))
    np.add.at(counts, (codes[:, :-1], codes[:, 1:]), 1)
    stated = maker.DINUCLEOTIDE_PERCENT / maker.DINUCLEOTIDE_PERCENT.sum()
    np.testing.assert_allclose(counts / counts.sum(), stated, atol=0.005)
    assert stated[1, 2] < 0.3 * stated[1].sum() * stated[:, 2].sum()  # CpG


def test_the_script_makes_these_very_sequences_again(
    maker: ModuleType, example: tuple[list[str], np.ndarray, list[Site]], model: LoadedModel, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    training, codes = maker.background(12000, generator), maker.background(384, generator)
    maker.plant(training, generator)
    truth = maker.plant(codes, generator)
    for folder in ("a", "b"):
        maker.write_example(tmp_path / folder, model.module.model, codes, truth)
    for name, packaged in [("sequences.fa.gz", EXAMPLE_SEQUENCES), ("truth.bed", EXAMPLE_TRUTH)]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert _text(tmp_path / "a" / name) == _text(packaged)  # gzip's own bytes may differ between zlib versions


def test_its_motifs_lie_where_the_truth_says(
    maker: ModuleType, example: tuple[list[str], np.ndarray, list[Site]]
) -> None:
    names, codes, sites = example
    assert planted_motifs.consensus(codes, sites, names) == {
        motif: text for motif, (text, _) in sorted(maker.MOTIFS.items())
    }


def test_its_model_tells_sequences_with_motifs_from_those_without(
    example: tuple[list[str], np.ndarray, list[Site]], model: LoadedModel
) -> None:
    names, codes, sites = example
    planted = {site.sequence for site in sites}
    with torch.no_grad():
        predicted = model.module(one_hot(codes, torch.float32))[:, 0].numpy()
    assert planted_motifs.auroc(predicted, np.array([name in planted for name in names])) > 0.99


def test_attributions_find_the_planted_motifs(
    example: tuple[list[str], np.ndarray, list[Site]], model: LoadedModel
) -> None:
    names, codes, sites = example[0][:64], example[1][:64], example[2]
    encoded = one_hot(codes)
    references = one_hot(shuffle_codes(codes, range(10)))
    found = attribute(model.module, encoded, references, batch_size=320)
    attribution = (found.hypothetical[:, 0] * encoded).sum(dim=1).numpy()
    planted = planted_motifs.planted_mask(sites, names, codes.shape[1])
    assert planted_motifs.auroc(np.abs(attribution), planted) >= 0.95
    assert planted_motifs.auroc(attribution, planted) >= 0.93
    report = planted_motifs.format_report(codes, attribution, names, sites)
    for motif in ("AP1", "CTCF", "EBOX", "GATA"):
        assert any(line.endswith(motif) for line in report.splitlines())


def _text(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


# --- scoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([1, 2, 3, 4], [0, 1, 0, 1], 0.75),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([1, 2, 2, 3], [0, 0, 1, 1], 0.875),  # three pairs won, one tied
        ([[0.0, 5.0], [1.0, 0.0]], [[0, 1], [0, 0]], 1.0),
    ],
)
def test_auroc_by_hand(scores: list[float], positive: list[int], area: float) -> None:
    assert planted_motifs.auroc(np.array(scores), np.array(positive, dtype=bool)) == area


def test_auroc_is_the_share_of_pairs_won() -> None:
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 8, 200), generator.random(200) < 0.3
    a, b = scores[positive][:, None], scores[~positive][None]
    assert planted_motifs.auroc(scores, positive) == pytest.approx(((a > b) + 0.5 * (a == b)).mean())


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [([1, 2], [1, 1], "0 negatives"), ([1, 2], [0, 0], "0 positives"), ([1, float("nan")], [0, 1], "NaN")],
)
def test_auroc_that_does_not_exist(scores: list[float], positive: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planted_motifs.auroc(np.array(scores), np.array(positive, dtype=bool))


def test_mask_is_half_open_and_goes_by_name() -> None:
    sites = [Site("b", 1, 3, "M"), Site("elsewhere", 0, 9, "M"), Site("a", 4, 5, "M")]
    mask = planted_motifs.planted_mask(sites, ["a", "b"], 5)
    assert mask.astype(int).tolist() == [[0, 0, 0, 0, 1], [0, 1, 1, 0, 0]]
    with pytest.raises(UserError, match="do the store and the truth belong together"):
        planted_motifs.planted_mask(sites, ["c"], 5)
    with pytest.raises(UserError, match="a:4-5 lies outside its 4 bases"):
        planted_motifs.planted_mask(sites, ["a"], 4)


def test_kmers_of_both_strands_are_one() -> None:
    codes = np.stack([encode("AAAAGATCCAAAA"), encode("TTTTTGGATCTTT"), encode("AAANAAAAAAAAA")])
    attribution = np.zeros(codes.shape)
    attribution[0, 4:9] = 1.0  # GATCC
    attribution[1, 5:10] = 2.0  # GGATC, its reverse complement
    attribution[2, 3] = 9.0  # at an unknown base
    strongest = planted_motifs.strongest_kmers(codes, attribution, k=5, top=1)
    assert [(kmer.text, kmer.attribution, kmer.count) for kmer in strongest] == [("GATCC", 15.0, 2)]
    assert planted_motifs.strongest_kmers(codes, np.zeros(codes.shape), k=5) == []


def test_kmers_shifted_by_a_base_or_two_are_one() -> None:
    codes, attribution = encode("CACACGATTGCCACAC")[None], np.zeros((1, 16))
    attribution[0, 5:11] = [1, 1, 1, 1, 1, 1]  # GATTGC
    texts = [kmer.text for kmer in planted_motifs.strongest_kmers(codes, attribution, k=6)]
    assert texts[0] == min("GATTGC", "GCAATC")
    assert not {"CGATTG", "ATTGCC", "CAATCG", "GGCAAT"} & set(texts)


@pytest.mark.parametrize(
    ("kmer", "motif"),
    [
        ("GATAAG", "GATA"),
        ("CTTATC", "GATA"),
        ("GATTAG", "GATA"),
        ("CCCCCC", ""),
        ("AAGATA", "GATA"),
        ("AAAGAT", ""),
        ("TGACTC", "AP1"),
    ],
)
def test_the_motif_of_a_kmer(kmer: str, motif: str) -> None:
    assert planted_motifs.motif_of(kmer, {"GATA": "AGATAAG", "AP1": "TGACTCA"}) == motif


def test_consensus_reads_the_minus_strand_backwards() -> None:
    codes = np.stack([encode("AAGATAAA"), encode("CCTATCCC")])
    sites = [Site("a", 2, 6, "GATA"), Site("b", 2, 6, "GATA", "-")]
    assert planted_motifs.consensus(codes, sites, ["a", "b"]) == {"GATA": "GATA"}


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no sites"), ("a\t1\t2\n", "line 1: expected"), ("# x\na\tone\t2\tM\n", "line 2: expected")],
)
def test_truth_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "truth.bed").write_text(content)
    with pytest.raises(UserError, match=message):
        planted_motifs.read_truth(tmp_path / "truth.bed")


def test_the_command_reports_on_a_store_or_says_what_is_wrong(
    tmp_path: Path,
    example: tuple[list[str], np.ndarray, list[Site]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names, codes, sites = example
    attribution = planted_motifs.planted_mask(sites, names, codes.shape[1]).astype(np.float32)[:, None]
    store = SimpleNamespace(codes=codes, attribution=attribution, rows={"name": np.array(names)})
    monkeypatch.setattr("pipeline.store.reader.open_store", lambda path: store)
    assert planted_motifs.main(["example.zarr"]) == 0
    assert "planted against other positions: 1.000" in capsys.readouterr().out
    for arguments, message in [([], "usage"), (["example.zarr", str(tmp_path / "no.bed")], "no such file")]:
        assert planted_motifs.main(arguments) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("dlshap: error: ")
        assert message in printed
        assert printed.count("\n") == 1
