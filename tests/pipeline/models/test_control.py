"""Control tracks of BPNet and ChromBPNet: zero unless they are given, and what they do is what the formula says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyBigWig
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pipeline
from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from dlshap_core.references import shuffle_codes
from dlshap_core.sequences import reverse_complement
from pipeline.messages.errors import UserError
from pipeline.models.bpnet import BPNet
from pipeline.models.chrombpnet import ChromBPNet
from tests.pipeline.conftest import random_sequences, values
from tests.pipeline.models.test_bpnet import by_hand, sequences, small

LENGTH, TRIMMING = 130, 40
STARTS, STRANDS = (5, 90, 250, 333), "+-.-"
SIGNAL = np.random.RandomState(0).rand(2, 500).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A genome, loci, weights of a BPNet with two control tracks, and these as bigWigs and as an array."""
    folder = tmp_path_factory.mktemp("control")
    (folder / "genome.fa").write_text(f">chr1\n{random_sequences(1, 500, seed=1)[0]}\n")
    lines = [f"chr1\t{start}\t{start + LENGTH}\t.\t0\t{strand}" for start, strand in zip(STARTS, STRANDS, strict=True)]
    (folder / "l.bed").write_text("\n".join(lines) + "\n")
    save_file(small(n_control_tracks=2).state_dict(), folder / "weights.safetensors")
    for name, signal in zip(("plus", "minus"), SIGNAL, strict=True):
        with pyBigWig.open(str(folder / f"{name}.bw"), "w") as file:
            file.addHeader([("chr1", 500)])
            file.addEntries("chr1", 0, values=signal, span=1, step=1)
    np.save(folder / "control.npy", control())
    np.save(folder / "zero.npy", np.zeros((len(STARTS), 2, LENGTH)))
    return folder


def control() -> np.ndarray:
    """(N, 2, L) in the frame of each row's sequence."""
    windows = [SIGNAL[:, start : start + LENGTH] for start in STARTS]
    return np.stack([w[::-1, ::-1] if s == "-" else w for w, s in zip(windows, STRANDS, strict=True)])


def run(folder: Path, store: Path, *more: str) -> pipeline.Store:
    settings = [
        "model=bpnet",
        f"model.checkpoint={folder / 'weights.safetensors'}",
        f"model.init.trimming={TRIMMING}",
        "dataset=loci",
        f"dataset.loci={folder / 'l.bed'}",
        f"dataset.genome={folder / 'genome.fa'}",
        f"dataset.length={LENGTH}",
        "dataset.strand=apply",
        "references.n_shuffles=2",
        "cluster=none",
        f"store.path={store}",
    ]
    assert pipeline.run([*settings, *more]).complete
    return pipeline.open_store(store)


def pair(folder: Path) -> str:
    return f"dataset.args=[[{folder / 'plus.bw'},{folder / 'minus.bw'}]]"


class ByHand(nn.Module):
    """The counts or the profile of the published forward pass, explained by its head."""

    def __init__(self, state: dict[str, Tensor], head: str) -> None:
        super().__init__()
        self.state, self.head = state, head

    def forward(self, x: Tensor, tracks: Tensor) -> Tensor:
        profile, counts = by_hand(self.state, x, tracks, TRIMMING)
        if self.head == "counts":
            return counts
        logits = profile.flatten(1) - profile.flatten(1).mean(-1, keepdim=True)
        return (logits * logits.softmax(-1)).sum(-1, keepdim=True)


def test_no_tracks_and_tracks_of_zeros_are_the_same(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "none.zarr")
    run(folder, tmp_path / "zero.zarr", f"dataset.args=[{folder / 'zero.npy'}]")
    none, zero = values(tmp_path / "none.zarr"), values(tmp_path / "zero.zarr")
    assert zero.pop("arg_0") is not None
    assert none == zero


@pytest.mark.parametrize("strands", ["none", "average"])
@pytest.mark.parametrize("head", ["counts", "profile_midpoint"])
def test_tracks_are_those_of_the_formula(folder: Path, tmp_path: Path, head: str, strands: str) -> None:
    more = [f"model.head={head}", f"engine.reverse_complement={strands}"]
    store = run(folder, tmp_path / "a.zarr", pair(folder), *more)
    np.testing.assert_array_equal(store["arg_0"][:], control())
    codes, module = np.asarray(store.codes[:]), ByHand(small(n_control_tracks=2).state_dict(), head)
    shuffled = shuffle_codes(codes, [0, 1])
    tracks = control().copy()
    sides = [(codes, shuffled, tracks)]
    if strands == "average":
        turned = np.stack([reverse_complement(row) for row in codes])
        sides.append(
            (turned, np.stack([[reverse_complement(r) for r in row] for row in shuffled]), tracks[:, ::-1, ::-1])
        )
    found = [
        attribute(module, one_hot(c), one_hot(torch.from_numpy(r)), args=[torch.from_numpy(t.copy())], device="cpu")
        for c, r, t in sides
    ]
    expected = torch.stack([found[0].hypothetical, *(each.hypothetical.flip(-1, -2) for each in found[1:])]).mean(0)
    np.testing.assert_allclose(store.hypothetical[:], expected, atol=2e-5)
    predicted = torch.stack([each.prediction for each in found]).mean(0)
    np.testing.assert_allclose(store.prediction[:], predicted, rtol=1e-4, atol=1e-5)


def test_bigwigs_and_arrays_give_the_same_bits(folder: Path, tmp_path: Path) -> None:
    more = ["model.head=profile_midpoint", "engine.reverse_complement=average"]
    run(folder, tmp_path / "bw.zarr", pair(folder), *more)
    run(folder, tmp_path / "npy.zarr", f"dataset.args=[{folder / 'control.npy'}]", *more)
    assert values(tmp_path / "bw.zarr") == values(tmp_path / "npy.zarr")
    one, other = (pipeline.open_store(tmp_path / name).attrs["fingerprint"] for name in ("bw.zarr", "npy.zarr"))
    assert one == other


def test_tracks_that_a_bpnet_does_not_take_are_refused(folder: Path, tmp_path: Path) -> None:
    one = f"dataset.args=[{folder / 'plus.bw'}]"
    with pytest.raises(UserError, match=r"shape \(\d, 1, 130\); this BPNet takes \(N, 2, 130\) \(dataset\.args\)"):
        run(folder, tmp_path / "a.zarr", one)
    with pytest.raises(
        UserError, match=r"BPNet\.forward\(x, control=None\) takes 1 extra input and dataset\.args gives 2"
    ):
        run(folder, tmp_path / "a.zarr", f"dataset.args=[{folder / 'plus.bw'},{folder / 'minus.bw'}]")
    np.save(folder / "negative.npy", np.full((len(STARTS), 2, LENGTH), -1.0))
    with pytest.raises(UserError, match=r"not finite; are the weights damaged, or dataset\.args out of range\?"):
        run(folder, tmp_path / "a.zarr", f"dataset.args=[{folder / 'negative.npy'}]")
    save_file(small().state_dict(), tmp_path / "without.safetensors")
    with pytest.raises(UserError, match=r"trained without control tracks; leave dataset\.args out"):
        run(folder, tmp_path / "a.zarr", pair(folder), f"model.checkpoint={tmp_path / 'without.safetensors'}")
    assert [path.name for path in tmp_path.iterdir()] == ["without.safetensors"]


def test_chrombpnet_hands_tracks_to_the_part_that_takes_them() -> None:
    tracks = torch.rand(3, 2, 200)
    for n_accessibility, n_bias in ((2, 0), (0, 2), (2, 2)):
        accessibility, bias = small(n_control_tracks=n_accessibility), small(n_control_tracks=n_bias, n_layers=2)
        with torch.no_grad():
            profile, counts = ChromBPNet(accessibility, bias)(sequences(), tracks)
            parts = [_alone(part, tracks) for part in (accessibility, bias)]
        torch.testing.assert_close(profile, parts[0][0] + parts[1][0])
        torch.testing.assert_close(counts, torch.log(parts[0][1].exp() + parts[1][1].exp()))
    with pytest.raises(ValueError, match=r"without control tracks; leave dataset\.args out"):
        ChromBPNet(small(), small())(sequences(), tracks)


def _alone(part: BPNet, tracks: Tensor) -> tuple[Tensor, Tensor]:
    return part(sequences(), tracks) if part.n_control_tracks else part(sequences())
