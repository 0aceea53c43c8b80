"""Errors of the core, written for the person who gets them."""

import torch


class UnsupportedModelError(ValueError):
    """The model does something that cannot be attributed exactly; the message names the operation and its module."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that memory is short."""
    if error is None:
        return False
    is_it = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
    return is_it or is_out_of_memory(error.__cause__)
