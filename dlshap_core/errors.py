"""Errors of the core, written for the person who gets them."""

import traceback

import torch


class UnsupportedModelError(ValueError):
    """The model does something that cannot be attributed exactly; the message names the operation and its module."""


class DecisionError(UnsupportedModelError):
    """The model decides in Python for one sequence otherwise than for others.

    Attributes:
        text: what was decided, and by which line.
        row: which sequence, counted within the batch where the error is raised and within the call where it arrives;
            None where it is not known.
    """

    def __init__(self, text: str, row: int | None = None) -> None:
        super().__init__(text, row)
        self.text, self.row = text, row

    def __str__(self) -> str:
        return self.text if self.row is None else f"sequence {self.row}: {self.text}"


# How the allocator of a CPU, the driver of a GPU, its libraries and Triton say it, by errors of no kind of their own; a
# handle of cuBLAS that cannot be made found no room.
_SHORT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that memory is short."""
    if error is None:
        return False
    is_it = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT_OF_MEMORY)
    )
    return is_it or is_out_of_memory(error.__cause__)


def let_go(error: BaseException) -> None:
    """Free what the frames of an error, and of those that led to it, hold: the tensors of the batch that failed."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            left += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
