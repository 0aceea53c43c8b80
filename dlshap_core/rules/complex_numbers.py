"""Functions of complex numbers spelled out in real and imaginary parts, or in products.

What is linear needs no rule, as torch's gradients of complex numbers are those of their parts. A product of two that
vary has the midpoint rule, as of real numbers: dy = da (b + b0)/2 + (a + a0)/2 db.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlshap_core.rules.call import Call
from dlshap_core.rules.kinds import Composite
from dlshap_core.rules.products import Quotient
from dlshap_core.rules.protocol import Pass

LABEL = "complex: spelled out"
_LARGEST_POWER = 8


def polar(abs: Tensor, angle: Tensor) -> Tensor:
    """abs (cos angle + i sin angle): midpoint products."""
    return torch.complex(abs * torch.cos(angle), abs * torch.sin(angle))


def absolute(input: Tensor) -> Tensor:
    """sqrt(real^2 + imaginary^2)."""
    return torch.sqrt(_squared_size(input))


def angle(input: Tensor) -> Tensor:
    """atan2(imaginary, real), which is integrated: refused where a path from reference to sequence crosses the cut."""
    return torch.atan2(input.imag, input.real)


def exp(input: Tensor) -> Tensor:
    """e^real (cos imaginary + i sin imaginary)."""
    return torch.polar(torch.exp(input.real), input.imag)


def square(input: Tensor) -> Tensor:
    """z z."""
    return input * input


def power(input: Tensor, exponent: Any) -> Tensor:
    """z^n as a product."""
    if isinstance(exponent, (Tensor, complex)) or exponent != int(exponent) or not 0 < exponent <= _LARGEST_POWER:
        raise ValueError(f"of complex numbers only the whole powers from 1 to {_LARGEST_POWER} have a rule")
    product = input
    for _ in range(int(exponent) - 1):
        product = product * input
    return product


def reciprocal(input: Tensor) -> Tensor:
    """conj(z) / |z|^2."""
    size = _squared_size(input)
    return torch.complex(input.real / size, -input.imag / size)


def quotient(input: Any, other: Tensor) -> Tensor:
    """a times 1/b; the parts of a over b where b is real."""
    if other.is_complex():
        return input * reciprocal(other)
    return torch.complex(input.real / other, input.imag / other)


def vector_norm(x: Tensor, *rest: Any, **options: Any) -> Tensor:
    """The norm of the absolute values."""
    return torch.linalg.vector_norm(absolute(x), *rest, **options)


def _squared_size(z: Tensor) -> Tensor:
    return torch.square(z.real) + torch.square(z.imag)


@dataclass(frozen=True)
class ComplexQuotient(Quotient):
    """Linear where the denominator is constant, else spelled out."""

    label: str = LABEL

    def run(self, forward: Pass, call: Call) -> Any:
        return call.plain() if self._is_linear(call) else Composite(quotient, LABEL).run(forward, call)
