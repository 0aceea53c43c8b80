"""What is used of Hydra beyond its documented interface; a test for each, which fails where a version takes it away."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.version import VersionBase

from pipeline.config import hydra_private


def test_the_loader_composes_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults:\n  - ours\n  - kind: big\n  - _self_\nb: 2\n")
    before = VersionBase.instance().version_base
    nodes = [(None, "ours", {"a": 1}), ("kind", "big", {"size": 9})]
    composed = hydra_private.compose(str(tmp_path), ["b=3"], nodes)
    assert composed == {"a": 1, "kind": {"size": 9}, "b": 3}
    assert VersionBase.instance().version_base == before
    assert not GlobalHydra.instance().is_initialized()
    assert "ours.yaml" not in ConfigStore.instance().repo
    assert "big.yaml" not in ConfigStore.instance().repo.get("kind", {})


def test_the_loader_works_within_a_hydra_application(tmp_path: Path) -> None:
    for name, text in [("theirs", "x: 1\n"), ("ours", "y: 2\n")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    with initialize_config_dir(str(tmp_path / "theirs"), version_base="1.2"):
        assert hydra_private.compose(str(tmp_path / "ours"), [], []) == {"y": 2}
        assert compose("config") == {"x": 1}


def test_the_parser_of_overrides_names_what_each_sets() -> None:
    assert hydra_private.override_keys(["a.b=1", "++c=[1,2]", "group=choice", "~d"]) == ["a.b", "c", "group", "d"]
    with pytest.raises(HydraException):
        hydra_private.override_keys(["a=[1"])
