"""What a store does not decide alone, and how it is given again."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import registry
from pipeline.config.compose import compose, compose_config
from pipeline.config.overrides import as_overrides, command_line
from pipeline.config.schema import LimitsConfig
from pipeline.config.settings import settings_of
from pipeline.config.trust import not_given

NOT_PLAIN = {
    "model._target_",
    "model.layers",
    "model.init",
    "model.trust_pickle",
    "cluster.code",
    "cluster.address",
    "store.options",
    *(f"limits.{item.name}" for item in fields(LimitsConfig)),
}
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="$\0\r\n", exclude_categories=["Cs"]), max_size=9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), inner)
    ),
    max_leaves=6,
)


def test_the_settings_that_a_person_decides() -> None:
    """Whoever adds a setting that is none of these says so."""
    found = set()
    for group in registry.GROUPS:
        for name in registry.names(group):
            found |= {
                each.key for each in settings_of(registry.schema(group, name)(), f"{group}.") if not each.is_plain
            }
    found |= {each.key for each in settings_of(compose_config([])) if not each.is_plain}
    assert found == NOT_PLAIN


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"model._target_": "a.B", "model.init.width": 5, "model.init.deep": {"_target_": "a.C"}}),
        (["model._target_=a.B", "model.init.width=5"], {"model.init.deep": {"_target_": "a.C"}}),
        (["model._target_=a.B", "model.init={width:5,deep:{_target_:a.C}}"], {}),
        (["model=module", "model._target_=a.B", "model.init.width=5", "model.init.deep._target_=a.C"], {}),
    ],
)
def test_what_was_not_given(overrides: list[str], expected: dict[str, Any]) -> None:
    whole = ["model=module", "model._target_=a.B", "model.init.width=5", "model.init.deep._target_=a.C"]
    assert not_given(compose_config(whole), compose(overrides)) == expected
    again = [*overrides, *as_overrides(expected)]
    assert not_given(compose_config(whole), compose(again)) == {}, "what an error says to give again is enough"


@settings(max_examples=40)
@given(VALUES)
def test_any_value_can_be_given_again(value: Any) -> None:
    (override,) = as_overrides({"model.init.x": value})
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert parsed.value() == value
    assert shlex.split(command_line(["run"], {"model.init.x": value})) == ["dlshap", "run", override]
