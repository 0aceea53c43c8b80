"""BPNet: a dilated residual convolutional network that predicts a profile and a total count.

The layout and the parameter names are those of bpnet-lite, so that its models load. Its usual checkpoint, the whole
module pickled, is read without running anything in it (see shells.py); any name that is not bpnet-lite's is refused.
Files that chrombpnet wrote with Keras become the same module (see keras_files/bpnets.py).

Reference: Avsec et al. 2021, https://doi.org/10.1038/s41588-021-00782-6.
Shape legend: N sequences, L positions, F filters, C control tracks, S strands (outputs), W = L - 2 * trimming.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.messages.errors import UserError
from pipeline.models.checkpoint import checkpoint_path, read_checkpoint
from pipeline.models.family import ModelFamily, Raw
from pipeline.models.fitting import Fitted, find_prefix, load_weights, without_prefix
from pipeline.models.formats import is_safetensors
from pipeline.models.keras_files.bpnets import KerasBPNet, read_bpnets
from pipeline.models.keras_files.files import is_keras
from pipeline.models.shells import (
    BPNET,
    CHROMBPNET,
    UNREADABLE,
    Shell,
    children_of,
    names_in,
    nothing,
    read_with,
    require_tensors,
    tensors_of,
)

_RESIDUAL = re.compile(r"rconvs\.(\d+)\.weight")


@dataclass
class BPNetFamily(ModelFamily):
    """A BPNet of bpnet-lite."""

    name: str = "bpnet"
    head: Any = "counts"

    def read(self, checkpoint: str | None) -> Raw:
        path = checkpoint_path(checkpoint)
        model, fitted = load_bpnet(path, self.init, self.prefix)
        return Raw(model, path, self.init, fitted=fitted)


class BPNet(nn.Module):
    """One-hot (N, 4, L), and control tracks (N, C, L) if any -> profile logits (N, S, W), log counts (N, 1).

    Without control tracks given, a model that was trained with some takes them as zero.
    """

    def __init__(
        self,
        n_filters: int = 64,
        n_layers: int = 8,
        n_outputs: int = 2,
        n_control_tracks: int = 0,
        trimming: int | None = None,
        profile_output_bias: bool = True,
        count_output_bias: bool = True,
        first_kernel: int = 21,
        profile_kernel: int = 75,
        count_margin: int = 37,
    ) -> None:
        """Args:
        n_filters: channels of every inner layer.
        n_layers: dilated layers; layer i (from 1) has dilation 2 ** i.
        n_outputs: profiles, usually one per strand.
        n_control_tracks: tracks joined to the last layer.
        trimming: positions left out of the profile at either end; None is 2 ** n_layers.
        count_margin: positions at either end of the profile that count for the total too.
        """
        super().__init__()
        self.n_layers, self.n_control_tracks = n_layers, n_control_tracks
        self.trimming = 2**n_layers if trimming is None else trimming
        self.count_margin = count_margin
        self.iconv = nn.Conv1d(4, n_filters, first_kernel, padding=first_kernel // 2)
        self.irelu = nn.ReLU()
        self.rconvs = nn.ModuleList(
            nn.Conv1d(n_filters, n_filters, 3, padding=2**i, dilation=2**i) for i in range(1, n_layers + 1)
        )
        self.rrelus = nn.ModuleList(nn.ReLU() for _ in range(n_layers))
        n_joined, padding = n_filters + n_control_tracks, profile_kernel // 2
        self.fconv = nn.Conv1d(n_joined, n_outputs, profile_kernel, padding=padding, bias=profile_output_bias)
        self.linear = nn.Linear(n_filters + (n_control_tracks > 0), 1, bias=count_output_bias)

    def forward(self, x: Tensor, control: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Profile logits (N, S, W) and log counts (N, 1) of one-hot sequences (N, 4, L)."""
        start, end = self.trimming, x.shape[-1] - self.trimming
        if end <= start:
            raise ValueError(
                f"sequences of length {x.shape[-1]} leave nothing of the profile after {self.trimming} positions are "
                f"trimmed at either end; this BPNet needs more than {2 * self.trimming}"
            )
        if control is None and self.n_control_tracks:
            control = x.new_zeros(x.shape[0], self.n_control_tracks, x.shape[-1])
        if control is not None and control.shape[1:] != (self.n_control_tracks, x.shape[-1]):
            raise ValueError(_wrong_tracks(tuple(control.shape), self.n_control_tracks, x.shape[-1]))
        hidden = self.irelu(self.iconv(x))
        for conv, relu in zip(self.rconvs, self.rrelus, strict=True):
            hidden = hidden + relu(conv(hidden))
        with_control = hidden if control is None else torch.cat([hidden, control], dim=1)
        profile = self.fconv(with_control)[:, :, start:end]

        window = slice(max(start - self.count_margin, 0), end + self.count_margin)
        summary = hidden[:, :, window].mean(dim=2)
        if control is not None:
            total = control[:, :, window].sum(dim=(1, 2)).unsqueeze(-1)
            summary = torch.cat([summary, torch.log1p(total)], dim=-1)
        return profile, self.linear(summary)


def _wrong_tracks(shape: tuple[int, ...], n_tracks: int, length: int) -> str:
    """What is wrong with control tracks of a shape that the model does not take."""
    if n_tracks == 0:
        return "this BPNet was trained without control tracks; leave dataset.args out"
    return f"control tracks have the shape {shape}; this BPNet takes (N, {n_tracks}, {length}) (dataset.args)"


def load_bpnet(path: Path, init: Mapping[str, Any], prefix: str | None = None) -> tuple[BPNet, Fitted]:
    """A BPNet from a checkpoint of bpnet-lite or chrombpnet, or from a state dict (then `init` must say the trimming).

    Args:
        path: a whole module pickled by bpnet-lite, a file of Keras, or a state dict (torch or safetensors).
        init: arguments of `BPNet` that override those in the file; the weights give the sizes.
        prefix: of a state dict's names; None: found, where there is one.

    Raises:
        UserError: the file is not a BPNet, or holds unknown names.
    """
    if is_pickled(path, BPNET):
        shell = read_shell(path)
        if not isinstance(shell, _BPNetShell):
            both = isinstance(shell, _ChromBPNetShell)
            what = "a ChromBPNet; use model=chrombpnet" if both else "a module that holds a BPNet, not a BPNet itself"
            raise UserError(f"{path} holds {what}")
        return bpnet_of(shell, path, init), Fitted()
    if is_keras(path):
        found, stored_as = read_bpnets(path)
        if len(found) > 1:
            raise UserError(f"{path} holds a ChromBPNet; use model=chrombpnet")
        (only,) = found.values()
        return bpnet_of_keras(only, path, init), Fitted(stored_as=stored_as)
    content = read_checkpoint(path, prefix=prefix)
    assert isinstance(content, dict)  # an untrusted module was refused
    return bpnet_from_state(content, path, init, prefix)


def bpnet_of(shell: Shell, path: Path, init: Mapping[str, Any]) -> BPNet:
    """The BPNet of a shell. Raises UserError where it is not one."""
    state = dict(tensors_of(shell))
    require_tensors(state.values(), path)
    settings = _sizes(state, path)
    _require_layout(shell, path)
    trimming = shell.__dict__.get("trimming")
    if not isinstance(trimming, int):
        raise UserError(f"{path} does not say how many positions are trimmed; is it of bpnet-lite?")
    model = _made({**settings, "trimming": trimming, **init}, path)
    load_weights(model, state, path, prefix="")
    return model


def bpnet_of_keras(found: KerasBPNet, path: Path, init: Mapping[str, Any]) -> BPNet:
    """The BPNet that a file of Keras describes."""
    return bpnet_from_state(found.state, path, {**found.settings, **init}, prefix="")[0]


def bpnet_from_state(
    state: Mapping[str, Tensor], path: Path, init: Mapping[str, Any], prefix: str | None = None
) -> tuple[BPNet, Fitted]:
    """A BPNet from a state dict; arguments and errors as of `load_bpnet`."""
    if prefix is None:
        found = find_prefix(state, "iconv.weight")
        if len(found) > 1:
            raise UserError(f"{path} holds several BPNets, under {', '.join(found)}; choose one with model.prefix=...")
        prefix = found[0] if found else ""
    settings = _sizes(without_prefix(state, prefix, path), path)
    if "trimming" not in init:
        raise UserError(
            f"{path} is a state dict, which does not say how many positions BPNet trims from either end; "
            f"give it: model.init.trimming=557 for 2114 bp in and 1000 out"
        )
    model = _made({**settings, **init}, path)
    return model, load_weights(model, state, path, prefix)


def _made(settings: Mapping[str, Any], path: Path) -> BPNet:
    try:
        with torch.device("meta"):
            hollow = BPNet(**settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model.init does not fit BPNet: {error}") from None
    require_tensors(hollow.parameters(), path, "the BPNet of these sizes")
    return BPNet(**settings)


def _sizes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The arguments of `BPNet` that the shapes of its weights determine."""
    needed = ["iconv.weight", "fconv.weight", "linear.weight"]
    missing = [name for name in needed if name not in state]
    if missing:
        raise UserError(f"{path} is not a BPNet: it has no {', '.join(missing)}; for another model use model=module")
    flat = [name for name in needed[:2] if state[name].ndim != 3]
    if flat:
        raise UserError(
            f"{path} is not a BPNet: {flat[0]} has shape {tuple(state[flat[0]].shape)}; expected three axes"
        )
    n_filters, _, first_kernel = state["iconv.weight"].shape
    n_outputs, n_joined, profile_kernel = state["fconv.weight"].shape
    return {
        "n_filters": n_filters,
        "n_layers": sum(_RESIDUAL.fullmatch(name) is not None for name in state),
        "n_outputs": n_outputs,
        "n_control_tracks": n_joined - n_filters,
        "profile_output_bias": "fconv.bias" in state,
        "count_output_bias": "linear.bias" in state,
        "first_kernel": first_kernel,
        "profile_kernel": profile_kernel,
    }


def _require_layout(shell: Shell, path: Path) -> None:
    """Raises UserError where a pickled module's convolutions are not placed as those of `BPNet`."""
    children = children_of(shell)
    convolutions = {name: children[name] for name in ("iconv", "fconv")}
    convolutions |= {f"rconvs.{name}": conv for name, conv in children_of(children.get("rconvs", Shell())).items()}
    for name, conv in convolutions.items():
        layer = re.fullmatch(r"rconvs\.(\d{1,3})", name)  # other names do not fit
        dilation = 2 ** (int(layer[1]) + 1) if layer else 1
        width = dict(tensors_of(conv))["weight"].shape[-1]
        expected = {"padding": width // 2 * dilation, "dilation": dilation, "stride": 1, "groups": 1}
        for setting, value in expected.items():
            found = conv.__dict__.get(setting, value)
            if found not in (value, (value,)):
                raise UserError(f"{path} is not a BPNet: {name} has {setting} {found}; expected {value}")


class _BPNetShell(Shell):
    """Stands for a pickled BPNet."""


class _ChromBPNetShell(Shell):
    """Stands for a pickled ChromBPNet, which holds two."""


# Names in bpnet-lite's checkpoints, and what stands for them; torch makes the tensors.
_STAND_INS: dict[str, Any] = {
    BPNET: _BPNetShell,
    CHROMBPNET: _ChromBPNetShell,
    "bpnetlite.chrombpnet._Exp": Shell,
    "bpnetlite.chrombpnet._Log": Shell,
    "bpnetlite.logging.Logger": Shell,
    "torch.nn.modules.conv.Conv1d": Shell,
    "torch.nn.modules.linear.Linear": Shell,
    "torch.nn.modules.activation.ReLU": Shell,
    "torch.nn.modules.container.ModuleList": Shell,
    "numpy.dtype": Shell,
    "numpy.ndarray": Shell,
    "numpy.core.multiarray._reconstruct": Shell,
    "numpy._core.multiarray._reconstruct": Shell,
    "numpy.core.multiarray.scalar": nothing,
    "numpy._core.multiarray.scalar": nothing,
}


def is_pickled(path: Path, name: str) -> bool:
    """Whether the file is a pickle that names this class."""
    return not is_safetensors(path) and name in names_in(path)


def read_shell(path: Path) -> Shell:
    """The module in a checkpoint of bpnet-lite, as a shell. Raises UserError where it is damaged or has other names."""
    foreign = sorted(names_in(path) - set(_STAND_INS))
    if foreign:
        raise UserError(
            f"{path} holds names that a BPNet does not have: {', '.join(foreign[:5])}; it was not read. "
            f"Write the weights alone, torch.save(model.state_dict(), ...)"
        )
    try:
        content = read_with(path, _STAND_INS)
    except UserError:
        raise
    except (pickle.UnpicklingError, *UNREADABLE) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as a BPNet: {reason}") from None
    if not isinstance(content, Shell):
        raise UserError(f"{path} holds a {type(content).__name__}, not a BPNet")
    return content


def parts_of(shell: Shell, path: Path) -> dict[str, Shell]:
    """The two BPNets of a pickled ChromBPNet: accessibility and bias. Raises UserError where it is none."""
    children = children_of(shell)
    parts: dict[str, Shell] = {name: child for name, child in children.items() if isinstance(child, _BPNetShell)}
    absent = {"accessibility", "bias"} - parts.keys()
    if not isinstance(shell, _ChromBPNetShell) or absent:
        raise UserError(f"{path} is not a ChromBPNet: it holds no BPNet called {', '.join(sorted(absent)) or 'so'}")
    return parts
