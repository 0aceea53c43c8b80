"""Bit-rounding: fewer bits of each mantissa, so that values compress better and stay plain float32 all the same."""

import numpy as np

MANTISSA_BITS = 23  # that float32 stores
_INFINITY = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)  # all bits but the sign


def round_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """The nearest float32 numbers with so many mantissa bits; of two that are equally near, the even one.

    Normal numbers change by at most 2**-(bits + 1) of themselves. Numbers below 2**-126 (subnormal) have fewer
    significant bits to lose, and change by at most 2**-(127 + bits). Those that would round to infinity become the
    largest finite number with so many bits. Zeros keep their sign; infinities and NaN are left as they are.

    Args:
        values: float32, of any shape.
        bits: 1 to 23; 23 changes nothing.

    Returns:
        A new array of the same shape, or `values` itself where nothing changes.
    """
    dropped = MANTISSA_BITS - bits
    if dropped == 0:
        return values
    raw = np.ascontiguousarray(values).view(np.uint32)
    kept = np.uint32(~((1 << dropped) - 1) & 0xFFFFFFFF)
    # Half of the last kept bit, less one unless that bit is odd; a carry into the exponent is what it should be.
    result = raw + (np.uint32((1 << (dropped - 1)) - 1) + ((raw >> np.uint32(dropped)) & np.uint32(1)))
    result &= kept
    is_special = (raw & _MAGNITUDE) >= _INFINITY
    result[is_special] = raw[is_special]
    overflows = ((result & _MAGNITUDE) == _INFINITY) & ~is_special
    result[overflows] = raw[overflows] & kept
    return result.view(np.float32)
