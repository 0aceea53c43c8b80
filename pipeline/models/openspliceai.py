"""OpenSpliceAI's checkpoints: the sizes of the model follow from the shapes of its weights.

Its settings are those that OpenSpliceAI trains: four units each of one width and dilation (1, 4, 10, 25), for 80, 400,
2,000 or 10,000 bases of context. Reference: Chao et al. 2025, https://doi.org/10.7554/eLife.107454.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from pipeline.messages.errors import UserError
from pipeline.models.checkpoint import checkpoint_path, read_torch_file
from pipeline.models.described import read_described
from pipeline.models.family import ModelFamily, Raw
from pipeline.models.fitting import find_prefix, without_prefix
from pipeline.models.sets import chosen

_CLASS = "openspliceai.train_base.openspliceai.SpliceAI"
_UNIT = re.compile(r"residual_units\.(\d{1,9})\.conv1\.weight")
_DILATIONS = [1, 4, 10, 25]
_OF_EACH = 4  # units


@dataclass
class OpenSpliceAI(ModelFamily):
    """A checkpoint of OpenSpliceAI."""

    has_own_code: ClassVar[bool] = True

    name: str = "openspliceai"

    def read(self, checkpoint: str | None) -> Raw:
        path = checkpoint_path(checkpoint)
        content = read_torch_file(path, trust_pickle=False, ran=[])
        return read_described(self, path, content, _CLASS, _sizes(chosen(content, path, self.prefix), path))


def _sizes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The arguments of the class. Raises UserError where the weights are not those of OpenSpliceAI."""
    found = find_prefix(state, "initial_conv.weight")
    own = without_prefix(state, found[0], path) if found else {}
    units = {int(match[1]): weight for name, weight in own.items() if (match := _UNIT.fullmatch(name))}
    if not units or len(units) % _OF_EACH or len(units) > _OF_EACH * len(_DILATIONS):
        raise UserError(
            f"{path} is no checkpoint of OpenSpliceAI with 4, 8, 12 or 16 residual units; for another model use "
            "model=module"
        )
    widths = [units[index].shape[-1] for index in sorted(units)]
    dilations = [_DILATIONS[index // _OF_EACH] for index in range(len(units))]
    return {"L": own["initial_conv.weight"].shape[0], "W": _array(widths), "AR": _array(dilations)}


def _array(values: list[int]) -> dict[str, Any]:
    return {"_target_": "numpy.array", "object": values}
