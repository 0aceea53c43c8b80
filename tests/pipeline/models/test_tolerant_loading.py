"""Checkpoints as people have them load as torch's own loading does, bit for bit; what is ambiguous is refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pipeline.messages.errors import UserError
from pipeline.models.checkpoint import read_checkpoint
from pipeline.models.fitting import Fitted, Weights, load_weights
from pipeline.models.load import load_model
from pipeline.models.sets import fitting
from tests.pipeline.conftest import chosen

Names = dict[str, Any]
Norm = Callable[[nn.Module], nn.Module]
OLD_WEIGHT, NEW_WEIGHT = nn.utils.weight_norm, parametrizations.weight_norm
OLD_SPECTRAL, NEW_SPECTRAL = nn.utils.spectral_norm, parametrizations.spectral_norm
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore::UserWarning:torch.nn.modules")


class Net(nn.Module):
    def __init__(self, norm: Norm = nn.Identity, is_lazy: bool = False) -> None:
        super().__init__()
        conv = nn.LazyConv1d(6, 5) if is_lazy else nn.Conv1d(4, 6, 5)
        self.c = conv if norm is nn.Identity else norm(conv)
        self.b = nn.LazyBatchNorm1d() if is_lazy else nn.BatchNorm1d(6)
        self.f = nn.LazyLinear(2) if is_lazy else nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(torch.relu(self.b(self.c(x))).mean(-1))


class Mine(nn.Module):
    def __init__(self, norm: Norm = nn.Identity) -> None:
        super().__init__()
        self.net = Net(norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Colour(enum.Enum):
    RED = 1


def trained(norm: Norm = nn.Identity) -> Net:
    torch.manual_seed(1)
    net = Net(norm).train()
    for _ in range(2):
        net(torch.randn(8, 4, 30))
    return net.eval()


def state(**changed: Tensor | None) -> Names:
    return {name: value for name, value in {**trained().state_dict(), **changed}.items() if value is not None}


def renamed(old: str, new: str) -> Names:
    return {name.replace(old, new, 1): values for name, values in state().items()}


def twice() -> Names:
    return {name: values * 2 for name, values in state().items()}


def load(content: Any, module: nn.Module, path: Path, **form: Any) -> Fitted:
    torch.save(content, path, **form)
    weights = read_checkpoint(path, undecided=True)
    assert isinstance(weights, Weights)
    return load_weights(module, fitting(module, weights, path), path)


def require_same(module: nn.Module, expected: nn.Module) -> None:
    x = torch.randn(3, 4, 30)
    assert torch.equal(module.eval()(x), expected(x))


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        {"epoch": 3, "best_auc": np.float64(0.9), "confusion": np.ones((2, 2)), "step": np.int64(7)},
        {"args": argparse.Namespace(lr=0.1, out=Path("/data")), "when": datetime.datetime(2024, 1, 1)},
        {"cfg": OmegaConf.create({"model": {"width": 3, "layers": [1, 2]}, "lr": 0.1})},
        {"colour": Colour.RED, "seen": collections.defaultdict(list, a=[1]), "last": collections.deque([1, 2])},
        {"x": frozenset([1]), "y": slice(1, 2), "z": range(3), "w": b"abc", "v": collections.Counter("ab")},
    ],
)
def test_objects_beside_the_weights_are_left_out(beside: Names, is_zip: bool, tmp_path: Path) -> None:
    module, form = Net(), {"_use_new_zipfile_serialization": is_zip}
    assert load({**beside, "state_dict": state()}, module, tmp_path / "w.pt", **form) == Fitted()
    require_same(module, trained())


@pytest.mark.parametrize(
    "content",
    [trained(), nn.DataParallel(trained()), {"model": trained(), "epoch": np.int64(3)}, {"ema": trained()}],
    ids=["alone", "parallel", "under a key", "under another key"],
)
def test_a_pickled_module_gives_its_weights_without_being_made(content: Any, tmp_path: Path) -> None:
    module = Net()
    load(content, module, tmp_path / "w.pt")
    require_same(module, trained())


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, lambda net: {"ema": net}])
def test_a_pickled_module_with_other_settings_than_the_class_makes_is_refused(wrap: Any, tmp_path: Path) -> None:
    saved, made = (nn.Sequential(nn.Conv1d(4, 6, 5, padding=padding), nn.Dropout(padding / 9)) for padding in (2, 1))
    with pytest.raises(UserError, match=r"in which 0\.padding is \(2,\), and Sequential makes one where it is \(1,\)"):
        load(wrap(saved), made, tmp_path / "w.pt")


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.name, self.net = scale, "scaled", nn.Linear(2, 2)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, lambda net: {"ema": net}])
@pytest.mark.parametrize(("within", "where"), [(lambda net: net, "scale"), (nn.Sequential, "0.scale")])
def test_other_attributes_of_a_class_of_the_users_are_said(wrap: Any, within: Any, where: str, tmp_path: Path) -> None:
    fitted = load(wrap(within(Scaled(100.0))), within(Scaled(1.0)), tmp_path / "w.pt")
    assert f"{where} is 100.0, not 1.0; where `forward` reads these" in " ".join(fitted.notes)
    assert not load(wrap(within(Scaled(1.0))), within(Scaled(1.0)), tmp_path / "w.pt").notes


def test_a_pickled_module_leaves_out_what_its_state_dict_does(tmp_path: Path) -> None:
    net = nn.BatchNorm1d(3)
    net.register_buffer("table", torch.ones(3), persistent=False)
    torch.save(net, tmp_path / "w.pt")
    assert sorted(read_checkpoint(tmp_path / "w.pt")) == sorted(net.state_dict())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        (renamed("c.", "c._orig_mod."), ""),
        (renamed("c.", "_fsdp_wrapped_module.c._checkpoint_wrapped_module.") | renamed("c.", "x."), None),
        ({f"_forward_module.{name}": values for name, values in renamed("c.", "c._orig_mod.").items()}, ""),
        (renamed("f.", "f.module."), ""),
        ({f"model.module._orig_mod.{name}": values for name, values in state().items()}, "model.module._orig_mod."),
        ({"state_dict": {f"model.{name}": values for name, values in state().items()}}, "model."),
        ({name.partition(".")[0]: value for name, value in state().items()}, None),
        ({"generator": state(), "discriminator": {"w": torch.ones(3, 3)}}, ""),
        ({"a": state(), "b": state()}, ""),
        ({"state": {"model": state(), "optimizers": {"adam": {"m": torch.ones(2)}}}, "rng": [torch.ones(3)]}, ""),
        ({part: getattr(trained(), part).state_dict() for part in "cbf"} | {"optimizer": {"param_groups": []}}, ""),
        ({**state(), "epoch": 3, "best": np.float32(1)}, ""),
    ],
)
def test_names_that_fit_in_one_way(content: Names, prefix: str | None, tmp_path: Path) -> None:
    module = Net()
    if prefix is None:
        with pytest.raises(UserError, match="does not fit Net"):
            load(content, module, tmp_path / "w.pt")
        return
    assert load(content, module, tmp_path / "w.pt").prefix == prefix
    require_same(module, trained())


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "model._orig_mod.", "model.module."])
def test_a_wrapper_of_ones_own_takes_the_weights_of_what_it_wraps(prefix: str, tmp_path: Path) -> None:
    module, names = Mine(), {prefix + name: values for name, values in state().items()}
    others = {"loss.weight": torch.ones(2)} if prefix else {}
    fitted = load({**names, **others}, module, tmp_path / "w.pt")
    assert "fit with 'net.' before their names" in fitted.notes[0]
    assert (fitted.prefix, fitted.left_out) == (prefix, tuple(others))
    require_same(module, trained())


@pytest.mark.parametrize(
    ("content", "module", "message"),
    [
        (
            {"a": state(), "b": twice()},
            Net,
            r"the weights under each of 'a', 'b' fit; choose, such as model\.prefix=a\.",
        ),
        (
            {f"{part}.{n}": v for part, own in (("a", state()), ("b", twice())) for n, v in own.items()},
            Mine,
            "prefixes",
        ),
        (state(**{"b.running_var": None}), Net, r"missing: b\.running_var"),
        (state(**{"extra.weight": torch.ones(2)}), Mine, r"missing: net\.c\.weight.*not expected"),
        ({"_fsdp_wrapped_module._flat_param": torch.ones(3)}, Net, r"flattened parameters of FSDP.*FULL_STATE_DICT"),
        (
            Net(is_lazy=True).state_dict(),
            Net,
            r"no tensors: c\.weight \(torch\.nn\.parameter\.UninitializedParameter\)",
        ),
        ({name: values.numpy() for name, values in state().items()}, Net, r"not tensors: c\.weight"),
    ],
)
def test_what_is_not_guessed(content: Any, module: type[nn.Module], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load(content, module(), tmp_path / "w.pt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("before", "now"),
    [(a, b) for pair in ((OLD_WEIGHT, NEW_WEIGHT), (OLD_SPECTRAL, NEW_SPECTRAL)) for a in pair for b in pair],
)
def test_norms_of_older_and_newer_torch(before: Norm, now: Norm, wrapped: bool, tmp_path: Path) -> None:
    net, module = trained(before), Mine(now) if wrapped else Net(now)
    prefix = "model." if wrapped else ""
    load({prefix + name: values for name, values in net.state_dict().items()}, module, tmp_path / "w.pt")
    require_same(module, net)


def test_lazy_modules_are_what_they_stand_for(tmp_path: Path) -> None:
    module = Net(is_lazy=True)
    load(state(), module, tmp_path / "w.pt")
    assert repr(module) == repr(trained())
    assert [vars(one).keys() for one in module.modules()] == [vars(one).keys() for one in trained().modules()]
    require_same(module, trained())


def lazy_without_weights() -> nn.Module:
    return Net(is_lazy=True)


def test_a_lazy_module_without_weights_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"whose 'c\.weight' has no values yet \(a lazy module\); give model\.checkpoint"
    ):
        load_model(chosen("model", "module", _target_=f"{__name__}.lazy_without_weights"))


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self._register_load_state_dict_pre_hook(self.rename)

    def rename(self, own: Names, prefix: str, *_: object) -> None:
        for name in [name for name in own if name.startswith(f"{prefix}conv.")]:
            own[name.replace("conv.", "c.")] = own.pop(name)


class Overridden(Net):
    def _load_from_state_dict(self, own: Names, prefix: str, *rest: Any) -> None:
        for name in [name for name in own if name.startswith(f"{prefix}conv.")]:
            values = own.pop(name)
            own[name.replace("conv.", "c.")] = values.squeeze(2) if values.ndim == 4 else values
        super()._load_from_state_dict(own, prefix, *rest)


@pytest.mark.parametrize("own", [Hooked, Overridden])
@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod."])
@pytest.mark.parametrize("is_old", [True, False])
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_a_loading_of_its_own(own: type[Net], prefix: str, is_old: bool, is_wrapped: bool, tmp_path: Path) -> None:
    module: nn.Module = own()
    if is_wrapped:
        module, module.net = Mine(), module  # type: ignore[assignment]
    names = renamed("c.", "conv.") if is_old else state()
    load({prefix + name: values for name, values in names.items()}, module, tmp_path / "w.pt")
    require_same(module, trained())


def test_a_loading_of_its_own_may_change_shapes_and_leaves_the_module_where_it_refuses(tmp_path: Path) -> None:
    names, module = renamed("c.", "conv."), Overridden()
    before = {name: values.clone() for name, values in module.state_dict().items()}
    with pytest.raises(UserError, match=r"missing: .*not expected: .*zzz"):
        load({**names, "zzz": torch.ones(1)}, module, tmp_path / "w.pt")
    assert all(torch.equal(values, before[name]) for name, values in module.state_dict().items())
    load({**names, "conv.weight": names["conv.weight"].unsqueeze(2)}, module, tmp_path / "w.pt")
    require_same(module, trained())


class Versioned(nn.Linear):
    """Weights of before version 2 were kept with the other sign."""

    _version = 2

    def _load_from_state_dict(self, own: Names, prefix: str, metadata: Names, *rest: Any) -> None:
        if metadata.get("version", 0) < 2:
            own[f"{prefix}weight"] = -own[f"{prefix}weight"]
        super()._load_from_state_dict(own, prefix, metadata, *rest)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"scale": self.in_features}

    def set_extra_state(self, extra: Any) -> None:
        self.scale = extra["scale"]


@pytest.mark.parametrize("wrap", [lambda net: net, nn.Sequential, nn.DataParallel])
@pytest.mark.parametrize("is_whole", [False, True])
def test_versions_of_modules(wrap: Any, is_whole: bool, tmp_path: Path) -> None:
    saved, module = Versioned(3, 2), Versioned(3, 2)
    load(wrap(saved) if is_whole else wrap(saved).state_dict(), module, tmp_path / "w.pt")
    assert torch.equal(module.weight, saved.weight)
    torch.save({"model": state(), "model_ema": saved if is_whole else saved.state_dict()}, tmp_path / "w.pt")
    weights = read_checkpoint(tmp_path / "w.pt", prefix="model_ema.")
    assert isinstance(weights, Weights)
    load_weights(module, weights, tmp_path / "w.pt", "model_ema.")
    assert torch.equal(module.weight, saved.weight)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.Sequential, nn.DataParallel])
def test_further_state_of_modules(wrap: Any, tmp_path: Path) -> None:
    saved, module = Extra(3, 2), Extra(3, 2)
    load(wrap(saved).state_dict(), module, tmp_path / "w.pt")
    assert torch.equal(module.weight, saved.weight)
    assert module.scale == 3


def test_several_sets_that_fit_are_said(tmp_path: Path) -> None:
    module = Net()
    fitted = load({"model": state(), "model_ema": twice(), "optimizer": {"state": {}}}, module, tmp_path / "w.pt")
    assert (
        "those under 'model' are taken, not those under 'model_ema' (model.prefix=model_ema. takes" in fitted.notes[0]
    )
    require_same(module, trained())
    fitted = load({"model": {"w": torch.ones(1)}, "net_g": state()}, module, tmp_path / "w.pt")
    assert "the weights under 'net_g' are taken, the only ones that fit" in fitted.notes[0]


def test_a_pickle_of_modules_within_each_other_ends(tmp_path: Path) -> None:
    """Each holds the next one twice: 2 to the power of 30 names."""
    modules = [nn.Module() for _ in range(30)]
    for outer, inner in itertools.pairwise(modules):
        outer._modules = {"a": inner, "b": inner}
    modules[-1].weight = nn.Parameter(torch.ones(1))
    torch.save(modules[0], tmp_path / "w.pt")
    with pytest.raises(UserError, match="without end"):
        read_checkpoint(tmp_path / "w.pt")
