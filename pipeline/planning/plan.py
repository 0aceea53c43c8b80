"""The plan: all that a worker must know to compute any shard, resolved once and written beside the store."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

import numpy as np

from pipeline.planning.bit_rounding import MANTISSA_BITS
from pipeline.planning.number_types import NUMBER_TYPES
from pipeline.planning.plain_values import LARGEST, require, require_fields
from pipeline.planning.shards import Shard, n_shards, shard_at


class Probe(TypedDict):
    """What the model gave on a few rows; see execution/probe.py."""

    device: str
    rows: list[int]
    sha256: str
    values: dict[str, list[float]]


@dataclass(frozen=True)
class Plan:
    """A run with nothing left to decide.

    Attributes:
        n_rows: sequences.
        length: bases in each.
        targets: indices of the model's outputs, or of a contrast the number of each that takes part, by index.
        references: what they are; see pipeline/references.
        n_references: of each sequence.
        seed: of the run, as it was given.
        batch_size: sequence-reference pairs in a batch.
        rows_per_shard: sequences in a shard.
        dtype: of the computation.
        threads: CPU threads of the computation.
        deterministic: whether operations that are not deterministic are refused.
        device: cpu, cuda or cuda:<number>.
        device_kind: of the device that the run was planned on; see device.py.
        completeness: whether contributions should sum to the difference of predictions, so that convergence deltas are
            zero (by design, they do not under some heads).
        warning_threshold: a convergence delta with a larger absolute value is counted.
        fingerprint: what the values depend on.
        relative_threshold: a convergence delta over this share of the difference of predictions is counted too.
        folds: names of the model's folds, of which the mean is attributed.
        per_fold: whether the values of each fold are kept too.
        rows_per_group: rows that follow each other and share their references: 2 for the alleles of a variant, else 1.
        spread: whether the standard deviation over the references is kept; there are several.
        null_difference: of variants, whether both alleles are predicted within each reference too.
        reverse_complement: whether both strands are attributed, and the mean is kept.
        args: shape and type of each extra input of the model; see planning/extra_inputs.py.
        precision_bits: mantissa bits that are stored of attributions.
        probe: what the model gives on a few rows; see probe.py. Empty in stores of 0.1.
        random_state: reference k of every sequence is drawn with random_state + k.
        spot_check: whether a sequence and a reference of every shard are predicted alone too; see spot_check.py.
        decisions: what each fold decided from its input in Python when it was tried, by the line that decides, and what
            every shard must; None: each shard is its own measure.
        not_judged: indices of the targets of heads under which contributions do not sum to the difference by design,
            beside others.
        split: names of the model's modules that are computed again on the way back, as a pair would not fit the memory.
    """

    n_rows: int
    length: int
    targets: list[int | dict[str, float]]
    references: dict[str, Any]
    n_references: int
    seed: int
    batch_size: int
    rows_per_shard: int
    dtype: str
    threads: int
    deterministic: bool
    device: str
    device_kind: str
    completeness: bool
    warning_threshold: float
    fingerprint: dict[str, Any]
    folds: list[str] = field(default_factory=lambda: ["0"])
    per_fold: bool = False
    spread: bool = False
    null_difference: bool = False
    reverse_complement: bool = False
    rows_per_group: int = 1
    args: list[dict[str, Any]] = field(default_factory=list)
    precision_bits: int = MANTISSA_BITS
    probe: dict[str, Any] = field(default_factory=dict)
    random_state: int = 0
    spot_check: bool = True
    decisions: list[dict[str, list[Any]]] | None = None
    relative_threshold: float = 0.01
    target_labels: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    not_judged: list[int] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """Of the targets: their names where the person gave some, else their places."""
        return self.target_labels or [str(target) for target in self.targets]

    @property
    def outputs(self) -> list[int | dict[int, float]]:
        """The targets as the engine takes them."""
        return [
            target if isinstance(target, int) else {int(place): weight for place, weight in target.items()}
            for target in self.targets
        ]

    @property
    def n_shards(self) -> int:
        return n_shards(self.n_rows, self.rows_per_shard)

    def shard(self, index: int) -> Shard:
        """The rows of a shard."""
        return shard_at(index, self.n_rows, self.rows_per_shard)

    def n_rows_in(self, shards: np.ndarray) -> int:
        """Rows in some shards; indices ascending."""
        has_last = len(shards) > 0 and int(shards[-1]) == self.n_shards - 1
        return len(shards) * self.rows_per_shard - (-self.n_rows % self.rows_per_shard if has_last else 0)

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> "Plan":
        """The plan of plain values; those that dlshap 0.1 wrote have no random_state, and mean their seed by it.

        Raises:
            ValueError: they are no plan, or one that cannot be.
        """
        given = {"random_state": values.get("seed"), **values}
        given["completeness"] = given.pop("judged", None)
        require_fields(given, Plan, "plan")
        if given.get("probe"):
            require(given["probe"], Probe, "plan.probe")
        try:
            plan = Plan(**given)
        except TypeError as error:
            raise ValueError(f"plan: {error}") from None
        for problem in _impossible(plan):
            raise ValueError(f"plan.{problem}")
        return plan

    def to_values(self) -> dict[str, Any]:
        """Plain values, by the names that they are stored under."""
        return {"judged" if name == "completeness" else name: value for name, value in asdict(self).items()}


def _impossible(plan: Plan) -> Iterator[str]:
    """What cannot be, whoever wrote it."""
    least = {"n_rows": 1, "length": 1, "n_references": 1, "batch_size": 1, "rows_per_shard": 1, "threads": 1}
    for name, number in least.items():
        if getattr(plan, name) < number:
            yield f"{name} is {getattr(plan, name)}; expected at least {number}"
    if not plan.targets or not all(map(_is_target, plan.targets)):
        yield f"targets is {plan.targets}; expected indices of outputs, or numbers by such"
    if not all(0 <= target < len(plan.targets) for target in plan.not_judged):
        yield f"not_judged is {plan.not_judged} of {len(plan.targets)} targets"
    if not plan.folds:
        yield "folds is []; expected a name for each"
    if plan.dtype not in NUMBER_TYPES:
        yield f"dtype is {plan.dtype!r}; expected {', '.join(NUMBER_TYPES)}"
    if (
        plan.rows_per_group not in (1, 2)
        or plan.n_rows % plan.rows_per_group
        or plan.rows_per_shard % plan.rows_per_group
    ):
        yield f"rows_per_group is {plan.rows_per_group}, of {plan.n_rows} rows, {plan.rows_per_shard} in a shard"
    if not 1 <= plan.precision_bits <= MANTISSA_BITS:
        yield f"precision_bits is {plan.precision_bits}; expected 1 to {MANTISSA_BITS}"
    if not isinstance(plan.references.get("name"), str):
        yield "references has no name"
    for arg in plan.args:
        shape = arg.get("shape")
        is_shape = isinstance(shape, list) and all(type(size) is int and 0 < size < LARGEST for size in shape)
        if not is_shape or arg.get("dtype") not in ("float32", "int64"):
            yield f"args has {arg}; expected a shape, and float32 or int64"
    if not all(0 <= row < plan.n_rows for row in plan.probe.get("rows", [])):
        yield f"probe has rows {plan.probe['rows']} of {plan.n_rows}"
    said = {
        "input.rows": plan.n_rows,
        "input.length": plan.length,
        "settings.store.rows_per_shard": plan.rows_per_shard,
        "settings.engine.batch_size": plan.batch_size,
    }
    for name, number in said.items():
        if plan.fingerprint.get(name, number) != number:
            yield f"fingerprint.{name} is {plan.fingerprint[name]}, where the plan has {number}"
    if max(_sizes_of_rows(plan)) > LARGEST:
        yield "its arrays are larger than any disk"


def _is_target(target: int | dict[str, float]) -> bool:
    if isinstance(target, int):
        return target >= 0
    return bool(target) and all(
        place.isdecimal() and len(place) < 19 and math.isfinite(weight) for place, weight in target.items()
    )


def _sizes_of_rows(plan: Plan) -> Iterator[int]:
    yield plan.n_rows * plan.length * len(plan.targets) * len(plan.folds) * 16
    yield plan.n_rows * plan.n_references * len(plan.targets) * len(plan.folds) * 4
    yield max(plan.rows_per_shard, plan.batch_size) * plan.length * len(plan.targets)
    for arg in plan.args:
        yield plan.n_rows * math.prod(arg["shape"]) * 8
