"""A GPU's memory: weights that stay in it, and the share of it that a process may have."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from dlshap_core.errors import is_out_of_memory
from pipeline.execution.device import noticed_if_broken


@contextlib.contextmanager
def on_device(folds: Sequence[nn.Module], device: str) -> Iterator[None]:
    """Within this context the weights of all folds are on a GPU, so that no call takes them there again; after it
    nothing of this process is, so that another one has all of the memory. On a CPU this does nothing.

    Raises:
        DeviceBrokenError: the GPU computes nothing any more.
    """
    if not device.startswith("cuda"):
        yield
        return
    with noticed_if_broken(device):  # nothing can be taken back from there either
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
    except Exception as error:
        if not is_out_of_memory(error):
            raise
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
