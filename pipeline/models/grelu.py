"""gReLU's Lightning checkpoints, which hold the class of their model and its arguments."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.messages.errors import UserError
from pipeline.models.checkpoint import checkpoint_path, read_torch_file
from pipeline.models.described import arguments, read_described
from pipeline.models.family import ModelFamily, Raw

_CLASSES = "grelu.model.models"
_LAYOUT = "hyper_parameters.model_params"


@dataclass
class Grelu(ModelFamily):
    """A Lightning checkpoint of gReLU."""

    has_own_code: ClassVar[bool] = True

    name: str = "grelu"

    def read(self, checkpoint: str | None) -> Raw:
        path = checkpoint_path(checkpoint)
        content = read_torch_file(path, trust_pickle=False, ran=[])
        target, of_file = _described(content, path)
        return read_described(self, path, content, target, of_file)


def _described(content: Any, path: Path) -> tuple[str, dict[str, Any]]:
    """The class of a checkpoint's model and its arguments. Raises UserError where it is none of gReLU."""
    found = content
    for key in _LAYOUT.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    kind = found.get("model_type") if isinstance(found, Mapping) else None
    if not (isinstance(found, Mapping) and isinstance(kind, str) and kind.isidentifier()):
        raise UserError(
            f"{path} has no {_LAYOUT} with a model_type, as checkpoints of gReLU have; give the model's class: "
            f"model=module model._target_=package.Class"
        )
    given = {name: value for name, value in found.items() if name != "model_type"}
    return f"{_CLASSES}.{kind}", arguments(given, path, _LAYOUT)
