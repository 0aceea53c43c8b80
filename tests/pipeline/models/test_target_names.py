"""Names of targets from a file: in engine.targets, in the store's labels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pipeline
from pipeline.config.compose import compose_config
from pipeline.messages.errors import UserError
from pipeline.models.target_names import labels_of, places, plain, read_names, resolve
from tests.pipeline.conftest import Inputs

NAMES = ("K562_CTCF", "K562_POLR2A", "GM12878_CTCF")


def tracks() -> nn.Module:
    """What model._target_ names: (N, 4, 3) of sequences of any length, bins and then tracks."""
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 6, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Conv1d(6, 3, 1)]
    return nn.Sequential(*layers, Swapped())


class Swapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


OF_TRACKS = ["model=module", f"model._target_={__name__}.tracks", "model.checkpoint=null"]


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "K562_CTCF\nK562_POLR2A\nGM12878_CTCF\n",
        "\ufeffK562_CTCF\r\nK562_POLR2A \r\nGM12878_CTCF\r\n\r\n",
        "\tidentifier\tfile\n0\tK562_CTCF\ta\n1\tK562_POLR2A\tb\n2\tGM12878_CTCF\tc\n",
    ],
)
def test_names_are_read(tmp_path: Path, text: str) -> None:
    assert read_names(written(tmp_path / "names.txt", text)) == NAMES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\na\n", "a is on lines 1 and 3"),
        ("a\n\nb\n", "line 2: '' is no name"),
        ("a\nb\x1b[31m\n", "line 2: "),
        ("a\n" + "x" * 201, "is no name"),
        ("", "is empty"),
        ("index\tname\n0\ta\n", "none is called identifier; give one name a line: cut -f2"),
        ("identifier\tfile\na\tx\na\ty\n", "a is on lines 2 and 3"),
    ],
)
def test_files_that_are_no_names_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read_names(written(tmp_path / "names.txt", text))
    assert expected in str(caught.value)
    assert "names.txt" in str(caught.value)


def test_more_names_than_any_model_has_outputs_are_not_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 300,000 lines; expected one name a line, 262,144 at most"):
        read_names(written(tmp_path / "names.txt", "\n" * 299_999 + "a"))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.npy").write_bytes(b"\x93NUMPY\xff")
    for path in (tmp_path, tmp_path / "nowhere.txt", tmp_path / "names.npy"):
        with pytest.raises(UserError, match=r"one name a line"):
            read_names(str(path))
    with pytest.raises(UserError, match=r" is a folder; expected a file"):
        read_names(str(tmp_path))
    assert read_names(None) == ()


def test_targets_by_name() -> None:
    assert places([2, "K562_CTCF"], NAMES) == [2, 0]
    assert places("all", NAMES) == "all"
    for targets, expected in [
        (["K562_CTCf"], "there is no target K562_CTCf; nearest are K562_CTCF"),
        (["k562"], "nearest are K562_CTCF"),
        (["zzz"], "there is no target zzz among 3: K562_CTCF, "),
        (["K562 CTCF/x"], "stands in quotes of its own); nearest are K562_CTCF"),
        ([0, "K562_CTCF"], "0 and K562_CTCF are the same target"),
    ]:
        with pytest.raises(UserError) as caught:
            places(targets, NAMES)
        assert expected in str(caught.value)


def test_names_need_their_file() -> None:
    with pytest.raises(UserError, match=r"model\.target_names is not set; add model\.target_names=names\.txt"):
        compose_config(["engine.targets=[K562_CTCF]"])


def test_a_run_by_name_is_the_run_by_place(inputs: Inputs, tmp_path: Path) -> None:
    """The differences of two outputs, chosen by name, labelled in the store, and continued by place alone."""
    names = written(tmp_path / "names.txt", "left\nmiddle over left\n")
    output = "model.output=([:, :, 0:2] - [:, :, 2:3])[:, mid2].mean(1)"
    by_name = [output, f"model.target_names={names}", "engine.targets=[middle over left]"]
    alone = "model.output=[:, mid2].mean(1)"
    for store, given in [("a", by_name), ("b", [output, "engine.targets=[1]"]), ("c", [alone, "engine.targets=all"])]:
        assert pipeline.run(overrides(inputs, tmp_path / f"{store}.zarr", *given)).complete
    a, b, c = (pipeline.open_store(tmp_path / f"{name}.zarr") for name in "abc")
    assert a.targets == a.target_names == ["middle over left"]
    assert (b.targets, b.target_names) == (["1"], [f"{output[13:]}, target 1"])
    assert a.attrs["model"]["output"] == a.attrs["fingerprint"]["model.output"] == output[13:]
    assert (
        f"taking {output[13:]} (model.output) of what the model returns: a single tensor of shape (N, 4, 3), "
        f"2 targets" in a.attrs["notes"]
    )
    assert a.attrs["fingerprint"]["settings.engine.targets"] == [1]
    for name in ("hypothetical", "prediction"):
        ours, both = np.asarray(a[name][:]), np.asarray(c[name][:])
        np.testing.assert_array_equal(ours, np.asarray(b[name][:]))
        np.testing.assert_allclose(ours[:, 0], both[:, 1] - both[:, 2], atol=1e-5 * np.abs(both).max())
    again = overrides(inputs, tmp_path / "a.zarr", *by_name[:2], "engine.targets=[1]")
    assert pipeline.run(again).complete
    with pytest.raises(UserError, match=r"model\.output is"):
        pipeline.run(overrides(inputs, tmp_path / "a.zarr", "model.output=[:, 0, 0:2]", *by_name[1:]))


def overrides(inputs: Inputs, store: Path, *more: str) -> list[str]:
    given = inputs.overrides(store, *OF_TRACKS, *more)
    return [each for each in given if not each.startswith("model.init.")]


@pytest.mark.parametrize(
    ("names", "targets", "expected"),
    [
        ("left\n", "[left]", "has 1 name, and the model 2 targets"),
        ("a\nb\nc\n", "[c]", "model.target_names has 3 names"),
    ],
)
def test_counts_must_fit(inputs: Inputs, tmp_path: Path, names: str, targets: Any, expected: str) -> None:
    path = written(tmp_path / "names.txt", names)
    given = ["model.output=[:, 0, 0:2]", f"model.target_names={path}", f"engine.targets={targets}"]
    with pytest.raises(UserError) as caught:
        pipeline.run(overrides(inputs, tmp_path / "a.zarr", *given))
    assert expected in str(caught.value)


def test_contrasts_as_places() -> None:
    found = places(["K562_CTCF - mean(others)", 2], NAMES)
    assert resolve(found, 3) == [{0: 1.0, 1: -0.5, 2: -0.5}, 2]
    assert plain(found) == ["K562_CTCF - mean(others)=K562_CTCF - others.mean()", 2]
    assert labels_of(found, 3, NAMES) == ["K562_CTCF - mean(others)", "GM12878_CTCF"]
    assert resolve(places(["alone=[1]"], ()), 3) == [1], "a label for a target that has no name"
    assert resolve("all", 2) == [0, 1]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["K562 - mean(others)"], "there is no target K562; nearest are K562_CTCF"),
        (["K562_CTCF - ("], "K562_CTCF - (: expected an output, such as K562 or [5] at its end"),
        (["a=K562_CTCF - [1]", "b=K562_CTCF - [1]"], "a=K562_CTCF - [1] and b=K562_CTCF - [1] are the same target"),
        (["a=K562_CTCF - [1]", "b=[0] - [1]"], "a and b are the same target"),
        ([0, "b=2*[0] - [0]"], "0 and b are the same target"),
        (["a=[0] - [1]", "a=[0] - [2]"], "two targets are called a; give one a label of its own"),
        (["K562_CTCF=[1] - [2]", 0], "two targets are called K562_CTCF"),
    ],
)
def test_contrasts_that_are_none(targets: list[Any], expected: str) -> None:
    def resolved() -> None:
        found = places(targets, NAMES)
        resolve(found, 3)
        labels_of(found, 3, NAMES)

    with pytest.raises(UserError) as caught:
        resolved()
    assert expected in str(caught.value)


def test_a_run_of_contrasts_is_the_combination_of_runs(inputs: Inputs, tmp_path: Path) -> None:
    """In float64, on both strands: labels, predictions, deltas; and what goes on with the store, and what does not."""
    names = written(tmp_path / "names.txt", "left\nmiddle\nright\n")
    shared = ["model.output=[:, mid2].mean(1)", "engine.dtype=float64", "engine.reverse_complement=average"]
    named = [*shared, f"model.target_names={names}"]
    contrasts = 'engine.targets=["middle - mean(others)",right,"gain=left - 0.5*middle"]'
    for store, given in [("all", [*shared, "engine.targets=all"]), ("few", [*named, contrasts])]:
        assert pipeline.run(overrides(inputs, tmp_path / f"{store}.zarr", *given)).complete
    whole, few = (pipeline.open_store(tmp_path / f"{name}.zarr") for name in ("all", "few"))
    assert few.targets == few.target_names == ["middle - mean(others)", "right", "gain"]
    assert few.plan.outputs == [{1: 1.0, 0: -0.5, 2: -0.5}, 2, {0: 1.0, 1: -0.5}]
    assert few.attrs["fingerprint"]["settings.engine.targets"] == [
        "middle - mean(others)=middle - others.mean()",
        2,
        "gain=left - 0.5*middle",
    ]
    for name in ("attribution", "hypothetical", "prediction", "reference_prediction"):
        left, middle, right = np.moveaxis(np.asarray(whole[name][:], dtype=np.float64), 1, 0)
        expected = np.stack([middle - (left + right) / 2, right, left - middle / 2], 1)
        np.testing.assert_allclose(few[name][:], expected, atol=2e-7 * np.abs(expected).max())
    assert few.attrs["run"]["deltas"]["largest"] < 1e-12
    again = contrasts.replace("gain=left - 0.5*middle", "gain = left-0.5*middle")
    assert pipeline.run(overrides(inputs, tmp_path / "few.zarr", *named, again)).complete, "spaces make no difference"
    with pytest.raises(UserError, match=r"engine\.targets is .*0\.4"):
        pipeline.run(overrides(inputs, tmp_path / "few.zarr", *named, contrasts.replace("0.5", "0.4")))


def test_others_are_counted_where_targets_have_no_names(inputs: Inputs, tmp_path: Path) -> None:
    given = ["model.output=[:, mid2].mean(1)", 'engine.targets=["[2] - mean(others)",0]']
    assert pipeline.run(overrides(inputs, tmp_path / "a.zarr", *given)).complete
    store = pipeline.open_store(tmp_path / "a.zarr")
    assert (store.targets, store.target_names) == (
        ["[2] - mean(others)", "0"],
        ["[2] - mean(others)", "[:, mid2].mean(1), target 0"],
    )
    assert store.plan.outputs[0] == {2: 1.0, 0: -0.5, 1: -0.5}
    with pytest.raises(UserError, match=r"engine\.targets: \[3\] - \[0\]: target 3 is not there: there are 3 targets"):
        pipeline.run(overrides(inputs, tmp_path / "b.zarr", given[0], 'engine.targets=["[3] - [0]"]'))
