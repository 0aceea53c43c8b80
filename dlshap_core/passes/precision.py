"""How float32 products and convolutions are rounded, as set for the whole process: read, and put back."""

from typing import NamedTuple

import torch

from dlshap_core import torch_private

# Of torch 2.9 and later. What is "none" inherits from the row above it: an operation from "all" of its backend.
_WIDE = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
_OPERATIONS = tuple((backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn"))


class Precision(NamedTuple):
    """All that decides how float32 products and convolutions are rounded.

    Attributes:
        each: of _WIDE and _OPERATIONS; empty before torch 2.9.
        products: of torch.set_float32_matmul_precision.
        convolutions: torch.backends.cudnn.allow_tf32.
    """

    each: tuple[str, ...]
    products: str
    convolutions: bool

    @classmethod
    def of(cls, allow_tf32: bool) -> "Precision":
        """TF32 on a GPU or not at all, and float32 in full on a CPU."""
        on_gpu = "tf32" if allow_tf32 else "ieee"
        each = ("none",) * len(_WIDE) + (on_gpu,) * 3 + ("ieee",) * 3 if torch_private.get_precision else ()
        return cls(each, "high" if allow_tf32 else "highest", allow_tf32)


def read_precision() -> Precision:
    """As it is set, whichever way: torch refuses to read the old settings where the new ones contradict them."""
    if torch_private.get_precision is None or torch_private.set_precision is None:
        return Precision((), torch.get_float32_matmul_precision(), torch_private.get_cudnn_allow_tf32())
    each = []
    for key in (*_WIDE, *_OPERATIONS):  # an operation's own is seen once it has nothing to inherit
        each.append(torch_private.get_precision(*key))
        torch_private.set_precision(*key, "none")
    products = torch.get_float32_matmul_precision()  # no contradiction is left
    for operation in ("conv", "rnn"):
        torch_private.set_precision("cuda", operation, "tf32")
    try:
        convolutions = torch_private.get_cudnn_allow_tf32()
    except RuntimeError:  # it contradicts what was just set
        convolutions = False
    precision = Precision(tuple(each), products, convolutions)
    _write_each(precision)
    return precision


def write_precision(precision: Precision) -> None:
    """Set all of it. The old settings change some of the new ones, which therefore come last."""
    torch.set_float32_matmul_precision(precision.products)
    torch_private.set_cudnn_allow_tf32(precision.convolutions)
    _write_each(precision)


def _write_each(precision: Precision) -> None:
    if torch_private.set_precision is not None:
        for key, value in zip((*_WIDE, *_OPERATIONS), precision.each, strict=True):
            torch_private.set_precision(*key, value)
