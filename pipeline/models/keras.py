"""Models in files of Keras: .h5, .keras, or JSON and weights; nothing in the file is run, and no Keras is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.settings import expanded, setting
from pipeline.messages.errors import UserError
from pipeline.models.checkpoint import checkpoint_path
from pipeline.models.family import ModelFamily, Raw
from pipeline.models.fitting import Fitted
from pipeline.models.keras_files.architecture import Architecture
from pipeline.models.keras_files.load import Loaded, load_keras


@dataclass
class Keras(ModelFamily):
    """A Sequential or Functional model of Keras."""

    name: str = "keras"
    architecture: str | None = setting(
        "the JSON that describes the model, where the checkpoint holds weights alone",
        None,
        fingerprint="resolved",
        is_file=True,
        is_plain=True,
    )
    layers: dict[str, Any] = setting(
        "your own layers, by name or class: the layer of Keras that each is, or its package.Class", dict
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for key in ("init", "prefix"):
            if getattr(self, key):
                yield f"model.{key} is not for model=keras, whose file says what the model is; leave it out"

    def read(self, checkpoint: str | None) -> Raw:
        return self._raw(checkpoint, self._loaded(checkpoint))

    def read_folds(self, checkpoints: Sequence[str | None]) -> list[Raw]:
        """The module of each fold, with the names of the first one's layers."""
        first = self._loaded(checkpoints[0])
        others = [self._loaded(checkpoint, first.architecture) for checkpoint in checkpoints[1:]]
        return [self._raw(path, loaded) for path, loaded in zip(checkpoints, [first, *others], strict=True)]

    def _loaded(self, checkpoint: str | None, like: Architecture | None = None) -> Loaded:
        description = None if self.architecture is None else expanded(self.architecture)
        if description is not None and not description.is_file():
            raise UserError(f"model.architecture={self.architecture}: no such file")
        channels_first = any(head.startswith("profile_") for head in self.heads)
        return load_keras(
            checkpoint_path(checkpoint),
            description,
            self.layers,
            channels_first,
            like,
            sequence=self.input,
            has_channels=bool(self.channels),
        )

    def _raw(self, checkpoint: str | None, loaded: Loaded) -> Raw:
        return Raw(loaded.module, checkpoint_path(checkpoint), {}, fitted=Fitted(stored_as=loaded.stored_as))
