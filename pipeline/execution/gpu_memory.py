"""How many pairs of a batch fit into a GPU's memory, from what two small batches take."""

from collections.abc import Callable

import torch

FEW, MORE = 2, 18  # pairs
USED = 0.8  # of the memory that is free: other sequences, and what allocators leave between
_GIVEN_AWAY = 1 << 20  # bytes: less than that for a pair is not told from noise


def pairs_that_fit(run: Callable[[int], object], device: str, share: float = 1.0) -> int | None:
    """The most pairs of a batch on a GPU; None on a CPU, whose batches are small.

    Args:
        run: attributes one batch of so many pairs.
        device: as in torch.
        share: of the GPU that one actor has.
    """
    if not device.startswith("cuda"):
        return None
    run(FEW)  # libraries take their own memory
    try:
        few, more = (_peak(run, n, device) for n in (FEW, MORE))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return FEW
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return fitting(few, more, free + held, share)


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


def _peak(run: Callable[[int], object], n: int, device: str) -> int:
    """Bytes at the peak of a batch of n pairs, beyond what was held before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(n)
    return int(torch.cuda.max_memory_allocated(device)) - before
