"""The types of numbers that `engine.dtype` names, and how far rounding may take a value in each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NumberType:
    """One type.

    Attributes:
        epsilon: from 1 to the next number.
        tolerance: of the largest value: how far two devices of different kinds may differ.
        finer: the type that its rounding is measured against; None: it is too fine to need that.
    """

    epsilon: float
    tolerance: float
    finer: str | None = None


NUMBER_TYPES = {
    "float64": NumberType(2.0**-52, 1e-6),
    "float32": NumberType(2.0**-23, 1e-3, "float64"),
    "tf32": NumberType(2.0**-10, 0.05, "float32"),
    "float16": NumberType(2.0**-10, 0.1, "float32"),
    "bfloat16": NumberType(2.0**-7, 0.3, "float32"),
}
