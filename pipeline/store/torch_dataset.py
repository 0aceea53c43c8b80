"""A torch Dataset over a store, to train on attributions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlshap_core.sequences import one_hot
from pipeline.errors import UserError
from pipeline.reader import Store
from pipeline.windows import centred

ARRAYS = ("codes", "attribution", "hypothetical", "prediction")


class AttributionDataset(Dataset[dict[str, Tensor]]):
    """Rows of a store as tensors.

    An item is a dict of float32 tensors: `sequence` (4, W) one-hot, `attribution` (T, W), `hypothetical` (T, 4, W) and
    `prediction` (T,); with `target` the axis T is left out. The codes are as they were attributed, whatever the strand.
    The rows of a batch are read together, and a row that is far from all others costs the decoding of a chunk of up to
    64: where that holds training back, give the DataLoader workers.

    Args:
        store: to read from.
        rows: (M,) indices of the rows, in the order of the dataset; all rows whose values are there if not given.
        target: index on the target axis; all targets if not given.
        window: bases around the centre; the whole sequence if not given.

    Raises:
        UserError: the window is longer than the sequences, a row is not in the store, or there is no such target.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray | None = None,
        target: int | None = None,
        window: int | None = None,
    ) -> None:
        self.store = store
        self.rows = np.flatnonzero(store.present) if rows is None else np.asarray(rows, dtype=np.int64)
        self.target = target
        length = int(store.codes.shape[1])
        self.window = slice(0, length) if window is None else centred(length, window)
        if len(self.rows) and not 0 <= self.rows.min() <= self.rows.max() < len(store):
            raise UserError(f"rows {self.rows.min()} to {self.rows.max()} of a store of {len(store)} rows")
        if target is not None and not 0 <= target < len(store.targets):
            raise UserError(f"target {target} of {len(store.targets)}: an index on the target axis is expected")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several items at once, which is what a DataLoader asks for where it can."""
        found = self.store.take(ARRAYS, self.rows[np.asarray(indices, dtype=np.int64)], self.target)
        sequence = one_hot(found["codes"][:, self.window], torch.float32)
        attribution = torch.from_numpy(found["attribution"][..., self.window])
        hypothetical = torch.from_numpy(found["hypothetical"][..., self.window])
        prediction = torch.from_numpy(np.asarray(found["prediction"]))
        return [
            {
                "sequence": sequence[i],
                "attribution": attribution[i],
                "hypothetical": hypothetical[i],
                "prediction": prediction[i],
            }
            for i in range(len(indices))
        ]
