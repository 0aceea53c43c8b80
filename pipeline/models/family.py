"""What a family of models is: its settings, and how the bare module of a checkpoint is made."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from pipeline.config.schema import ModelConfig
from pipeline.models.fitting import Fitted


@dataclass(frozen=True)
class Raw:
    """The bare module of one fold with its weights, and where these came from.

    Attributes:
        module: as the family makes it.
        path: of its checkpoint.
        init: all arguments that it was made with.
        trusted: whether a pickle had to be trusted.
        fitted: how the weights came to fit.
        is_described: whether its file says how large the model is, and not the user's code alone.
    """

    module: nn.Module
    path: Path | None
    init: dict[str, Any]
    trusted: bool = False
    fitted: Fitted = field(default_factory=Fitted)
    is_described: bool = True


@dataclass
class ModelFamily(ModelConfig, ABC):
    """The settings of one family; a new family is a subclass in a module of its own (see config/registry.py)."""

    has_own_code: ClassVar[bool] = False  # the user's, whose settings may follow from the weights of a fold

    @property
    def target(self) -> str | None:
        """The import path of the user's class, where the family has such."""
        return None

    @abstractmethod
    def read(self, checkpoint: str | None) -> Raw:
        """The module of one checkpoint. Raises UserError where it is missing, damaged or does not fit."""

    def read_folds(self, checkpoints: Sequence[str | None]) -> list[Raw]:
        """The module of each fold."""
        return [self.read(checkpoint) for checkpoint in checkpoints]

    def described(self) -> dict[str, Any]:
        """What the store says of the family's own settings."""
        return {"with_bias": False, "bias": None}
