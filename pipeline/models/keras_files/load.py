"""A file of Keras as a torch module."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.messages.errors import UserError
from pipeline.messages.words import did_you_mean
from pipeline.models.keras_files.architecture import Architecture, named_like, read_architecture, renamed
from pipeline.models.keras_files.files import open_keras
from pipeline.models.keras_files.layers.activations import NAMES
from pipeline.models.keras_files.layers.table import TABLE
from pipeline.models.keras_files.model import KerasModel
from pipeline.models.keras_files.network import network
from pipeline.models.keras_files.weights import read_weights
from pipeline.models.targets import find


@dataclass(frozen=True)
class Loaded:
    """A model, what its file says of it, and the types of weights that were made float32."""

    module: KerasModel
    architecture: Architecture
    stored_as: tuple[str, ...]


def load_keras(
    path: Path,
    description: Path | None = None,
    layers: Mapping[str, Any] | None = None,
    channels_first: bool = False,
    like: Architecture | None = None,
    sequence: str | None = None,
    has_channels: bool = False,
) -> Loaded:
    """The model of a file.

    Args:
        path: of the model, or of its weights.
        description: the JSON that goes with weights alone.
        layers: by the names of layers of the user's own, or of their classes: a class of Keras's, or an import path.
        channels_first, sequence, has_channels: see `KerasModel`.
        like: a model of the same layers, whose names are taken.

    Raises:
        UserError: the file is damaged, or holds what is not known; with the layer.
    """
    given = {name: str(value) for name, value in (layers or {}).items()}
    kinds = {name: value for name, value in given.items() if "." not in value}
    for name, kind in kinds.items():
        if kind not in TABLE and kind not in NAMES:
            known = did_you_mean(kind, [*TABLE, *NAMES])
            raise UserError(
                f"model.layers.{name}={kind}; expected the class of a layer of Keras's, such as Conv1D, the name of an "
                f"activation, or package.Class{known}"
            )
    makers = {name: _maker(name, value) for name, value in given.items() if name not in kinds}
    with open_keras(path, description) as file, named(path):
        model = read_architecture(renamed(file.config, kinds) if kinds else file.config, file.major)
        weights = read_weights(file.weights, model)
        model = named_like(model, like) if like else model
        inputs = [model.nodes[index].layer.name for index in model.inputs]
        net = network(model, weights, makers)
        given_inputs = list(zip(inputs, model.shapes, strict=True))
        module = KerasModel(net, given_inputs, model.names, channels_first, sequence, has_channels)
    return Loaded(module.eval(), model, tuple(sorted(file.weights.stored_as)))


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Problems of layers are those of a file. Raises UserError."""
    try:
        yield
    except RecursionError:
        raise UserError(f"{path}: what it says of the model is nested too deep") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {error}") from None


def _maker(name: str, target: str) -> Any:
    """What makes a layer of the user's own."""
    made_by, setting = find(target, f"model.layers.{name}"), f"model.layers.{name}={target}"

    def make(config: dict[str, Any], weights: list[Tensor]) -> nn.Module:
        try:
            module = made_by(config, weights)
        except Exception as error:  # the user's code
            reason = " ".join(str(error).split())
            raise UserError(f"{setting} with (config, weights): {type(error).__name__}: {reason}") from error
        if not isinstance(module, nn.Module):
            raise UserError(f"{setting} gives a {type(module).__name__}; expected a torch.nn.Module")
        return module

    return make
