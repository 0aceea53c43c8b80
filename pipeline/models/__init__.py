"""Models ready to be attributed: weights loaded without running code from files, output selected, head applied.

A model may be several, its folds: the same architecture with other weights, of which the mean is attributed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlshap_core.heads import NOT_SUMMING
from dlshap_core.heads import head as make_head
from pipeline.errors import UserError
from pipeline.models.bpnet import load_bpnet
from pipeline.models.checkpoint import checkpoint_path, read_checkpoint
from pipeline.models.chrombpnet import load_chrombpnet
from pipeline.models.example import ExampleNet
from pipeline.models.fitting import Fitted, load_weights, require_usable
from pipeline.models.folds import fold_labels, fold_paths, require_alike
from pipeline.models.hashing import code_hash, weights_hash
from pipeline.models.layouts import BASES, InputLayout
from pipeline.models.module import load_module, plain_arguments
from pipeline.models.outputs import SelectedOutput, SingleOutput

__all__ = ["LoadedModel", "bare", "load_model"]

EXAMPLE_CHECKPOINT = Path(__file__).parent.parent / "example" / "model.safetensors"
_NAMES_KEPT = 20
DEFAULT_HEADS = {"bpnet": "counts", "chrombpnet": "counts", "example": "none", "module": "none"}


@dataclass(frozen=True)
class LoadedModel:
    """A model as the engine takes it, and what identifies it.

    Attributes:
        folds: one module, or one for each fold; eval, on the CPU, float32, output selection and head applied:
            (N, 4, L), and further inputs if any -> (N, T).
        labels: of the folds: the names of their files, or numbers.
        weights_hash: sha256 of the weights, in hexadecimal; of those of all folds, in order.
        code_hash: sha256 of the code that runs on them, in hexadecimal.
        description: name, head, output, checkpoint (file names), target (class), trust_pickle (whether it was needed),
            init (arguments of the class), prefix (taken off the names of weights), left_out (names without it),
            stored_as (types of weights that were converted to float32), input_layout, bases, with_bias, bias (file
            names).
        sums_to_delta: whether attributions sum to the difference of predictions under this head.
        notes: lines for the person who runs it: what was done that they may not expect.
    """

    folds: tuple[nn.Module, ...]
    labels: tuple[str, ...]
    weights_hash: str
    code_hash: str
    description: dict[str, Any]
    sums_to_delta: bool
    notes: tuple[str, ...] = ()

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


def bare(module: nn.Module) -> nn.Module:
    """The user's own module within a fold of a `LoadedModel`."""
    while isinstance(module, (_WithHead, SingleOutput, SelectedOutput, InputLayout)):
        module = module.model
    return module


@dataclass(frozen=True)
class _Raw:
    """The bare module of one fold, float32 with its weights, and where these came from."""

    module: nn.Module
    path: Path | None
    init: dict[str, Any]
    trusted: bool = False
    fitted: Fitted = field(default_factory=Fitted)


def load_model(model: Any) -> LoadedModel:
    """The model that a configuration describes.

    Args:
        model: a `pipeline.config.ModelConfig`, or what has its attributes.

    Raises:
        UserError: a ValueError; a checkpoint that is missing, damaged, not trusted or does not fit, folds that differ
            in more than their weights, a target that cannot be made, an unknown head.
    """
    if model.name not in DEFAULT_HEADS:
        raise UserError(f"model.name={model.name!r} is not a model; expected {', '.join(DEFAULT_HEADS)}")
    head_name = model.head or DEFAULT_HEADS[model.name]
    paths = fold_paths(model.checkpoint)
    biases = _bias_paths(model, len(paths))
    raws = [_load_raw(model, path, bias) for path, bias in zip(paths, biases, strict=True)]
    modules = [raw.module for raw in raws]
    require_alike(modules, paths)
    folds = [_finished(module, model, head_name) for module in modules]
    if model.name != "module" and len({code_hash(module) for module in modules}) > 1:
        raise UserError(
            "model.checkpoint: the folds have weights of the same shapes and differ in settings (trimming?)"
        )
    hashes = [weights_hash(module) for module in modules]
    return LoadedModel(
        folds=tuple(folds),
        labels=fold_labels(raw.path for raw in raws),
        weights_hash=hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        code_hash=code_hash(folds[0]),
        description={
            "name": model.name,
            "head": head_name,
            "output": model.output,
            "checkpoint": _file_names([raw.path for raw in raws]),
            "target": _name_of(modules[0]),
            "trust_pickle": any(raw.trusted for raw in raws),
            "init": raws[0].init,
            "prefix": raws[0].fitted.prefix,
            "left_out": _brief(sorted({name for raw in raws for name in raw.fitted.left_out})),
            "stored_as": sorted({kind for raw in raws for kind in raw.fitted.stored_as}),
            "input_layout": model.input_layout,
            "bases": model.bases,
            "with_bias": bool(model.with_bias),
            "bias": _file_names([*dict.fromkeys(None if bias is None else Path(bias) for bias in biases)]),
        },
        sums_to_delta=head_name not in NOT_SUMMING,
        notes=tuple(note for raw in raws for note in _notes(raw)),
    )


def _bias_paths(model: Any, n_folds: int) -> list[str | None]:
    """The bias of each fold: one of its own, or the same for all."""
    if not model.bias:
        return [None] * n_folds
    found = fold_paths(model.bias, "model.bias")
    if len(found) not in (1, n_folds):
        raise UserError(
            f"model.bias names {len(found)} files and model.checkpoint {n_folds}; give one bias for all folds, or one "
            f"for each"
        )
    return found if len(found) == n_folds else found * n_folds


def _notes(raw: _Raw) -> list[str]:
    """What was done with a checkpoint that the person may not expect."""
    fitted, notes = raw.fitted, []
    if raw.trusted:
        notes.append(
            f"WARNING: {raw.path} was read as a pickle, which runs whatever code is in it, as model.trust_pickle=true "
            f"allows; the store says so"
        )
    if fitted.prefix:
        left_out = f"; {len(fitted.left_out)} names without it were left out" if fitted.left_out else ""
        notes.append(f"the weights of {raw.path} fit without the prefix {fitted.prefix!r} of their names{left_out}")
    if fitted.stored_as:
        notes.append(f"weights of {raw.path} are stored as {' and '.join(fitted.stored_as)} and were made float32")
    return notes


def _finished(raw: nn.Module, model: Any, head_name: str) -> nn.Module:
    """The module with its input moved to where it wants it, its output selected and its head applied."""
    module = raw
    if model.input_layout != "ncl" or model.bases != BASES:
        module = InputLayout(module, model.input_layout, model.bases)
    if model.output is not None:
        module = SelectedOutput(module, model.output)
    return (SingleOutput(module) if head_name == "none" else _WithHead(module, _head(head_name))).eval()


def _load_raw(model: Any, checkpoint: str | None, bias: str | None) -> _Raw:
    """The bare module of one fold, ready for inference."""
    raw = _read_raw(model, checkpoint, bias)
    origin = raw.path or f"model._target_={model._target_}"
    require_usable(raw.module.state_dict(), origin)
    raw.module.to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
    if "float64" in raw.fitted.stored_as:
        require_usable(raw.module.state_dict(), f"{origin}, made float32")
    return raw


def _read_raw(model: Any, checkpoint: str | None, bias: str | None) -> _Raw:
    init = plain_arguments(model.init)
    if model.name == "bpnet":
        path = checkpoint_path(checkpoint)
        bpnet, fitted = load_bpnet(path, init, model.prefix)
        return _Raw(bpnet, path, init, fitted=fitted)
    if model.name == "chrombpnet":
        path = checkpoint_path(checkpoint)
        bias_path = checkpoint_path(bias) if bias else None
        module, fitted = load_chrombpnet(path, bias_path, bool(model.with_bias), init, model.prefix)
        return _Raw(module, path, init, fitted=fitted)
    if model.name == "example":
        path = checkpoint_path(checkpoint or EXAMPLE_CHECKPOINT)
        weights = read_checkpoint(path)
        assert isinstance(weights, Mapping)  # an untrusted module was refused
        net = ExampleNet(**init)
        return _Raw(net, path, init, fitted=load_weights(net, weights, path, model.prefix))
    given = checkpoint_path(checkpoint, folders=True) if checkpoint else None
    made = load_module(model._target_, init, given, bool(model.trust_pickle), model.prefix)
    return _Raw(made.module, given, made.init, made.trusted, made.fitted)


def _brief(names: list[str]) -> list[str]:
    return names if len(names) <= _NAMES_KEPT else [*names[:_NAMES_KEPT], f"and {len(names) - _NAMES_KEPT} more"]


def _file_names(paths: Sequence[Path | None]) -> str | list[str | None] | None:
    names = [None if path is None else path.name for path in paths]
    return names[0] if len(names) == 1 else names


def _head(name: str) -> nn.Module:
    try:
        return make_head(name)
    except ValueError as error:
        raise UserError(f"model.head={name}: {error}") from None


def _name_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
