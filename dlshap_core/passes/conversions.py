"""Where a model converts to fewer digits by itself, and fails with weights of more."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dlshap_core.passes.call_stack import module_path
from dlshap_core.passes.tolerance import Lowered

_IN_ERRORS = {torch.float16: ("Half",), torch.bfloat16: ("BFloat16",), torch.float32: ("Float", "float")}


class FindsLowered(TorchFunctionMode):
    """Finds the first operation that makes half precision, or float32 of float64, of a number of more digits, in a
    model that fails.

    Args:
        modules: the names of the model's modules by id.

    Attributes:
        found: where, the operation, and the dtype.
    """

    def __init__(self, modules: dict[int, str]) -> None:
        super().__init__()
        self._modules = modules
        self.found: Lowered | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.found is None and isinstance(output, Tensor) and output.dtype in _IN_ERRORS:
            given = args[0] if args else None
            if isinstance(given, Tensor) and given.is_floating_point() and given.itemsize > output.itemsize:
                self.found = Lowered(module_path(self._modules), func.__name__, output.dtype)
        return output

    def complaint(self, error: Exception, computed_in: torch.dtype) -> str | None:
        """What to say of an error of the model's own that is about that precision; None of another."""
        if self.found is None or not any(word in str(error) for word in _IN_ERRORS[self.found.dtype]):
            return None
        low, high = (str(dtype).removeprefix("torch.") for dtype in (self.found.dtype, computed_in))
        return (
            f"{self.found.where} converts its input to {low} by {self.found.operation!r}, and the model is computed in "
            f"{high}: {' '.join(str(error).split())}; remove the conversion from forward, or use x.to(weight.dtype)"
        )
