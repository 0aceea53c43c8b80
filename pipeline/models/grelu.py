"""gReLU's Lightning checkpoints, which hold the class of their model and its arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pipeline.messages.errors import UserError
from pipeline.models.allocations import bounded
from pipeline.models.checkpoint import checkpoint_path, read_torch_file
from pipeline.models.family import ModelFamily, Raw
from pipeline.models.fitting import load_weights
from pipeline.models.folder import require_plain
from pipeline.models.sets import chosen
from pipeline.models.targets import accepted, find, make

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
        init = {**accepted(find(target), of_file), **self.init}
        with bounded(path, f"{target} with the sizes in {path}"):
            module = make(target, init)
        fitted = load_weights(module, chosen(content, path, self.prefix), path, self.prefix)
        listed = ", ".join(f"{name}={value}" for name, value in list(of_file.items())[:8])
        note = f"{target} with the arguments in {path}: {listed}"
        return Raw(module, path, init, fitted=replace(fitted, notes=(*fitted.notes, note)))


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
    arguments = {str(name): value for name, value in found.items() if name != "model_type"}
    require_plain(arguments, path)
    for name, value in arguments.items():
        if not isinstance(value, bool | int | float | str | list | tuple | dict | None):
            raise UserError(f"{path}: {_LAYOUT}.{name} is a {type(value).__name__}; give it as model.init.{name}=...")
    return f"{_CLASSES}.{kind}", arguments
