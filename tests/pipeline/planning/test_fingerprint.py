"""Fingerprints: equal where the values are, and plain about where they are not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.fingerprint import differences, make_fingerprint


def test_fingerprints_depend_on_values_alone() -> None:
    one = make_fingerprint(model={"a": 1, "b": 2}, data={"x": 3}, settings={}, machine={"device": "cpu"})
    two = make_fingerprint(model={"b": 2, "a": 1}, data={"x": 3}, settings={}, machine={"device": "cpu"})
    assert one == two == {"model.a": 1, "model.b": 2, "input.x": 3, "machine.device": "cpu"}
    assert differences(one, two) == []
    assert differences({"a": float("nan")}, {"a": float("nan")}) == []


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2)), st.sampled_from("abcdef"))
def test_each_difference_is_named_with_both_values(fields: dict[str, int], field: str) -> None:
    other = {**fields, field: 7}
    (phrase,) = differences(fields, other)
    assert phrase == f"{field} is {fields.get(field)} there and 7 here"


def test_hashes_are_shortened() -> None:
    assert differences({"w": "a" * 64}, {"w": "b" * 64}) == [f"w is {'a' * 12} there and {'b' * 12} here"]


def test_attributes_of_modules_are_named_where_nothing_else_differs() -> None:
    stored, wanted = (
        {"model.settings.a.Net": 1, "model.name": "bpnet"},
        {"model.settings.b.Net": 1, "model.name": "module"},
    )
    assert differences(stored, wanted) == ["model.name is bpnet there and module here"]
    assert len(differences(stored, {**wanted, "model.name": "bpnet"})) == 2
