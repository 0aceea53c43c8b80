"""Half precision, which the next tools keep attributions in, and what is lost by it."""

from dataclasses import dataclass

import numpy as np

from pipeline.messages.errors import UserError

LARGEST = float(np.finfo(np.float16).max)  # 65504
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)  # 6.1e-5
DTYPES = ("float16", "float32")
DTYPE_OPTION = {"choices": DTYPES, "default": "float16", "help": "number type of the scores (default: float16)"}


@dataclass
class Rounding:
    """Rounds blocks to a dtype, and counts.

    Attributes:
        dtype: one of DTYPES.
        n_values: other than 0, so far.
        n_subnormal: of them, those with fewer digits than float16 has elsewhere (about 3).
        n_zero: of them, those that became 0.
    """

    dtype: str
    n_values: int = 0
    n_subnormal: int = 0
    n_zero: int = 0

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The values in the dtype; UserError where one is too large for it."""
        if self.dtype == "float32":
            return values
        magnitude = np.abs(values)
        if (largest := float(magnitude.max(initial=0))) > LARGEST:
            raise UserError(f"an attribution of {largest:.4g} is too large for float16 (65504); give --dtype float32")
        rounded = values.astype(np.float16)
        self.n_values += int(np.count_nonzero(values))
        self.n_zero += int(np.count_nonzero((rounded == 0) & (values != 0)))
        self.n_subnormal += int(np.count_nonzero((magnitude < SMALLEST_NORMAL) & (rounded != 0)))
        return rounded

    def notes(self) -> list[str]:
        """What was lost, a line, or none where nothing was rounded."""
        if self.dtype == "float32" or not self.n_values:
            return []
        subnormal, zero = (100 * n / self.n_values for n in (self.n_subnormal, self.n_zero))
        return [
            f"float16 keeps 3 digits: {subnormal:.2f} % of the values other than 0 are below {SMALLEST_NORMAL:.1e} and "
            f"keep fewer, {zero:.2f} % became 0"
        ]
