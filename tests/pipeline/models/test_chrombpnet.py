"""ChromBPNet from bpnet-lite's parts and from its single checkpoint.

No published checkpoint is at hand: the files are written here to the layout of bpnet-lite's source (a pickled
`bpnetlite.chrombpnet.ChromBPNet` with the submodules `bias` and `accessibility`, each a pickled
`bpnetlite.bpnet.BPNet`), by stubs that bear those names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from pipeline.messages.errors import UserError
from pipeline.models.bpnet import BPNet
from pipeline.models.chrombpnet import ChromBPNet
from pipeline.models.load import LoadedModel, load_model
from tests.pipeline.conftest import chosen

TRIMMING = 40


def bpnet(seed: int, n_layers: int = 2, **settings: int) -> BPNet:
    torch.manual_seed(seed)
    return BPNet(**{"n_filters": 5, "n_layers": n_layers, "n_outputs": 1, "trimming": TRIMMING, **settings}).eval()


def parts() -> tuple[BPNet, BPNet]:
    return bpnet(0, n_layers=3), bpnet(1)


def sequences(n: int = 2, length: int = 130, seed: int = 0) -> Tensor:
    return one_hot(np.random.RandomState(seed).randint(0, 4, size=(n, length)).astype(np.uint8), torch.float32)


def stub(name: str) -> type[nn.Module]:
    """A class that has the name of a published one, and none of its code."""
    module, _, cls = name.rpartition(".")
    return type(cls, (nn.Module,), {"__module__": module, "__qualname__": cls})


def as_published(model: BPNet, cls: type[nn.Module]) -> nn.Module:
    made = cls()
    for name, child in model.named_children():
        made.add_module(name, child)
    settings = {"n_filters": 5, "n_layers": model.n_layers, "n_outputs": 1, "n_control_tracks": 0, "alpha": 1}
    for name, value in {**settings, "trimming": model.trimming, "name": "x", "logger": None}.items():
        setattr(made, name, value)
    return made


def save_published(
    path: Path,
    accessibility: BPNet,
    bias: BPNet | None,
    monkeypatch: pytest.MonkeyPatch,
    old: bool = False,
    **extra: object,
) -> Path:
    """What `torch.save(model)` writes where bpnet-lite is installed: both parts, or where there is no bias that one."""
    bpnet_class, both_class = stub("bpnetlite.bpnet.BPNet"), stub("bpnetlite.chrombpnet.ChromBPNet")
    classes = {"bpnet": [bpnet_class], "chrombpnet": [both_class]}
    classes["chrombpnet"] += [stub("bpnetlite.chrombpnet._Exp"), stub("bpnetlite.chrombpnet._Log")]
    content = as_published(accessibility, bpnet_class)
    if bias is not None:
        content, inner = both_class(), content
        content.bias, content.accessibility = as_published(bias, bpnet_class), inner
        if old:  # releases whose counts were joined by modules
            content._exp1, content._exp2 = classes["chrombpnet"][1](), classes["chrombpnet"][1]()
            content._log = classes["chrombpnet"][2]()
        content.name, content.n_control_tracks, content.n_outputs = "x", 0, 1
    for name, value in extra.items():
        setattr(content, name, value)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "bpnetlite", ModuleType("bpnetlite"))
        for name, members in classes.items():
            module = ModuleType(f"bpnetlite.{name}")
            for cls in members:
                setattr(module, cls.__name__, cls)
            patched.setitem(sys.modules, f"bpnetlite.{name}", module)
        torch.save(content, path)
    return path


def load(**values: object) -> LoadedModel:
    return load_model(chosen("model", **{"name": "chrombpnet", **values}))


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> dict[str, object]:
    """Settings for a checkpoint in one of the forms."""
    accessibility, bias = parts()
    if form == "parts":
        acc_path = save_published(tmp_path / "acc.torch", accessibility, None, monkeypatch)
        return {"checkpoint": acc_path, "bias": save_published(tmp_path / "bias.torch", bias, None, monkeypatch)}
    if form in ("both", "both, old"):
        return {"checkpoint": save_published(tmp_path / "m.torch", accessibility, bias, monkeypatch, form != "both")}
    init = {"trimming": TRIMMING}
    if form == "state dict":
        torch.save(ChromBPNet(accessibility, bias).state_dict(), tmp_path / "w.pt")
        return {"checkpoint": tmp_path / "w.pt", "init": init}
    save_file(accessibility.state_dict(), tmp_path / "acc.safetensors")
    torch.save({f"model.{name}": values for name, values in bias.state_dict().items()}, tmp_path / "bias.pt")
    return {"checkpoint": tmp_path / "acc.safetensors", "bias": tmp_path / "bias.pt", "init": init}


FORMS = ["parts", "both", "both, old", "state dict", "state dicts"]


@pytest.mark.parametrize("form", FORMS)
def test_with_bias_is_the_published_sum(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, (accessibility, bias) = written(tmp_path, monkeypatch, form), parts()
    loaded = load(**settings, with_bias=True)
    x = sequences()
    with torch.no_grad():
        (profile, counts), (bias_profile, bias_counts) = accessibility(x), bias(x)
        logits = (profile + bias_profile).flatten(1)
        torch.testing.assert_close(loaded.module(x), torch.log(counts.exp() + bias_counts.exp()))
        centred = logits - logits.mean(-1, keepdim=True)
        got = load(**settings, with_bias=True, head="profile_midpoint").module(x)
        torch.testing.assert_close(got, (centred * centred.softmax(-1)).sum(-1, keepdim=True))
    assert loaded.description["with_bias"] is True
    assert loaded.description["target"] == "pipeline.models.chrombpnet.ChromBPNet"
    assert loaded.description["bias"] == (settings["bias"].name if "bias" in settings else None)
    prefixed = [f"the weights of {tmp_path / 'bias.pt'} fit without the prefix 'model.' of their names"]
    assert [note for note in loaded.notes if "bias.pt" in note] == (prefixed if form == "state dicts" else [])


@pytest.mark.parametrize("form", FORMS)
def test_without_bias_it_is_the_accessibility_alone(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = written(tmp_path, monkeypatch, form)
    settings.pop("bias", None)
    loaded = load(**settings)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(sequences()), parts()[0](sequences())[1])
    assert loaded.description["target"] == "pipeline.models.bpnet.BPNet"
    is_left_out = any("holds a bias, which is left out; model.with_bias=true" in note for note in loaded.notes)
    assert is_left_out == (form in ("both", "both, old", "state dict"))
    torch.save(parts()[0].state_dict(), tmp_path / "alone.pt")
    alone = load(name="bpnet", checkpoint=tmp_path / "alone.pt", init={"trimming": TRIMMING})
    assert (loaded.weights_hash, loaded.code) == (alone.weights_hash, alone.code)


@pytest.mark.parametrize("head", ["counts", "profile_midpoint", "profile_elementwise"])
def test_contributions_sum_to_the_difference(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(**written(tmp_path, monkeypatch, "parts"), with_bias=True, head=head)
    x, references = sequences(), torch.stack([sequences(2, seed=seed) for seed in (1, 2, 3)], dim=1)
    found = attribute(loaded.module.double(), x, references, targets=(0,), batch_size=4, dtype=torch.float64)
    assert float(found.convergence_delta.abs().max()) < 1e-10
    difference = found.prediction.unsqueeze(-1) - found.reference_prediction
    assert float(difference.abs().min()) > 1e-6  # there is something to sum to


def test_counts_share_the_change_of_the_sum_between_both_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the joint multiplier is a weighted sum of those of the parts, weighted as logsumexp does."""
    loaded = load(**written(tmp_path, monkeypatch, "both"), with_bias=True)
    x, references = sequences(1), sequences(1, seed=5).unsqueeze(1)

    def attributed(module: nn.Module) -> Tensor:
        result = attribute(module.double(), x, references, targets=(0,), batch_size=1, dtype=torch.float64)
        return result.hypothetical.double()

    class Counts(nn.Module):
        def __init__(self, part: BPNet) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x)[1]

    joint, *of_parts = [attributed(module) for module in (loaded.module, *(Counts(part) for part in parts()))]
    basis = torch.stack([part.flatten() for part in of_parts], dim=1)
    weights = torch.linalg.lstsq(basis, joint.reshape(-1, 1)).solution.flatten()
    torch.testing.assert_close(basis @ weights, joint.flatten(), rtol=1e-5, atol=1e-8)
    assert bool((weights > 0).all())
    assert 0.9 < float(weights.sum()) < 1.1


@pytest.mark.parametrize(
    ("which", "changes", "message"),
    [
        ("part", {"with_bias": True}, r"accessibility alone; add model\.bias"),
        ("both", {"with_bias": True, "bias": "part"}, "a bias of its own; leave model.bias"),
        ("part", {"with_bias": True, "bias": "wide"}, "trims 40 positions.*bias of .* trims 41.*not belong together"),
        ("part", {"with_bias": True, "bias": "stranded"}, r"has 1 strands.*has 2 strands"),
        ("part", {"with_bias": True, "bias": "both"}, r"holds a ChromBPNet; use model=chrombpnet"),
        ("part", {"with_bias": True, "bias": "absent"}, r"no such file"),
        ("both", {"name": "bpnet"}, r"holds a ChromBPNet; use model=chrombpnet"),
    ],
)
def test_what_does_not_belong_together(
    which: str, changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accessibility, bias = parts()
    save_published(tmp_path / "part", accessibility, None, monkeypatch)
    save_published(tmp_path / "both", accessibility, bias, monkeypatch)
    save_published(tmp_path / "wide", bpnet(1, trimming=41), None, monkeypatch)
    save_published(tmp_path / "stranded", bpnet(1, n_outputs=2), None, monkeypatch)
    changes = {key: tmp_path / value if key == "bias" else value for key, value in changes.items()}
    with pytest.raises(UserError, match=message) as raised:
        load(checkpoint=tmp_path / which, **changes)
    assert "\n" not in str(raised.value)


def test_one_bias_for_all_folds_or_one_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fold in range(3):
        save_published(tmp_path / f"acc{fold}", bpnet(fold, n_layers=3), None, monkeypatch)
        save_published(tmp_path / f"bias{fold}", bpnet(10 + fold), None, monkeypatch)
    shared = load(checkpoint=tmp_path / "acc?", bias=tmp_path / "bias0", with_bias=True)
    own = load(checkpoint=tmp_path / "acc?", bias=tmp_path / "bias?", with_bias=True)
    assert (shared.description["bias"], own.description["bias"]) == ("bias0", ["bias0", "bias1", "bias2"])
    x = sequences()
    with torch.no_grad():
        assert torch.equal(shared.folds[0](x), own.folds[0](x))
        assert not torch.equal(shared.folds[1](x), own.folds[1](x))
    with pytest.raises(UserError, match=r"model\.bias names 2 files and model\.checkpoint 3"):
        load(checkpoint=tmp_path / "acc?", bias=[str(tmp_path / "bias0"), str(tmp_path / "bias1")], with_bias=True)


def test_a_convolution_placed_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = bpnet(0)
    odd.rconvs[1].dilation, odd.rconvs[1].padding = (3,), (3,)
    save_published(tmp_path / "x", odd, None, monkeypatch)
    with pytest.raises(UserError, match=r"not a BPNet: rconvs\.1 has padding \(3,\); expected 4"):
        load(checkpoint=tmp_path / "x")


@pytest.mark.parametrize("name", ["x", "99999999999", "9" * 5000])
def test_a_layer_of_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And two to the power of a number of eleven digits is not computed."""
    odd = bpnet(0)
    odd.rconvs.add_module(name, odd.rconvs[0])
    save_published(tmp_path / "x", odd, None, monkeypatch)
    with pytest.raises(UserError, match=r"not a BPNet: rconvs|not expected: rconvs"):
        load(checkpoint=tmp_path / "x")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("with_bias", [False, True])
def test_code_in_either_file_does_not_run(with_bias: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accessibility, bias = parts()
    evil = save_published(tmp_path / "evil", accessibility, bias, monkeypatch, logger=Touch(tmp_path / "ran"))
    good = save_published(tmp_path / "good", accessibility, None, monkeypatch)
    with pytest.raises(UserError, match=r"mkdir; it was not read"):
        load(checkpoint=evil, with_bias=with_bias)
    with pytest.raises(UserError, match=r"mkdir; it was not read"):
        load(
            checkpoint=good,
            bias=save_published(tmp_path / "evil2", bias, None, monkeypatch, x=Touch(tmp_path / "ran")),
            with_bias=True,
        )
    assert not (tmp_path / "ran").exists()
