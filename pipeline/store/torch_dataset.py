"""A torch Dataset over a store, to train on attributions."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlshap_core.one_hot import one_hot

Take = Callable[[Sequence[str], np.ndarray], Mapping[str, np.ndarray]]
ARRAYS_READ = ("codes", "attribution", "hypothetical", "prediction")


class AttributionDataset(Dataset[dict[str, Tensor]]):
    """Rows of a store as tensors.

    An item is a dict of float32 tensors: `sequence` (4, W) one-hot, `attribution` (T, W), `hypothetical` (T, 4, W) and
    `prediction` (T,); with `target` the axis T is left out. The codes are as they were attributed, whatever the strand.
    The rows of a batch are read together, and a row that is far from all others costs the decoding of a chunk of up to
    64: where that holds training back, give the DataLoader workers.

    Args:
        take: reads arrays of some rows, (len(rows), ...) each.
        rows: (M,) indices of the rows, in the order of the dataset.
        window: positions.
    """

    def __init__(self, take: Take, rows: np.ndarray, window: slice) -> None:
        self._take, self.rows, self.window = take, rows, window

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several items at once, which is what a DataLoader asks for where it can."""
        found = self._take(ARRAYS_READ, self.rows[np.asarray(indices, dtype=np.int64)])
        tensors = {
            "sequence": one_hot(found["codes"][:, self.window], torch.float32),
            "attribution": torch.from_numpy(found["attribution"][..., self.window]),
            "hypothetical": torch.from_numpy(found["hypothetical"][..., self.window]),
            "prediction": torch.from_numpy(np.asarray(found["prediction"])),
        }
        return [{name: values[i] for name, values in tensors.items()} for i in range(len(indices))]
