"""Models ready to be attributed: weights loaded without running code from files, output selected, head applied."""

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
        module: eval, on the CPU, float32, output selection and head applied: (N, 4, L) -> (N, T).
        weights_hash: sha256 of the weights, in hexadecimal.
        code_hash: sha256 of the code that runs on them, in hexadecimal.
        description: name, head, output, checkpoint (file name), target (class), trust_pickle (whether it was needed).
        sums_to_delta: whether attributions sum to the difference of predictions under this head.
    """

    module: nn.Module
    weights_hash: str
    code_hash: str
    description: dict[str, Any]
    sums_to_delta: bool


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
        model: has `name` (example, bpnet or module), `checkpoint`, `head`, `output`, `init`, `trust_pickle` and, for
            module, `_target_`.

    Raises:
        UserError: a ValueError; a checkpoint that is missing, damaged, not trusted or does not fit, a target that
            cannot be made, an unknown head.
    """
    if model.name not in DEFAULT_HEADS:
        raise UserError(f"model.name={model.name!r} is not a model; expected {', '.join(DEFAULT_HEADS)}")
    raw, path, trusted = _load_raw(model)
    raw = raw.to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
    head_name = model.head or DEFAULT_HEADS[model.name]
    module: nn.Module = raw if model.output is None else SelectedOutput(raw, model.output)
    module = SingleOutput(module) if head_name == "none" else _WithHead(module, _head(head_name))
    return LoadedModel(
        module=module.eval(),
        weights_hash=weights_hash(raw),
        code_hash=code_hash(module),
        description={
            "name": model.name,
            "head": head_name,
            "output": model.output,
            "checkpoint": None if path is None else path.name,
            "target": _name_of(raw),
            "trust_pickle": trusted,
        },
        sums_to_delta=head_name not in NOT_SUMMING,
    )


def _load_raw(model: Any) -> tuple[nn.Module, Path | None, bool]:
    """The bare module with its weights, where these came from, and whether a pickle had to be trusted."""
    init = plain_arguments(model.init)
    if model.name == "bpnet":
        path = checkpoint_path(model.checkpoint)
        return load_bpnet(path, init), path, False
    if model.name == "example":
        path = checkpoint_path(model.checkpoint or EXAMPLE_CHECKPOINT)
        weights = read_checkpoint(path)
        assert isinstance(weights, Mapping)  # an untrusted module was refused
        net = ExampleNet(**init)
        load_weights(net, weights, path)
        return net, path, False
    given = checkpoint_path(model.checkpoint) if model.checkpoint else None
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
