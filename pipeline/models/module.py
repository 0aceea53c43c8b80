"""Any `torch.nn.Module` by its import path."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from pipeline.config.settings import setting
from pipeline.messages.errors import UserError
from pipeline.models.allocations import bounded
from pipeline.models.checkpoint import checkpoint_path, read_checkpoint
from pipeline.models.family import ModelFamily, Raw
from pipeline.models.fitting import Fitted, Weights, load_weights
from pipeline.models.folder import SETTINGS, folder_arguments
from pipeline.models.lazy import require_finished
from pipeline.models.nesting import require_tree
from pipeline.models.sets import fitting
from pipeline.models.targets import accepted, find, make

_SHOWN = 8  # arguments of a file that a note names


@dataclass
class Module(ModelFamily):
    """Any torch.nn.Module by its import path."""

    has_own_code: ClassVar[bool] = True

    name: str = "module"
    _target_: str | None = setting(
        "the class or function that makes the model, by its import path or as path/to/file.py:Class", None
    )
    init: dict[str, Any] = setting("arguments of it", dict, fingerprint="resolved")

    @property
    def target(self) -> str | None:
        return self._target_

    def read(self, checkpoint: str | None) -> Raw:
        """The module that the target makes, with the weights of a checkpoint.

        A class needs a checkpoint (its weights would be random); a function may load its own. Without a target, the
        checkpoint is a trusted pickled module. `init` comes before the arguments in a folder's config.json.
        """
        target, path = self._target_, checkpoint_path(checkpoint, folders=True) if checkpoint else None
        weights = None if path is None else self._read(path)
        trusted = isinstance(weights, nn.Module) or (weights is not None and weights.is_trusted)
        if isinstance(weights, nn.Module):
            require_tree(weights)
        if target is None:
            if isinstance(weights, nn.Module):
                return Raw(weights, path, {}, trusted, is_described=False)
            raise UserError(
                "model._target_ is not set; give the model's class, by its import path package.module.Class or as "
                "path/to/file.py:Class"
            )
        called = find(target)
        from_file = accepted(called, folder_arguments(path), self.init)
        read = {name: value for name, value in from_file.items() if name not in self.init}
        init = {**from_file, **self.init}
        with bounded(path, f"{target} with the sizes in {path / SETTINGS}") if path and read else nullcontext():
            module, fitted = make(target, init), Fitted()
        if type(module).__module__.partition(".")[0] == "keras":
            raise UserError(
                f"model._target_={target} gives a model of Keras, whose weights have other names each time it is read; "
                f"give its file as model=keras model.checkpoint=..., which reads it without Keras (a layer of your "
                f"own: model.layers.NAME=package.Class)"
            )
        if isinstance(weights, Weights) and path is not None:
            taken = weights if self.prefix else fitting(module, weights, path)
            fitted = load_weights(module, taken, path, self.prefix)
        elif isinstance(called, type) and any(True for _ in module.parameters()):
            raise UserError(
                f"model.checkpoint is not set: the weights of {target} would be random; give a file of weights"
            )
        require_finished(module, target)
        if read:
            listed = ", ".join(f"{name}={value}" for name, value in list(read.items())[:_SHOWN])
            note = f"arguments of {target} from {path}/{SETTINGS}: {listed}{', ...' if len(read) > _SHOWN else ''}"
            fitted = replace(fitted, notes=(*fitted.notes, note))
        return Raw(module, path, init, trusted, fitted, is_described=bool(read))

    def _read(self, path: Path) -> Weights | nn.Module:
        whole = self._target_ is None
        return read_checkpoint(path, self.trust_pickle, self.prefix, whole=whole, undecided=True)
