"""Calls of a model that nothing is recorded of, on a GPU under torch.use_deterministic_algorithms."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dlshap_core.rules.call import Call
from dlshap_core.rules.deterministic import with_form
from dlshap_core.rules.kinds import Traced
from dlshap_core.rules.table import look_up


class _WithForms(TorchFunctionMode):
    """What CUDA has no deterministic kernel of is done by a form of ours, also within torch's Python functions."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, in_place, kind = look_up(func)
        if isinstance(kind, Traced):
            with self:
                return kind.body(*args, **(kwargs or {}))
        return with_form(Call(func, name, in_place, args, kwargs or {}, [])).plain()


def deterministic_forms(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within this context a model can be called, if it could be attributed."""
    if device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return contextlib.nullcontext()
    return _WithForms()
