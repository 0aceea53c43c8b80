"""BPNet: the same numbers as a reference written by hand, and its checkpoints read without running anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dlshap_core.one_hot import one_hot
from pipeline.inputs.loci import LociSource
from pipeline.messages.errors import UserError
from pipeline.models.bpnet import BPNet, load_bpnet

SMALL = {"n_filters": 6, "n_layers": 3, "trimming": 40}


def small(**settings: object) -> BPNet:
    torch.manual_seed(0)
    return BPNet(**{**SMALL, **settings}).eval()


def sequences(length: int = 200, n: int = 3) -> Tensor:
    return one_hot(np.random.RandomState(0).randint(0, 4, size=(n, length)).astype(np.uint8), torch.float32)


def by_hand(state: dict[str, Tensor], x: Tensor, control: Tensor | None, trimming: int) -> tuple[Tensor, Tensor]:
    """The published forward pass, from the weights alone."""
    length = x.shape[-1]
    hidden = F.relu(F.conv1d(x, state["iconv.weight"], state["iconv.bias"], padding=10))
    i = 0
    while f"rconvs.{i}.weight" in state:
        width = 2 ** (i + 1)
        conv = F.conv1d(hidden, state[f"rconvs.{i}.weight"], state[f"rconvs.{i}.bias"], padding=width, dilation=width)
        hidden = hidden + conv.clamp(min=0)
        i += 1
    joined = hidden if control is None else torch.cat([hidden, control], 1)
    profile = F.conv1d(joined, state["fconv.weight"], state.get("fconv.bias"), padding=37)[
        ..., trimming : length - trimming
    ]
    first, last = trimming - 37, length - trimming + 37
    summary = hidden[..., first:last].mean(-1)
    if control is not None:
        summary = torch.cat([summary, torch.log(control[..., first:last].sum((1, 2)) + 1)[:, None]], 1)
    return profile, F.linear(summary, state["linear.weight"], state.get("linear.bias"))


@pytest.mark.parametrize("n_control_tracks", [0, 2])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_forward_is_the_published_one(n_control_tracks: int, n_outputs: int) -> None:
    model = small(n_control_tracks=n_control_tracks, n_outputs=n_outputs)
    control = torch.rand(3, n_control_tracks, 200) if n_control_tracks else None
    with torch.no_grad():
        got, expected = model(sequences(), control), by_hand(model.state_dict(), sequences(), control, 40)
    assert got[0].shape == (3, n_outputs, 120)
    assert got[1].shape == (3, 1)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_control_tracks_not_given_are_zero() -> None:
    model = small(n_control_tracks=2)
    with torch.no_grad():
        for a, b in zip(model(sequences()), model(sequences(), torch.zeros(3, 2, 200)), strict=True):
            assert torch.equal(a, b)


def test_a_sequence_shorter_than_the_trimming_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"length 80.*more than 80"):
        small()(sequences(80))


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("settings", [{}, {"n_control_tracks": 1}, {"profile_output_bias": False, "n_outputs": 1}])
def test_a_state_dict_gives_its_own_sizes(tmp_path: Path, form: str, settings: dict[str, object]) -> None:
    model, path = small(**settings), tmp_path / "weights"
    if form == "torch":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    with torch.no_grad():
        for a, b in zip(load_bpnet(path, {"trimming": 40})[0](sequences()), model(sequences()), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(UserError, match=r"trims.*model\.init\.trimming"):
        load_bpnet(path, {})
    with pytest.raises(UserError, match=r"model\.init does not fit BPNet.*n_filterz"):
        load_bpnet(path, {"trimming": 40, "n_filterz": 3})


def test_another_models_weights(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"is not a BPNet: it has no iconv\.weight"):
        load_bpnet(tmp_path / "x.pt", {"trimming": 1})


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def pickled(path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool = True, **attributes: object) -> BPNet:
    """Write what `torch.save(model)` writes where bpnet-lite is installed; afterwards it is not."""
    model = small(n_control_tracks=2)
    reference = small(n_control_tracks=2)

    class Stub(nn.Module):
        """Has the name of the published class, but none of its code."""

    Stub.__module__, Stub.__name__, Stub.__qualname__ = "bpnetlite.bpnet", "BPNet", "BPNet"
    stub = Stub()
    for name, child in model.named_children():
        stub.add_module(name, child)
    for name, value in {"n_filters": 6, "n_layers": 3, "trimming": 40, **attributes}.items():
        setattr(stub, name, value)
    package, module = ModuleType("bpnetlite"), ModuleType("bpnetlite.bpnet")
    module.BPNet = Stub  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "bpnetlite", package)
        patched.setitem(sys.modules, "bpnetlite.bpnet", module)
        torch.save(stub, path, _use_new_zipfile_serialization=zipped)
    return reference


def test_a_pickled_module_is_read_without_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pickled(tmp_path / "model.torch", monkeypatch)
    loaded, _ = load_bpnet(tmp_path / "model.torch", {})
    assert loaded.trimming == 40
    assert loaded.n_control_tracks == 2
    assert list(loaded.state_dict()) == list(reference.state_dict())
    with torch.no_grad():
        for a, b in zip(loaded(sequences()), reference(sequences()), strict=True):
            assert torch.equal(a, b)


def test_a_pickled_module_with_numpy_values_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled(tmp_path / "model.torch", monkeypatch, history=[np.float32(0.5), np.float64(1.5), np.ones(3)])
    assert load_bpnet(tmp_path / "model.torch", {})[0].trimming == 40


def test_code_in_a_pickled_bpnet_is_refused_by_name_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled(tmp_path / "model.torch", monkeypatch, logger=Evil(tmp_path / "ran"))
    with pytest.raises(UserError, match=r"holds names that a BPNet does not have: \w+\.mkdir; it was not read"):
        load_bpnet(tmp_path / "model.torch", {})
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    state = small().state_dict()
    state["fconv.weight"][0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"'fconv\.weight' holds 1 of 900 values that are NaN"):
        load_bpnet(tmp_path / "x.pt", {"trimming": 40})


@pytest.mark.real
def test_a_published_model_sees_more_at_peaks_than_beside_them(real_data: Path, tmp_path: Path) -> None:
    model = load_bpnet(real_data / "bpnet_ctcf_k562.torch", {})[0].eval()
    assert (model.n_layers, model.trimming, model.n_control_tracks) == (8, 557, 0)
    background = tmp_path / "background.bed"
    background.write_text("".join(f"chr1\t{start}\t{start + 2114}\n" for start in range(400_000, 460_000, 3000)))
    means = []
    for loci in [real_data / "ctcf_peaks.chr1_1m.narrowPeak", background]:
        (rows,) = LociSource(loci, real_data / "hg38_chr1_1m.fa.gz", 2114).batches()
        with torch.no_grad():
            profile, counts = model(
                one_hot(np.stack([codes for codes in rows.codes if codes is not None]), torch.float32)
            )
        assert profile.shape == (len(rows), 2, 1000)
        means.append(float(counts.mean()))
    assert means[0] == pytest.approx(4.57, abs=0.01)
    assert means[1] < means[0] - 0.4
