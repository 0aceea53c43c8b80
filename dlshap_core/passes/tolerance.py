"""How far contributions may miss what they explain: as far as rounding, in the numbers that were asked for."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)
_NAMES_OF_HALVES = ("bfloat16", "bf16", "float16", "fp16", "half", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
# Relative to the largest difference of predictions among the pairs of a batch: rounding misses a hundredth of it, and
# what a wrong or missing rule misses is more.
_SHARE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
# Rounding steps of the largest prediction: all that is left of a small difference beside a large constant.
_STEPS = 16
# The same in float64, where a miss is not computed again in finer numbers: a prediction may be a small rest of large
# terms, and what lies below this is of no account.
_STEPS_IN_FLOAT64 = 1 << 20
_SHARE_IN_HALF = 1e-4  # where a model computes in half precision by itself: none of it may be seen
# Which target is worst: beside the difference of its predictions this share of their size, so that it is none whose
# differences are rounding.
_SIZE_BESIDE = 1e-2
_UNSURE = 10  # times both, where a model cannot be computed in float64 to tell rounding from a miss


@dataclass(frozen=True)
class Tolerance:
    """A share of the difference explained, and a share of the largest prediction."""

    share: float
    floor: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Tolerance":
        """Of numbers of a type."""
        steps = _STEPS_IN_FLOAT64 if dtype == torch.float64 else _STEPS
        return cls(_SHARE[dtype], steps * torch.finfo(dtype).eps)

    def strict(self) -> "Tolerance":
        """For a model that computes in half precision where more was asked for."""
        return Tolerance(min(self.share, _SHARE_IN_HALF), self.floor)

    def unsure(self) -> "Tolerance":
        """For a model of which it cannot be told whether it rounds or misses."""
        return Tolerance(_UNSURE * self.share, _UNSURE * self.floor)


@dataclass(frozen=True)
class Miss:
    """The worst pair of a batch.

    Attributes:
        error: by how much something misses, in units of the output.
        difference: the largest difference of predictions, of that target.
        size: the largest prediction, of that target.
        row, reference: of the pair in its batch.
    """

    error: float
    difference: float
    size: float
    row: int = 0
    reference: int = 0

    def is_within(self, tolerance: Tolerance) -> bool:
        return self.error <= tolerance.share * self.difference + tolerance.floor * self.size

    def __str__(self) -> str:
        if self.difference == 0:
            return f"{self.error:.1e}, where sequences and references have the same prediction"
        return f"{self.error / self.difference:.1e} of it (of {self.difference:.2g})"


def worst_miss(errors: Tensor, prediction: Tensor, reference_prediction: Tensor) -> Miss:
    """Of errors (S, T, K), or of others along the first and last axis, the one that is worst for its target.

    Args:
        errors: what misses.
        prediction: (S, T).
        reference_prediction: (S, T, K).
    """
    difference = (prediction[..., None] - reference_prediction).abs().amax((0, 2)).double()
    size = torch.maximum(prediction.abs().amax(0), reference_prediction.abs().amax((0, 2))).double()
    sizes = errors.abs().double()
    tiny = torch.finfo(torch.float64).tiny
    per_target = sizes.amax((0, 2)) / (difference + _SIZE_BESIDE * size).clamp_min(tiny)
    error, place = sizes.transpose(0, 1).flatten(1).max(1)
    of_target = torch.stack([error, difference, size, place.double()], 1)
    worst = of_target.index_select(0, per_target.argmax(0, keepdim=True))[0]
    largest, explained, prediction_size, at = worst.tolist()  # waits for the device, once
    row, reference = divmod(int(at), sizes.shape[2])
    return Miss(largest, explained, prediction_size, row, reference)


@dataclass(frozen=True)
class Lowered:
    """An operation whose output has fewer digits than the numbers of the computation.

    Attributes:
        where: path and class of the module.
        operation: its name.
        dtype: of the output.
    """

    where: str
    operation: str
    dtype: torch.dtype

    def complaint(self, miss: str, wanted: torch.dtype, modules: dict[str, nn.Module]) -> str:
        """What to say where it shows; the model's modules, by path, may be set to it."""
        low, high = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, wanted))
        setting = setting_of_half(modules, self.where.partition(" (")[0])
        cure = f"set {setting} to {high}" if setting else f"have it compute in {high}"
        return (
            f"{miss}: {self.where} computes in {low} from {self.operation!r} on, where the model computes in {high}; "
            f"{cure}, or accept its rounding with engine.dtype={low} (in Python dtype='{low}')"
        )


def setting_of_half(modules: dict[str, nn.Module], path: str) -> str:
    """`path.attribute=value` of the innermost module around a path that is set to half precision; "" if none is."""
    parts = path.split(".")
    for n in range(len(parts), -1, -1):
        owner = ".".join(parts[:n])
        if owner in modules and (found := _half_among(vars(modules[owner]), owner)):
            return found
    return ""


def _half_among(values: dict[str, object], owner: str, depth: int = 1) -> str:
    for name, value in values.items():
        path = f"{owner}.{name}" if owner else name
        if value in HALVES or (isinstance(value, str) and value.lower().removeprefix("torch.") in _NAMES_OF_HALVES):
            return f"{path} (now {value})"
        inner = value if isinstance(value, dict) else getattr(value, "__dict__", None)
        is_plain = not isinstance(value, (nn.Module, Tensor, type)) and not name.startswith("_")
        if depth and is_plain and isinstance(inner, dict) and (found := _half_among(inner, path, depth - 1)):
            return found
    return ""
