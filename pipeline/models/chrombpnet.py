"""ChromBPNet: a BPNet of accessibility, and one of the enzyme's bias that was trained before it.

Checkpoints are those of bpnet-lite: one file for each part, or one that holds both. Attributed is the accessibility
alone, as is usual, or both together.

Reference: Pampari et al. 2024, https://doi.org/10.1101/2024.12.25.630221.
Shape legend: N sequences, L positions, S strands (outputs), W positions of the profile.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.bpnet import (
    BPNET,
    CHROMBPNET,
    BPNet,
    bpnet_from_state,
    bpnet_of,
    is_pickled,
    load_bpnet,
    parts_of,
    read_shell,
)
from pipeline.models.checkpoint import read_checkpoint
from pipeline.models.fitting import Fitted, find_prefix

_PART = "model.checkpoint={} holds the accessibility alone; add model.bias=... with the BPNet of the bias"


class ChromBPNet(nn.Module):
    """Both parts together: one-hot (N, 4, L) -> profile logits (N, S, W), log counts (N, 1).

    The logits are the sum of those of the parts, the counts log(exp(accessibility) + exp(bias)). Control tracks go to
    those of the parts that were trained with some.
    """

    def __init__(self, accessibility: BPNet, bias: BPNet) -> None:
        super().__init__()
        self.accessibility = accessibility
        self.bias = bias

    def forward(self, x: Tensor, control: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Profile logits (N, S, W) and log counts (N, 1)."""
        parts = [part for part in (self.accessibility, self.bias) if part.n_control_tracks] or [self.accessibility]
        profile, counts = self.accessibility(x, control if self.accessibility in parts else None)
        bias_profile, bias_counts = self.bias(x, control if self.bias in parts else None)
        return profile + bias_profile, torch.logsumexp(torch.stack([counts, bias_counts]), dim=0)


def load_chrombpnet(
    path: Path, bias: Path | None, with_bias: bool, init: Mapping[str, Any], prefix: str | None = None
) -> tuple[nn.Module, Fitted]:
    """The accessibility's BPNet, or that and the bias's together.

    Args:
        path: of the accessibility, or of both.
        bias: of the bias, where `path` is not of both.
        with_bias: whether the bias is part of what is attributed.
        init: arguments of `BPNet`; with state dicts, trimming is needed, and goes for both.
        prefix: of the names of the accessibility's state dict.

    Raises:
        UserError: a file that is no BPNet, parts that do not fit each other, or no bias where it is wanted.
    """
    shared = {name: value for name, value in init.items() if name == "trimming"}
    accessibility, own_bias, fitted = _parts(path, init, shared, prefix, with_bias)
    if not with_bias:
        return accessibility, fitted
    if own_bias is not None and bias is not None:
        raise UserError(f"model.checkpoint={path} holds a bias of its own; leave model.bias={bias} out")
    if own_bias is None and bias is None:
        raise UserError(_PART.format(path))
    if own_bias is None:
        assert bias is not None
        own_bias, _ = load_bpnet(bias, shared)
    _require_alike(accessibility, own_bias, path, bias)
    return ChromBPNet(accessibility, own_bias), fitted


def _parts(
    path: Path, init: Mapping[str, Any], shared: Mapping[str, Any], prefix: str | None, with_bias: bool
) -> tuple[BPNet, BPNet | None, Fitted]:
    """The accessibility of a file, and its bias where it holds one and that is wanted."""
    if is_pickled(path, CHROMBPNET):
        parts = parts_of(read_shell(path), path)
        bias = bpnet_of(parts["bias"], path, shared) if with_bias else None
        return bpnet_of(parts["accessibility"], path, init), bias, Fitted()
    if is_pickled(path, BPNET):
        return _without_bias(load_bpnet(path, init))
    state = read_checkpoint(path)
    assert isinstance(state, dict)  # an untrusted module was refused
    both = find_prefix(state, "accessibility.iconv.weight")
    if prefix is None and len(both) == 1:
        inner = both[0]
        accessibility, fitted = bpnet_from_state(state, path, init, f"{inner}accessibility.")
        bias = bpnet_from_state(state, path, shared, f"{inner}bias.")[0] if with_bias else None
        return accessibility, bias, fitted
    return _without_bias(bpnet_from_state(state, path, init, prefix))


def _without_bias(loaded: tuple[BPNet, Fitted]) -> tuple[BPNet, None, Fitted]:
    return loaded[0], None, loaded[1]


def _require_alike(accessibility: BPNet, bias: BPNet, path: Path, bias_path: Path | None) -> None:
    for what, a, b in (
        ("trims {} positions from either end", accessibility.trimming, bias.trimming),
        ("has {} strands", accessibility.fconv.out_channels, bias.fconv.out_channels),
    ):
        if a != b:
            raise UserError(
                f"the accessibility of {path} {what.format(a)}, the bias of {bias_path or path} {what.format(b)}; "
                f"they do not belong together"
            )
