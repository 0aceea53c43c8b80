"""Fingerprints: equal where the values are, and plain about where they are not."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fingerprint import InputHash, auto_batch_size, differences, make_fingerprint

ROW = {"source_row": 3, "name": "a", "chrom": "chr1", "start": 5, "end": 9, "strand": "+"}


def hash_of(*rows: dict[str, object]) -> str:
    total = InputHash()
    for row in rows:
        total.add(np.array([0, 1, 2, 3], dtype=np.uint8), **{**ROW, **row})  # type: ignore[arg-type]
    return total.hexdigest()


def test_the_input_hash_sees_every_field_and_the_order() -> None:
    changed = [{"source_row": 4}, {"name": "b"}, {"chrom": "chr2"}, {"start": 6}, {"end": 10}, {"strand": "-"}]
    assert len({hash_of(), hash_of({}), hash_of({}, {}), *(hash_of(row) for row in changed)}) == 9
    assert hash_of({"name": "ab", "chrom": "c"}) != hash_of({"name": "a", "chrom": "bc"})
    assert hash_of({"name": "x"}, {"name": "y"}) != hash_of({"name": "y"}, {"name": "x"})
    assert hash_of({"name": "x"}) == hash_of({"name": "x"})


def test_fingerprints_depend_on_values_alone() -> None:
    one = make_fingerprint(model={"a": 1, "b": 2}, data={"x": 3}, settings={}, machine={"device": "cpu"})
    two = make_fingerprint(model={"b": 2, "a": 1}, data={"x": 3}, settings={}, machine={"device": "cpu"})
    assert one == two == {"model.a": 1, "model.b": 2, "input.x": 3, "machine.device": "cpu"}
    assert differences(one, two) == []


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2)), st.sampled_from("abcdef"))
def test_each_difference_is_named_with_both_values(fields: dict[str, int], field: str) -> None:
    other = {**fields, field: 7}
    (phrase,) = differences(fields, other)
    assert phrase == f"{field} is {fields.get(field)} there and 7 here"


def test_hashes_are_shortened() -> None:
    assert differences({"w": "a" * 64}, {"w": "b" * 64}) == [f"w is {'a' * 12} there and {'b' * 12} here"]


@given(st.integers(1, 10**6), st.integers(1, 200), st.sampled_from(["cpu", "cuda"]))
def test_automatic_batches_hold_whole_sequences_or_parts_of_one(length: int, n_references: int, device: str) -> None:
    pairs = auto_batch_size(length, n_references, device)
    assert pairs >= 1
    assert pairs < n_references or pairs % n_references == 0
    assert pairs * length <= max(2**21, length)
