"""Cherimoya, whose files (`model.save(...)`) hold the arguments of the class beside the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.messages.errors import UserError
from pipeline.models.checkpoint import checkpoint_path, read_torch_file
from pipeline.models.described import arguments, read_described
from pipeline.models.family import ModelFamily, Raw

_CLASS = "cherimoya.cherimoya.Cherimoya"
_AS_IT_RUNS = {"compile": False, "verbose": False}  # arguments of the run, which files do not hold


@dataclass
class Cherimoya(ModelFamily):
    """A file of the package cherimoya."""

    has_own_code: ClassVar[bool] = True

    name: str = "cherimoya"
    head: Any = "counts"

    def read(self, checkpoint: str | None) -> Raw:
        path = checkpoint_path(checkpoint)
        content = read_torch_file(path, trust_pickle=False, ran=[])
        config = content.get("config") if isinstance(content, Mapping) else None
        if not isinstance(config, Mapping):
            raise UserError(
                f"{path} has no config beside its weights, as files that cherimoya saves have; give the class and its "
                f"arguments: model=module model._target_={_CLASS} model.init.compile=false model.output=1"
            )
        return read_described(self, path, content, _CLASS, {**arguments(config, path, "config"), **_AS_IT_RUNS})
