"""Windows around the centre of a sequence. The centre of L bases is base L // 2, 0-based, as in sources/loci.py."""

import numpy as np

from dlshap_core.sequences import ALPHABET
from pipeline.errors import UserError


def centred(length: int, window: int) -> slice:
    """The positions of `window` bases around the centre: [L // 2 - W // 2, L // 2 - W // 2 + W).

    Raises:
        UserError: the window is longer than the sequence, or no base long.
    """
    start = length // 2 - window // 2
    if not 0 < window <= length:
        raise UserError(f"a window of {window} bases does not fit into sequences of {length} bases")
    return slice(start, start + window)


def one_hot_int8(codes: np.ndarray) -> np.ndarray:
    """(B, 4, W) int8 from (B, W) codes; an unknown base is an all-zero column."""
    letters = np.arange(len(ALPHABET), dtype=np.uint8)
    return (codes[:, None, :] == letters[None, :, None]).astype(np.int8)
