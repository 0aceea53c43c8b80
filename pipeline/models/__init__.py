"""Models ready to be attributed: weights loaded without running code from files, output selected, head applied.

A model may be several, its folds: the same architecture with other weights, of which the mean is attributed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlshap_core.heads import NOT_SUMMING
from dlshap_core.heads import head as make_head
from pipeline.errors import UserError
from pipeline.models.bpnet import load_bpnet
from pipeline.models.checkpoint import checkpoint_path, load_weights, read_checkpoint, require_finite
from pipeline.models.example import ExampleNet
from pipeline.models.folds import fold_labels, fold_paths, require_alike
from pipeline.models.hashing import code_hash, weights_hash
from pipeline.models.module import load_module, plain_arguments
from pipeline.models.outputs import SelectedOutput, SingleOutput

__all__ = ["LoadedModel", "load_model"]

EXAMPLE_CHECKPOINT = Path(__file__).parent.parent / "example" / "model.safetensors"
DEFAULT_HEADS = {"bpnet": "counts", "example": "none", "module": "none"}


@dataclass(frozen=True)
class LoadedModel:
    """A model as the engine takes it, and what identifies it.

    Attributes:
        folds: one module, or one for each fold; eval, on the CPU, float32, output selection and head applied:
            (N, 4, L) -> (N, T).
        labels: of the folds: the names of their files, or numbers.
        weights_hash: sha256 of the weights, in hexadecimal; of those of all folds, in order.
        code_hash: sha256 of the code that runs on them, in hexadecimal.
        description: name, head, output, checkpoint (file names), target (class), trust_pickle (whether it was needed).
        sums_to_delta: whether attributions sum to the difference of predictions under this head.
    """

    folds: tuple[nn.Module, ...]
    labels: tuple[str, ...]
    weights_hash: str
    code_hash: str
    description: dict[str, Any]
    sums_to_delta: bool

    @property
    def module(self) -> nn.Module:
        """The first fold, which is like the others in all but its weights."""
        return self.folds[0]


class _WithHead(nn.Module):
    """A model, then its head."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, *args: Tensor) -> Tensor:
        return self.head(self.model(*args))


def load_model(model: Any) -> LoadedModel:
    """The model that a configuration describes.

    Args:
        model: has `name` (example, bpnet or module), `checkpoint` (a path, a list of paths or a pattern with *, ? or
            [...]: one for each fold), `head`, `output`, `init`, `trust_pickle` and, for module, `_target_`.

    Raises:
        UserError: a ValueError; a checkpoint that is missing, damaged, not trusted or does not fit, folds that differ
            in more than their weights, a target that cannot be made, an unknown head.
    """
    if model.name not in DEFAULT_HEADS:
        raise UserError(f"model.name={model.name!r} is not a model; expected {', '.join(DEFAULT_HEADS)}")
    head_name = model.head or DEFAULT_HEADS[model.name]
    paths = fold_paths(model.checkpoint)
    loaded = [_load_raw(model, path) for path in paths]
    raws = [raw.to(device="cpu", dtype=torch.float32).eval().requires_grad_(False) for raw, _, _ in loaded]
    require_alike(raws, paths)
    folds = [_finished(raw, model.output, head_name) for raw in raws]
    hashes, files = [weights_hash(raw) for raw in raws], [path for _, path, _ in loaded]
    names = [None if path is None else path.name for path in files]
    return LoadedModel(
        folds=tuple(folds),
        labels=fold_labels(files),
        weights_hash=hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        code_hash=code_hash(folds[0]),
        description={
            "name": model.name,
            "head": head_name,
            "output": model.output,
            "checkpoint": names[0] if len(names) == 1 else names,
            "target": _name_of(raws[0]),
            "trust_pickle": any(trusted for _, _, trusted in loaded),
        },
        sums_to_delta=head_name not in NOT_SUMMING,
    )


def _finished(raw: nn.Module, output: int | str | None, head_name: str) -> nn.Module:
    """The module with its output selected and its head applied."""
    module: nn.Module = raw if output is None else SelectedOutput(raw, output)
    return (SingleOutput(module) if head_name == "none" else _WithHead(module, _head(head_name))).eval()


def _load_raw(model: Any, checkpoint: str | Path | None) -> tuple[nn.Module, Path | None, bool]:
    """The bare module with its weights, where these came from, and whether a pickle had to be trusted."""
    init = plain_arguments(model.init)
    if model.name == "bpnet":
        path = checkpoint_path(checkpoint)
        return load_bpnet(path, init), path, False
    if model.name == "example":
        path = checkpoint_path(checkpoint or EXAMPLE_CHECKPOINT)
        weights = read_checkpoint(path)
        assert isinstance(weights, Mapping)  # an untrusted module was refused
        net = ExampleNet(**init)
        load_weights(net, weights, path)
        return net, path, False
    given = checkpoint_path(checkpoint) if checkpoint else None
    module, trusted = load_module(model._target_, init, given, bool(model.trust_pickle))
    require_finite(module.state_dict(), given or f"model._target_={model._target_}")
    return module, given, trusted


def _head(name: str) -> nn.Module:
    try:
        return make_head(name)
    except ValueError as error:
        raise UserError(f"model.head={name}: {error}") from None


def _name_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
