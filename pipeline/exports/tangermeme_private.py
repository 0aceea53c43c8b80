"""What `dlshap export seqlets` needs of tangermeme beyond its documented interface, in one place.

`decode`: the second half of `tangermeme.seqlet.recursive_seqlets`, which takes some rows at a time; the documented call
    takes all attributions at once, as one array. Where it goes or takes other arguments, no seqlets are called, and
    tests fail; the bounds in pyproject.toml keep to versions that have it.
"""

import numpy as np

N_BINS = 1000  # of the null, by default of `recursive_seqlets`


def decode(
    values: np.ndarray, tails: np.ndarray, lowest: np.float32, width: float, p_value: float, lengths: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """The seqlets of (B, L) attributions: the row, the start, the end, the summed attribution and the p-value of each.

    Args:
        tails: (longest + 1, bins): the chance that so many positions have bins that sum to at least as much.
        lowest, width: where the first bin begins, and how wide each is.
        p_value: below which every stretch within a seqlet is.
        lengths: the fewest and the most bases.
    """
    from tangermeme.seqlet import _recursive_seqlet_decode_fields

    found = _recursive_seqlet_decode_fields(values, tails, lowest, width, p_value, *lengths, 0, N_BINS)
    return tuple(map(np.asarray, found))
