"""Computing rows of a store again, with the model that it names, to compare them with what it holds.

A row is computed by itself, so that its last bits may differ from those of its batch: values are compared within the
tolerance of the run's numbers.
"""

from dataclasses import replace

import numpy as np

from pipeline.config.schema import ModelConfig
from pipeline.config.settings import settings_of
from pipeline.execution.device import resolve_device
from pipeline.execution.ensemble import attribute_rows
from pipeline.execution.pipes import refuse_pipes_among
from pipeline.execution.probe import relative_error
from pipeline.execution.shard import shard_values
from pipeline.execution.verify import sample_rows
from pipeline.messages.errors import UserError
from pipeline.models.load import load_model
from pipeline.planning.number_types import NUMBER_TYPES
from pipeline.planning.plan import Plan
from pipeline.references.resolve import load_references
from pipeline.store.attributes import plan_of, read_attributes
from pipeline.store.codec import ShardCodec, names_of_rows, read_array
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import POOL, input_arrays, layout_of, shard_key
from pipeline.store.verify.findings import Findings, Problem

COMPARED = ("prediction", "hypothetical")


def recompute(directory: RunDirectory, model: ModelConfig, n: int, findings: Findings) -> None:
    """Compute n rows of the store's finished shards again, and add to the verdict what differs.

    Raises:
        UserError: the model cannot be loaded.
    """
    refuse_pipes_among(settings_of(model, "model."))
    attributes = read_attributes(directory.store)
    assert attributes is not None  # it was just verified
    plan, loaded = plan_of(attributes), load_model(model)
    if different := loaded.differences(plan.fingerprint):
        findings.notes.append(f"the model here is not the one of the run: {'; '.join(different)}")
    damaged = {problem.shard for problem in findings.problems}
    done = range(plan.n_shards) if attributes["complete"] else directory.done_indices()
    try:
        draw = load_references(plan, lambda: read_array(directory.store, POOL))
    except UserError as error:
        findings.not_checked.append(f"rows are not computed again: {error}")
        return
    here, codec = replace(plan, device=resolve_device("auto")), ShardCodec(directory.store)
    for index, rows in sample_rows(plan, [index for index in done if index not in damaged], n):
        stored = _Stored(directory, codec, plan, index)
        for row in rows:
            first = row - row % plan.rows_per_group
            some = slice(first, first + plan.rows_per_group)
            codes, *extra_inputs = (stored.read(name)[some] for name in input_arrays(plan))
            references = draw(codes, stored.start + first)
            found = shard_values(
                codes, references, attribute_rows(loaded.folds, here, codes, references, extra_inputs), plan
            )
            for name in COMPARED:
                stored.compare(name, row, found[name][row - first], findings)
            findings.n_recomputed += 1


class _Stored:
    """One shard of a store."""

    def __init__(self, directory: RunDirectory, codec: ShardCodec, plan: Plan, index: int) -> None:
        self._directory, self._codec, self._plan, self._shard = directory, codec, plan, plan.shard(index)
        self._arrays: dict[str, np.ndarray] = {}
        self.start = self._shard.start

    def key(self, name: str) -> str:
        return shard_key(name, self._shard.index, layout_of(self._plan))

    def read(self, name: str) -> np.ndarray:
        """An array's rows of the shard."""
        if name not in self._arrays:
            self._arrays[name] = self._codec.read(name, self._shard, layout_of(self._plan))
        return self._arrays[name]

    def compare(self, name: str, row: int, found: np.ndarray, findings: Findings) -> None:
        """A row of an array with what came out now."""
        error = relative_error(self.read(name)[row], found, self.read("prediction")[row], self._plan.dtype)
        findings.largest_error = max(findings.largest_error, error)
        rounding = 0.5**self._plan.precision_bits  # of values that lie on either side of what is stored
        if error > NUMBER_TYPES[self._plan.dtype].tolerance + rounding:
            number = self.start + row
            (title,) = names_of_rows(self._directory.store, [number])
            what = f"differs by {error:.1e} of its largest value from what the model gives now, row {number}, {title!r}"
            rows = (self._shard.start, self._shard.stop)
            findings.problems.append(Problem(self.key(name), what, self._shard.index, rows))
