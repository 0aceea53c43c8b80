"""The compiled kernel of going back through a convolution; rows as in `secants`."""

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def overlap_add(
    columns: np.ndarray, stride: int, padding: int, dilation: int, out: np.ndarray, first: int, last: int
) -> None:
    """Rows first to last of `fused.overlap_add`."""
    n_positions, n_kernel, n_channels = columns.shape[1:]
    length, n_together = out.shape[1], n_kernel if dilation == 1 else 1  # columns that are side by side in the result
    for row in range(first, last):
        out[row] = 0
        result = out[row].reshape(-1)
        for t in range(n_positions):
            source = columns[row, t].reshape(-1)
            for k in range(0, n_kernel, n_together):
                position = t * stride + k * dilation - padding
                start, stop = max(0, -position), min(n_together, length - position)
                if start < stop:
                    ours = result[(position + start) * n_channels : (position + stop) * n_channels]
                    ours += source[(k + start) * n_channels : (k + stop) * n_channels]
