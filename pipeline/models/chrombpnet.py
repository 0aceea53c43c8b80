"""ChromBPNet: a BPNet of accessibility, and one of the enzyme's bias that was trained before it.

Checkpoints are those of bpnet-lite, or of chrombpnet itself: one file for each part, or one that holds both. Attributed
is the accessibility alone, as is usual, or both together.

Reference: Pampari et al. 2024, https://doi.org/10.1101/2024.12.25.630221.
Shape legend: N sequences, L positions, S strands (outputs), W positions of the profile.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.settings import setting
from pipeline.messages.errors import UserError
from pipeline.models.bpnet import (
    BPNet,
    bpnet_from_state,
    bpnet_of,
    bpnet_of_keras,
    is_pickled,
    load_bpnet,
    parts_of,
    read_shell,
)
from pipeline.models.checkpoint import checkpoint_path, read_checkpoint
from pipeline.models.family import ModelFamily, Raw
from pipeline.models.fitting import Fitted, find_prefix
from pipeline.models.folds import file_names, fold_paths
from pipeline.models.keras_files.bpnets import ACCESSIBILITY, BIAS, read_bpnets
from pipeline.models.keras_files.files import is_keras
from pipeline.models.shells import BPNET, CHROMBPNET

_PART = "model.checkpoint={} holds the accessibility alone; add model.bias=... with the BPNet of the bias"


@dataclass
class ChromBPNetFamily(ModelFamily):
    """ChromBPNet's parts: the accessibility alone, or with the bias."""

    name: str = "chrombpnet"
    head: Any = "counts"
    bias: Any = setting(
        "the BPNet of the bias, or one for each fold", None, fingerprint="resolved", is_file=True, is_plain=True
    )
    with_bias: bool = setting(
        "attribute accessibility and bias together, not accessibility alone", False, is_plain=True
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.bias and not self.with_bias:
            yield (
                "model.bias and model.with_bias=false contradict each other; add model.with_bias=true, or leave "
                "model.bias out to attribute the accessibility alone"
            )

    def read(self, checkpoint: str | None) -> Raw:
        return self._read(checkpoint, self.bias or None)

    def read_folds(self, checkpoints: Sequence[str | None]) -> list[Raw]:
        """The module of each fold, with a bias of its own or the same for all."""
        biases = fold_paths(self.bias, "model.bias") if self.bias else [None]
        if len(biases) not in (1, len(checkpoints)):
            raise UserError(
                f"model.bias names {len(biases)} files and model.checkpoint {len(checkpoints)}; give one bias for all "
                f"folds, or one for each"
            )
        each = biases if len(biases) == len(checkpoints) else biases * len(checkpoints)
        return [self._read(checkpoint, bias) for checkpoint, bias in zip(checkpoints, each, strict=True)]

    def _read(self, checkpoint: str | None, bias: str | None) -> Raw:
        path, bias_path = checkpoint_path(checkpoint), checkpoint_path(bias) if bias else None
        module, fitted = load_chrombpnet(path, bias_path, self.with_bias, self.init, self.prefix)
        return Raw(module, path, self.init, fitted=fitted)

    def described(self) -> dict[str, Any]:
        biases = [Path(str(path)) for path in fold_paths(self.bias, "model.bias")] if self.bias else [None]
        return {"with_bias": self.with_bias, "bias": file_names([*dict.fromkeys(biases)])}


class ChromBPNet(nn.Module):
    """Both parts together: one-hot (N, 4, L) -> profile logits (N, S, W), log counts (N, 1).

    The logits are the sum of those of the parts, the counts log(exp(accessibility) + exp(bias)). Control tracks go to
    those of the parts that were trained with some.
    """

    def __init__(self, accessibility: BPNet, bias: BPNet) -> None:
        super().__init__()
        self.accessibility, self.bias = accessibility, bias

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
        with_bias: whether the bias is attributed too.
        init: arguments of `BPNet`; state dicts need trimming, the same for both.
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
        own_bias, bias_fitted = load_bpnet(bias, shared)
        fitted = replace(fitted, notes=(*fitted.notes, *bias_fitted.all_notes(bias)))
    _require_alike(accessibility, own_bias, path, bias)
    return ChromBPNet(accessibility, own_bias), fitted


def _parts(
    path: Path, init: Mapping[str, Any], shared: Mapping[str, Any], prefix: str | None, with_bias: bool
) -> tuple[BPNet, BPNet | None, Fitted]:
    """The accessibility in a file, and its bias where there is one and `with_bias` is true."""
    if is_pickled(path, CHROMBPNET):
        parts = parts_of(read_shell(path), path)
        bias = bpnet_of(parts["bias"], path, shared) if with_bias else None
        return bpnet_of(parts["accessibility"], path, init), bias, _bias_noted(Fitted(), path, with_bias)
    if is_pickled(path, BPNET):
        model, fitted = load_bpnet(path, init)
        return model, None, fitted
    if is_keras(path):
        found, stored_as = read_bpnets(path)
        if ACCESSIBILITY not in found:
            raise UserError(
                f"{path} holds the bias alone, by the names of its layers; attribute it with model=bpnet, or give it "
                f"as model.bias, with model.with_bias=true"
            )
        model, fitted = bpnet_of_keras(found[ACCESSIBILITY], path, init), Fitted(stored_as=stored_as)
        if BIAS not in found:
            return model, None, fitted
        bias = bpnet_of_keras(found[BIAS], path, shared) if with_bias else None
        return model, bias, _bias_noted(fitted, path, with_bias)
    state = read_checkpoint(path, prefix=prefix)
    assert isinstance(state, dict)  # an untrusted module was refused
    both = find_prefix(state, "accessibility.iconv.weight")
    if prefix is None and len(both) == 1:
        inner = both[0]
        accessibility, fitted = bpnet_from_state(state, path, init, f"{inner}accessibility.")
        bias = bpnet_from_state(state, path, shared, f"{inner}bias.")[0] if with_bias else None
        return accessibility, bias, _bias_noted(fitted, path, with_bias)
    model, fitted = bpnet_from_state(state, path, init, prefix)
    return model, None, fitted


def _bias_noted(fitted: Fitted, path: Path, with_bias: bool) -> Fitted:
    """With a line about the bias in a file where it is left out."""
    line = f"{path} holds a bias, which is left out; model.with_bias=true attributes both together"
    return fitted if with_bias else replace(fitted, notes=(*fitted.notes, line))


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
