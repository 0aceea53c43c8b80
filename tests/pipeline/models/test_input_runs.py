"""Models whose input is more than one-hot sequences, in whole runs, against wrappers written by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyBigWig
import pytest
import torch
from torch import nn

import pipeline
from pipeline.cli.main import main
from pipeline.messages.errors import RunError, UserError
from tests.pipeline.conftest import random_sequences, write_fasta

LENGTH = 30
OWN = """
import torch
from torch import nn


class Signal(nn.Module):
    '''Five channels, the bases and a track, of 40 positions.'''

    def __init__(self, n_channels=5, length=40):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(n_channels, 6, 5), nn.GELU(), nn.Flatten(), nn.Linear(6 * (length - 4), 2))

    def forward(self, x):
        return self.body(x)


class SignalTwin(Signal):
    def forward(self, x, track):
        return super().forward(nn.functional.pad(torch.cat([x[:, [0, 2, 1, 3]], track], 1), (5, 5)))


class Words(nn.Module):
    '''Whole numbers, of two organisms.'''

    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.organism = nn.Embedding(8, 5), nn.Conv1d(5, 6, 5), nn.Embedding(2, 6)
        self.out = nn.Linear(6, 2)

    def rest(self, h, organism):
        return self.out(nn.functional.gelu(self.conv(h.transpose(1, 2))).mean(-1) + self.organism(organism))

    def forward(self, organism, ids):
        return {"human": self.rest(self.embedding(ids), organism)}


class WordsTwin(Words):
    def forward(self, x):
        first, last = (self.embedding.weight[[token]].expand(len(x), -1, -1) for token in (5, 7))
        h = torch.cat([first, x.transpose(1, 2) @ self.embedding.weight[1:5], last], 1)
        return {"human": self.rest(h, torch.ones(len(x), dtype=torch.long))}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With models of one's own, sequences of 30 bases, and windows of a genome with a track."""
    (tmp_path / "input_models.py").write_text(OWN)
    write_fasta(tmp_path / "x.fa", random_sequences(4, LENGTH))
    write_fasta(tmp_path / "genome.fa", random_sequences(1, 400, seed=2))
    strands = ["+", "-", "-", "+"]
    chrom = (tmp_path / "genome.fa").read_text().split()[0].lstrip(">")
    (tmp_path / "p.bed").write_text(
        "".join(f"{chrom}\t{90 * i + 10}\t{90 * i + 40}\tp{i}\t0\t{s}\n" for i, s in enumerate(strands))
    )
    with pyBigWig.open(str(tmp_path / "a.bw"), "w") as track:
        track.addHeader([(chrom, 400)])
        track.addEntries(chrom, 0, values=np.random.RandomState(3).rand(400).tolist(), span=1, step=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("input_models", None)


def weights(name: str, file: str, seed: int = 0) -> None:
    import input_models

    torch.manual_seed(seed)
    model: nn.Module = getattr(input_models, name)()
    torch.save(model.state_dict(), file)


def given(target: str, store: str, *more: str) -> list[str]:
    of_run = ["cluster=none", "references.n_shuffles=2", f"store.path={store}", "engine.dtype=float64"]
    return ["model=module", f"model._target_=input_models.{target}", *of_run, *more]


def require_same(*stores: str) -> None:
    found, wanted = (pipeline.open_store(store) for store in stores)
    assert float(np.abs(wanted["attribution"][:]).max()) > 1e-4
    for name in ("attribution", "hypothetical", "prediction"):
        np.testing.assert_allclose(found[name][:], wanted[name][:], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("strands", [pytest.param("none", marks=pytest.mark.slow), "average"])
def test_a_track_beside_the_bases_of_windows_on_both_strands(strands: str) -> None:
    weights("Signal", "w.pt")
    loci = ["dataset=loci", "dataset.loci=p.bed", "dataset.genome=genome.fa", f"dataset.length={LENGTH}"]
    loci += ["dataset.strand=apply", "dataset.args=[a.bw]", "model.checkpoint=w.pt"]
    loci += [f"engine.reverse_complement={strands}", "engine.targets=all"]
    settings = ["model.channels=[arg_0]", "model.bases=AGCT", "model.length=40"]
    pipeline.run(given("Signal", "a.zarr", *loci, *settings))
    pipeline.run(given("SignalTwin", "b.zarr", *loci))
    require_same("a.zarr", "b.zarr")
    attributes = json.loads(Path("a.zarr", "zarr.json").read_text())["attributes"]
    assert attributes["model"]["input"] == {"channels": ["arg_0"], "length": 40}
    assert attributes["convergence"] == "passed"
    with pytest.raises(UserError, match=r"belongs to another run: .*model\.pad"):
        pipeline.run(given("Signal", "a.zarr", *loci, *settings, "model.pad=n"))


@pytest.mark.parametrize("strands", [pytest.param("none", marks=pytest.mark.slow), "average"])
def test_tokens_and_a_constant_with_folds_and_an_output(strands: str, capsys: pytest.CaptureFixture[str]) -> None:
    for fold in (0, 1):
        weights("Words", f"w{fold}.pt", fold)
    both = ["dataset=fasta", "dataset.path=x.fa", "model.checkpoint=[w0.pt,w1.pt]", "model.output=human"]
    both += ["store.per_fold=true", f"engine.reverse_complement={strands}", "engine.targets=[1]"]
    settings = {"tokens": [1, 2, 3, 4], "flanks": [[5], [7]], "input": "ids", "forward": {"organism": {"rows": 1}}}
    command = ["model.tokens=[1,2,3,4]", "model.flanks=[[5],[7]]", "model.input=ids", "model.forward.organism.rows=1"]
    pipeline.run(given("Words", "a.zarr", *both, *command))
    pipeline.run(given("WordsTwin", "b.zarr", *both))
    require_same("a.zarr", "b.zarr")
    attributes = json.loads(Path("a.zarr", "zarr.json").read_text())["attributes"]
    assert attributes["model"]["input"] == settings
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["audit", *given("Words", "a.zarr", *both, *command)])
    assert "linear" in capsys.readouterr().out
    of_model: dict[str, Any] = {"name": "module", "_target_": "input_models.Words", "checkpoint": ["w0.pt", "w1.pt"]}
    of_model |= {"output": "human", **settings}
    engine = {"dtype": "float64", "reverse_complement": strands, "targets": [1]}
    summary = pipeline.run(
        {
            "model": of_model,
            "dataset": {"name": "fasta", "path": "x.fa"},
            "engine": engine,
            "cluster": {"name": "none"},
            "store": {"path": "a.zarr", "per_fold": True},
            "references": {"n_shuffles": 2},
        }
    )
    assert summary


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        (
            "Signal",
            [],
            r"1 more than the 4 channels of the bases: 'dataset\.args=\[track\.bw\]' 'model\.channels=\[arg_0\]'",
        ),
        ("Signal", ["model.channels=[0,1]"], r"makes 6 channels of the bases and 0, 1, the model takes 5"),
        (
            "Signal",
            ["model.channels=[arg_0]"],
            r"arg_0, and dataset\.args has no entries \(the first is arg_0\); add where",
        ),
        ("Signal", ["model.channels=[0]"], r"not of 30; .* or pad them: model\.length=40 model\.pad=zeros"),
        (
            "Signal",
            ["model.channels=[0]", "model.length=38"],
            r"sequences of 40 bases, not of 38; add model\.length=40",
        ),
        (
            "Signal",
            ["model.channels=[0]", "model.flanks=[AC,G]"],
            r"of 37 bases, not of 30; .*model\.length=40 model\.pad",
        ),
        ("Words", ["model.input=ids"], r"or what is the same for all sequences: model\.forward\.organism=\.\.\."),
        (
            "Words",
            ["model.input=ids", "model.forward.organism.rows=1"],
            r"model\.tokens=\[1,2,3,4\] says which are A, C",
        ),
        (
            "Words",
            ["model.input=ids", "model.tokens=[1,2,3,4]", "model.forward.organism=1"],
            r"model\.forward\.organism=1 is no tensor; model\.forward\.organism\.rows=1 is one",
        ),
    ],
)
def test_errors_end_with_the_setting(target: str, more: list[str], message: str) -> None:
    weights(target, "w.pt")
    with pytest.raises(UserError, match=message):
        pipeline.run(given(target, "a.zarr", "dataset=fasta", "dataset.path=x.fa", "model.checkpoint=w.pt", *more))


def test_an_unknown_base_without_a_token_names_its_sequence() -> None:
    weights("Words", "w.pt")
    sequences = random_sequences(4, LENGTH)
    write_fasta(Path("x.fa"), [*sequences[:3], "N" + sequences[3][1:]])
    settings = ["model.tokens=[1,2,3,4]", "model.input=ids", "model.forward.organism.rows=1", "model.output=human"]
    settings += ["dataset=fasta", "dataset.path=x.fa", "model.checkpoint=w.pt"]
    with pytest.raises(RunError, match=r"row 3, .*has no token for N; add it as the fifth"):
        pipeline.run(given("Words", "a.zarr", *settings))
