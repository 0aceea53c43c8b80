"""Numbers as people read them."""

import math

import numpy as np

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
NARROW = "\N{NARROW NO-BREAK SPACE}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(n: int) -> str:
    """1,234,567."""
    return f"{n:,}"


def number(value: float | None, digits: int = 3) -> str:
    """A value to so many significant digits: 0.0123, 45.6, 1,230, 3.70e-07 with a raised exponent.

    None, NaN and infinities are "not finite".
    """
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 < exponent < 5:
        return f"{value:,.{max(digits - 1 - exponent, 0)}f}".replace("-", MINUS)
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}{NARROW}{TIMES}{NARROW}{power_of_ten(int(power))}".replace("-", MINUS)


def mean(values: np.ndarray) -> float:
    """Of (n,) values; NaN where there are none."""
    return float(values.mean()) if len(values) else float("nan")


def tick(value: float) -> str:
    """A number at an axis, without zeros at its end: 0.25, 1,500, 2e+04 with a raised exponent."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:,.4g}".replace("-", MINUS)
    mantissa, _, power = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}{TIMES}{power_of_ten(int(power))}".replace("-", MINUS)


def power_of_ten(exponent: int) -> str:
    """10⁻⁷."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def share(part: float, whole: float) -> str:
    """A share in percent; what is not quite none or all does not look like it."""
    if not whole:
        return DASH
    percent = 100 * part / whole
    if 0 < percent < 0.01:
        return "under 0.01%"
    if 99.99 < percent < 100:
        return "over 99.99%"
    return f"{percent:.{0 if percent in (0, 100) else 2 if percent < 1 or percent > 99 else 1}f}%"
