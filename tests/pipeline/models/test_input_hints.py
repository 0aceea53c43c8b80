"""What an error of a model says of its input and its numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.model_input import InputSettings
from pipeline.models.input_hints import form_hint

X = torch.ones(1, 4, 4)
MIXED: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.matmul,
    nn.functional.conv1d,
    lambda x, w: nn.functional.linear(x, w[0]),
    lambda x, w: nn.functional.linear(x, w[0].to(x.dtype), w[0, 0]),
    lambda x, w: torch.einsum("ncl,nkl->nck", x, w),
    lambda x, w: nn.functional.layer_norm(x, (4,), w[0, 0]),
]


@pytest.mark.parametrize("operation", MIXED)
def test_a_model_with_parts_of_another_type_is_told_which_fits(operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    for dtype, other in (("float64", "float32"), ("float32", "float64")):
        x = X.to(getattr(torch, dtype))
        with pytest.raises(RuntimeError, match="type") as raised:
            operation(x, x.to(getattr(torch, other)))
        assert f"engine.dtype={other}" in str(form_hint(str(raised.value), InputSettings(), dtype))


def test_other_errors_have_no_such_hint() -> None:
    assert form_hint("Expected tensor to have DoubleTensor type", InputSettings(), "float64") is None
    assert form_hint("shape '[-1, 8]' is invalid for input of size 7", InputSettings(), "float32") is None
