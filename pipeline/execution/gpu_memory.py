"""A GPU's memory: how many pairs of a batch fit, from what two small batches take; weights that stay in it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from dlshap_core.errors import is_out_of_memory, let_go

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
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        let_go(error)
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


@contextlib.contextmanager
def on_device(folds: Sequence[nn.Module], device: str) -> Iterator[None]:
    """Within this context the weights of all folds are on a GPU, so that no call takes them there again; after it
    nothing of this process is, so that another one has all of the memory. On a CPU this does nothing."""
    if not device.startswith("cuda"):
        yield
        return
    keep_on_device(folds, device)
    try:
        yield
    finally:
        leave_device(folds)


def keep_on_device(folds: Sequence[nn.Module], device: str) -> None:
    """Take the weights of all folds to a GPU. Where they do not fit, each call takes its own there and back."""
    if not device.startswith("cuda"):
        return
    try:
        for fold in folds:
            fold.to(device)
    except torch.OutOfMemoryError:
        leave_device(folds)


def leave_device(folds: Sequence[nn.Module]) -> None:
    """Take all folds back to the CPU, and give the memory of the GPU back that this process has cached."""
    for fold in folds:
        fold.cpu()
    torch.cuda.empty_cache()


def bound(device: str, share: float) -> None:
    """Let this process have no more than its share of a GPU's memory: the others on it have theirs then."""
    if device.startswith("cuda") and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, torch.device(device).index)
