"""Configurations that would become large by aliases and interpolations."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.config.compose import compose_config
from pipeline.messages.errors import UserError


def experiment(folder: Path, text: str) -> Path:
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / "x.yaml").write_text(f"# @package model.init\n{text}\n")
    return folder


def refusal(overrides: list[str], folder: Path | None = None) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        compose_config(overrides, None if folder is None else str(folder))
    assert time.monotonic() - started < 30
    assert "\n" not in str(caught.value)
    return str(caught.value)


LISTS = "a0: &a0 [1]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9))
TEXTS = "a0: &a0 xxxxxxxxxx\n" + "\n".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 25))


@pytest.mark.parametrize("text", [LISTS, TEXTS, "a: &a [*a]"])
def test_aliases_of_aliases(tmp_path: Path, text: str) -> None:
    message = refusal(["experiment=x"], experiment(tmp_path, text))
    assert "experiment/x.yaml has more than 1000000 values once its aliases (*) are replaced" in message


def test_aliases_that_are_used_as_they_should(tmp_path: Path) -> None:
    folder = experiment(tmp_path, "a: &a {x: 1}\nb:\n  <<: *a\n  y: [*a, 2]")
    init = compose_config(["experiment=x"], str(folder)).model.init
    assert init == {"a": {"x": 1}, "b": {"x": 1, "y": [{"x": 1}, 2]}}


def test_a_file_that_is_large(tmp_path: Path) -> None:
    message = refusal(["experiment=x"], experiment(tmp_path, f"a: {'x' * 10**6}"))
    assert "x.yaml has 1000026 bytes; expected a configuration of at most 1000000" in message


@pytest.mark.parametrize("where", ["file", "command"])
def test_interpolations_of_interpolations(tmp_path: Path, where: str) -> None:
    values = {"a0": "xxxxxxxxxx"} | {f"a{i}": f"${{model.init.a{i - 1}}}${{model.init.a{i - 1}}}" for i in range(1, 30)}
    if where == "file":
        folder = experiment(tmp_path, "\n".join(f"{name}: {value}" for name, value in values.items()))
        message = refusal(["experiment=x"], folder)
    else:
        message = refusal([f"model.init.{name}='{value}'" for name, value in values.items()])
    assert (
        message == "the configuration has more than 1000000 values once its interpolations are replaced; write them out"
    )


@pytest.mark.parametrize(
    "reference",
    ["${..a%d}", "${...init.a%d}", "${model.init[a%d]}", "${model.${k}.a%d}"],
)
def test_interpolations_of_other_forms(tmp_path: Path, reference: str) -> None:
    values = [f"a{i}: ['{reference % (i - 1)}', '{reference % (i - 1)}']" for i in range(1, 30)]
    message = refusal(["experiment=x"], experiment(tmp_path, "\n".join(["a0: x", "k: init", *values])))
    assert "once its interpolations are replaced" in message


def test_interpolations_that_are_used_as_they_should() -> None:
    config = compose_config(
        ["dataset=tiles", "dataset.genome=g.fa", "dataset.length=2114", "dataset.stride=${.length}"]
    )
    assert config.dataset.stride == 2114  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", ["[" * 2000 + "]" * 2000, "{a: " * 300 + "1" + "}" * 300])
def test_values_that_are_nested_too_deeply(tmp_path: Path, value: str) -> None:
    assert "is nested too deeply" in refusal([f"model.init={{a: {value}}}"])
    assert "is nested too deeply" in refusal(["experiment=x"], experiment(tmp_path, f"a: {value}"))


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    assert "cannot be read: Exceeds the limit (4300 digits)" in refusal([f"seed={'9' * 5000}"])
    assert "cannot be read: Exceeds the limit" in refusal(["experiment=x"], experiment(tmp_path, f"a: {'9' * 5000}"))
