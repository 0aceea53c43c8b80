"""How many sequence-reference pairs go through the model at once, and how many fit into a GPU's memory."""

from collections.abc import Callable
from functools import partial

import torch

from dlshap_core.errors import is_out_of_memory, let_go

FEW, MORE = 2, 18  # pairs
USED = 0.8  # of the memory that is free: other sequences, and what allocators leave between
_GIVEN_AWAY = 1 << 20  # bytes: less than that for a pair is not told from noise


def auto_batch_size(length: int, n_references: int, device: str, most: int | None = None) -> int:
    """Pairs in a batch where nobody says how many, from the sequence length (bases) and the kind of device.

    About 2**17 bases on a CPU, where a batch should stay near its caches, and 2**21 on a GPU, where it should keep the
    device busy, if `most` pairs fit its memory; whole sequences where they fit, and at most 64 of them. Where it is
    known to fit a batch has two pairs at least: a single one takes the least memory, and half as long again.
    """
    least = 1 if most is None else 2
    pairs = max(least, (1 << 17 if device == "cpu" else 1 << 21) // length)
    pairs = pairs if most is None else min(pairs, most)
    if pairs < n_references:
        return pairs
    return min(64, pairs // n_references) * n_references


def pairs_that_fit(run: Callable[[int], object], device: str, share: float = 1.0) -> int | None:
    """The most pairs of a batch on a GPU, from what two small batches take; None on a CPU, whose batches are small.

    Args:
        run: attributes one batch of so many pairs.
        device: as in torch.
        share: of the GPU that this process may have.
    """
    if not device.startswith("cuda"):
        return None
    peaks: list[int] = []
    try:
        for n in (FEW, FEW, MORE):  # the first time libraries take memory of their own
            peaks += [peak(partial(run, n), device)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        let_go(error)
        return FEW if peaks else 1
    free = free_memory(device)
    if free is None or not peaks[2]:
        return MORE  # that much is known to fit, and no more can be known
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return fitting(peaks[1], peaks[2], free + held, share)


def free_memory(device: str) -> int | None:
    """Bytes of a GPU that are free; None where its driver does not say."""
    try:
        return torch.cuda.mem_get_info(device)[0]
    except RuntimeError:
        return None


def split_evenly(n_pairs: int, n_references: int) -> tuple[int, int]:
    """Sequences of a batch of at least so many pairs, and references of each, of which there are so many at most."""
    n_sequences = -(-n_pairs // n_references)
    return n_sequences, -(-n_pairs // n_sequences)


def fitting(few: int, more: int, free: int, share: float) -> int:
    """Pairs that fit, at least 1.

    Args:
        few, more: bytes that batches of FEW and of MORE pairs took at their peak.
        free: bytes that are free.
        share: of them that may be used.
    """
    of_pair = max((more - few) / (MORE - FEW), _GIVEN_AWAY / MORE)
    fixed = max(few - FEW * of_pair, 0)
    return max(1, int((USED * share * free - fixed) / of_pair))


def peak(run: Callable[[], object], device: str) -> int:
    """Bytes of a GPU at the peak of a call, beyond what was held before; 0 where its allocator does not count."""
    torch.cuda.synchronize(device)
    try:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    except RuntimeError:  # as of one that was plugged in
        run()
        return 0
    run()
    return int(torch.cuda.max_memory_allocated(device)) - before
