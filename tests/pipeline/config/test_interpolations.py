"""Nothing is looked up outside of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.compose import compose_config
from pipeline.config.interpolations import refuse_lookups
from pipeline.config.schema import Config, StoreConfig
from pipeline.config.settings import to_dict
from pipeline.config.validate import from_mapping
from pipeline.messages.errors import UserError

LOOKUPS = [
    "${oc.env:ATK_SECRET}",
    "${oc.env:ATK_SECRET,none}",
    "x/${ oc.env : ATK_SECRET }/y",
    "${oc.decode:${oc.env:ATK_SECRET}}",
    "${oc.${seed}:ATK_SECRET}",
    "${oc.select:seed,${oc.env:ATK_SECRET}}",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
    "${lab.custom:ATK_SECRET}",
    r"\${oc.env:ATK_SECRET}",
    "${seed",
]


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATK_SECRET", "s3cr3t")


def refused(make: Any, *arguments: Any) -> None:
    with pytest.raises(UserError) as caught:
        make(*arguments)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("text", LOOKUPS)
def test_lookups_are_refused(text: str) -> None:
    refused(refuse_lookups, {"store": {"path": text}})
    refused(from_mapping, {"store": {"path": text}})
    refused(from_mapping, {"model": {"name": "module", "init": {"x": [text]}}})


def test_lookups_are_refused_by_every_way(tmp_path: Path) -> None:
    for override in (f"store.path='{LOOKUPS[0]}'", f"store.path={LOOKUPS[0]}", f"model={LOOKUPS[0]}"):
        refused(compose_config, [override])
    refused(lambda: from_mapping(to_dict(Config(store=StoreConfig(path=LOOKUPS[0])))))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "theirs.yaml").write_text(f"# @package _global_\nstore:\n  path: '{LOOKUPS[0]}'\n")
    refused(compose_config, ["experiment=theirs"], str(tmp_path))
    (tmp_path / "experiment" / "theirs.yaml").write_text(f"defaults: [{{override /model: '{LOOKUPS[0]}'}}]\n")
    refused(compose_config, ["experiment=theirs"], str(tmp_path))


def test_the_way_out_is_named() -> None:
    with pytest.raises(UserError, match=r'; let the shell look it up: store\.path="\$ATK_SECRET"$'):
        compose_config(["store.path=${oc.env:ATK_SECRET}"])


def test_other_settings_may_stand_for_a_value() -> None:
    config = compose_config(["store.path=${dataset.name}_${seed}.zarr", "seed=3"])
    assert config.store.path == "example_3.zarr"
    assert from_mapping({"seed": 3, "store": {"path": "s3://bucket/${seed}"}}).store.path == "s3://bucket/3"


def test_what_is_put_together_is_looked_up_neither() -> None:
    refused(from_mapping, {"dataset": {"args": ["$"]}, "store": {"path": "${dataset.args.0}{oc.env:ATK_SECRET}"}})
