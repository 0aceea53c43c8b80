"""The public names, which are imported when they are asked for."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

import dlshap_core


def test_every_name_is_found_and_none_gives_way_to_a_submodule() -> None:
    assert set(dlshap_core.__all__) == set(dlshap_core._MODULE_OF)
    for name in dlshap_core._MODULE_OF:
        assert not isinstance(getattr(dlshap_core, name), ModuleType), name
    for name in ("audit", "deep_lift_shap"):
        setattr(dlshap_core, name, sys.modules[f"dlshap_core.{name}"])  # as an import of the submodule does
        assert getattr(dlshap_core, name).__module__ == f"dlshap_core.{name}"
    with pytest.raises(AttributeError, match="module 'dlshap_core' has no attribute 'explain'"):
        _ = dlshap_core.explain  # type: ignore[attr-defined]
