"""How shard descriptors are put into the blocks of Ray Data: a pure function of the shards."""

from collections.abc import Iterator, Sequence

import numpy as np

MAX_BLOCKS = 10_000  # Ray Data takes 0.7 ms for a block: beyond this many, blocks hold several shards
MAX_SINGLE = 5_000  # of the last shards, which stay single so that the actors end together


def blocks(shards: Sequence[int] | np.ndarray) -> Iterator[list[int]]:
    """The shards, in order: one in each block, or, where they are more than MAX_BLOCKS, equal groups first."""
    n_grouped = len(shards) - MAX_SINGLE if len(shards) > MAX_BLOCKS else 0
    n_groups = MAX_BLOCKS - MAX_SINGLE if n_grouped else 0
    for group in range(n_groups):
        yield [int(i) for i in shards[n_grouped * group // n_groups : n_grouped * (group + 1) // n_groups]]
    for i in shards[n_grouped:]:
        yield [int(i)]
