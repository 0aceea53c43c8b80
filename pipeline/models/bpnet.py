"""BPNet: a dilated residual convolutional network that predicts a profile and a total count.

The layout and the parameter names are those of bpnet-lite, so that its models load. Its usual checkpoint is the whole
module, pickled; that one is read here without running anything in it: every class it names is replaced by an inert
shell that only holds attributes, and the weights and sizes are taken from these. Any other name in the file is refused.

Reference: Avsec et al. 2021, https://doi.org/10.1038/s41588-021-00782-6.
Shape legend: N sequences, L positions, F filters, C control tracks, S strands (outputs), W = L - 2 * trimming.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from pipeline.errors import UserError
from pipeline.models.checkpoint import is_safetensors, load_weights, read_checkpoint

_MODULE_CLASS = "bpnetlite.bpnet.BPNet"
_RESIDUAL = re.compile(r"rconvs\.(\d+)\.weight")


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
    ) -> None:
        """Args:
        n_filters: channels of every inner layer.
        n_layers: dilated layers; layer i (from 1) has dilation 2 ** i.
        n_outputs: profiles, usually one per strand.
        n_control_tracks: tracks joined to the last layer.
        trimming: positions left out of the profile at either end; None is 2 ** n_layers.
        profile_output_bias, count_output_bias: whether the two heads have a bias.
        first_kernel, profile_kernel: widths of the first and the last convolution.
        """
        super().__init__()
        self.n_layers = n_layers
        self.n_control_tracks = n_control_tracks
        self.trimming = 2**n_layers if trimming is None else trimming
        self.iconv = nn.Conv1d(4, n_filters, first_kernel, padding=first_kernel // 2)
        self.irelu = nn.ReLU()
        self.rconvs = nn.ModuleList(
            nn.Conv1d(n_filters, n_filters, 3, padding=2**i, dilation=2**i) for i in range(1, n_layers + 1)
        )
        self.rrelus = nn.ModuleList(nn.ReLU() for _ in range(n_layers))
        self.fconv = nn.Conv1d(
            n_filters + n_control_tracks,
            n_outputs,
            profile_kernel,
            padding=profile_kernel // 2,
            bias=profile_output_bias,
        )
        self.linear = nn.Linear(n_filters + (n_control_tracks > 0), 1, bias=count_output_bias)

    def forward(self, x: Tensor, control: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Profile logits (N, S, W) and log counts (N, 1) of one-hot sequences (N, 4, L)."""
        start, end = self.trimming, x.shape[-1] - self.trimming
        if end <= start:
            raise ValueError(
                f"sequences of length {x.shape[-1]} leave nothing of the profile after {self.trimming} positions are "
                f"trimmed at either end; this BPNet needs more than {2 * self.trimming} (dataset.length)"
            )
        if control is None and self.n_control_tracks:
            control = x.new_zeros(x.shape[0], self.n_control_tracks, x.shape[-1])
        hidden = self.irelu(self.iconv(x))
        for conv, relu in zip(self.rconvs, self.rrelus, strict=True):
            hidden = hidden + relu(conv(hidden))
        with_control = hidden if control is None else torch.cat([hidden, control], dim=1)
        profile = self.fconv(with_control)[:, :, start:end]

        margin = self.fconv.kernel_size[0] // 2
        window = slice(max(start - margin, 0), end + margin)
        summary = hidden[:, :, window].mean(dim=2)
        if control is not None:
            total = control[:, :, window].sum(dim=(1, 2)).unsqueeze(-1)
            summary = torch.cat([summary, torch.log1p(total)], dim=-1)
        return profile, self.linear(summary)


def load_bpnet(path: Path, init: Mapping[str, Any]) -> BPNet:
    """A BPNet from a bpnet-lite checkpoint, or from a state dict (then `init` must say the trimming).

    Args:
        path: a whole module pickled by bpnet-lite, or a state dict (torch or safetensors).
        init: arguments of `BPNet` that override what the file says; sizes are read from the weights.

    Raises:
        UserError: the file is not a BPNet, or holds names that are not known to be harmless.
    """
    attributes: dict[str, Any] = {}
    if not is_safetensors(path) and _MODULE_CLASS in _names_in(path):
        shell = _read_shells(path)
        attributes, state = shell.__dict__, dict(_tensors(shell))
    else:
        content = read_checkpoint(path)
        assert isinstance(content, dict)  # an untrusted module was refused
        state = content
    settings = _sizes(state, path)
    trimming = attributes.get("trimming")
    if trimming is None and "trimming" not in init:
        raise UserError(
            f"{path} is a state dict, which does not say how many positions BPNet trims from either end; "
            f"give it: model.init.trimming=557 for 2114 bp in and 1000 out"
        )
    try:
        model = BPNet(**{**settings, "trimming": trimming, **init})
    except TypeError as error:
        raise UserError(f"model.init does not fit BPNet: {error}") from None
    load_weights(model, state, path)
    return model


def _sizes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The arguments of `BPNet` that the shapes of its weights determine."""
    needed = ["iconv.weight", "fconv.weight", "linear.weight"]
    missing = [name for name in needed if name not in state]
    if missing:
        raise UserError(f"{path} is not a BPNet: it has no {', '.join(missing)}; for another model use model=module")
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


class _Shell:
    """Stands for any object of the file: takes whatever attributes it is given, and does nothing."""

    def __init__(self, *_: object) -> None:
        """Constructor arguments are not wanted: only attributes hold weights and sizes."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _BPNetShell(_Shell):
    """Stands for the pickled BPNet itself."""


def _nothing(*_: object) -> None:
    """Stands for any function of the file."""


# What bpnet-lite's checkpoints hold, and what stands for it when they are read. Tensors are torch's own business.
_STAND_INS: dict[str, Any] = {
    _MODULE_CLASS: _BPNetShell,
    "bpnetlite.logging.Logger": _Shell,
    "torch.nn.modules.conv.Conv1d": _Shell,
    "torch.nn.modules.linear.Linear": _Shell,
    "torch.nn.modules.activation.ReLU": _Shell,
    "torch.nn.modules.container.ModuleList": _Shell,
    "numpy.dtype": _Shell,
    "numpy.ndarray": _Shell,
    "numpy.core.multiarray._reconstruct": _Shell,
    "numpy._core.multiarray._reconstruct": _Shell,
    "numpy.core.multiarray.scalar": _nothing,
    "numpy._core.multiarray.scalar": _nothing,
}


def _names_in(path: Path) -> set[str]:
    """The names in a checkpoint beyond those that torch allows, found without executing it."""
    try:
        return set(get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return set()  # not such a file at all: reading it as a state dict says what is wrong with it


def _read_shells(path: Path) -> _BPNetShell:
    foreign = sorted(_names_in(path) - set(_STAND_INS))
    if foreign:
        raise UserError(
            f"{path} holds names that a BPNet has no need of: {', '.join(foreign[:5])}; it was not read. "
            f"Write the weights alone, torch.save(model.state_dict(), ...)"
        )
    try:
        with safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()]), path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a BPNet: {str(error).splitlines()[0]}") from None
    if not isinstance(content, _BPNetShell):
        raise UserError(f"{path} holds a {type(content).__name__}, not a BPNet")
    return content


def _tensors(shell: _Shell, prefix: str = "") -> list[tuple[str, Tensor]]:
    """The state dict of a module that is only a shell: its parameters and buffers, and those of its children."""
    attributes = shell.__dict__
    own = {**attributes.get("_parameters", {}), **attributes.get("_buffers", {})}
    found = [(prefix + name, values.detach()) for name, values in own.items() if isinstance(values, Tensor)]
    for name, child in attributes.get("_modules", {}).items():
        if isinstance(child, _Shell):
            found += _tensors(child, f"{prefix}{name}.")
    return found
