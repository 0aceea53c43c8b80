"""What is explained of a model's output: names of targets, notes, and heads on what is no profile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.execution.preflight import Preflight, run_preflight
from pipeline.messages.errors import UserError
from pipeline.models.bpnet import BPNet
from pipeline.models.code import Code
from pipeline.models.explained import OutputShapes, target_names
from pipeline.models.load import LoadedModel, load_model
from pipeline.planning.extra_inputs import strand_notes
from tests.pipeline.conftest import chosen

CODES = np.random.RandomState(0).randint(0, 4, 48).astype(np.uint8)


class Shaped(nn.Module):
    """Outputs of given shapes: one alone, several as a tuple."""

    def __init__(self, *shapes: list[int]) -> None:
        super().__init__()
        self.shapes = [list(shape) for shape in shapes]
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4 * 48, int(np.prod(shape))) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        flat = torch.relu(x.flatten(1) - 0.1)
        found = [layer(flat).reshape(x.shape[0], *shape) for layer, shape in zip(self.layers, self.shapes, strict=True)]
        return found[0] if len(found) == 1 else tuple(found)


def made(shapes: list[list[int]]) -> nn.Module:
    """What model._target_ names: a function, so that no checkpoint is needed."""
    return Shaped(*shapes)


def loaded(head: Any, *shapes: list[int], output: Any = None) -> LoadedModel:
    settings = {"name": "module", "head": head, "output": output, "_target_": f"{__name__}.made"}
    return load_model(chosen("model", **{**settings, "init": {"shapes": list(shapes)}}))


def tried(model: LoadedModel, targets: Any = "all") -> Preflight:
    config = Config()
    config.engine.targets = targets
    return run_preflight(model, CODES, "s0", config, "cpu")


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ([[2, 30]], "explaining the profile over 2 strands x 30 positions (model.head=profile_midpoint)"),
        ([[30]], "explaining the profile over 1 strand x 30 positions (model.head=profile_midpoint)"),
        (
            [[1, 48], [1]],
            "explaining the profile over 1 strand x 48 positions, the first of its 2 outputs (model.head="
            "profile_midpoint)",
        ),
        (
            [[2, 6]],
            "explaining the profile over 2 strands x 6 positions; the sequences have 48 bases: if its last axis is "
            "one of bins or tasks, it is no profile (model.head=profile_midpoint)",
        ),
    ],
)
def test_the_profile_that_is_taken_is_said(shapes: list[list[int]], text: str) -> None:
    preflight = tried(loaded("profile_midpoint", *shapes))
    assert preflight.notes == (text,)
    assert preflight.names == ("profile (midpoint)",)


@pytest.mark.parametrize("shape", [[5, 6], [3, 40], [30, 5], [2, 3, 10], [1], [2, 1], [2, 49], [60]])
def test_what_cannot_be_a_profile_is_refused(shape: list[int]) -> None:
    listed = ", ".join(map(str, shape))
    with pytest.raises(UserError, match=rf"model\.head=profile_elementwise: .*\(N, {listed}\).* is no profile.*=none"):
        tried(loaded("profile_elementwise", shape))


def test_one_profile_of_several_is_advised() -> None:
    with pytest.raises(UserError, match=r"such as one task's, 'model\.output=\[:, 0, :\]'\. "):
        tried(loaded("profile_midpoint", [3, 40]))
    with pytest.raises(UserError, match=r"such as one task's, 'model\.output=\[:, :, 0\]'\. "):
        tried(loaded("profile_midpoint", [30, 5]))
    assert tried(loaded("profile_midpoint", [30, 5], output="[:, :, 0]")).names == ("profile (midpoint)",)


def test_what_is_taken_as_counts_is_said() -> None:
    preflight = tried(loaded("counts", [2, 30], [1]))
    assert preflight.notes == (
        "explaining the model's output, the second of its 2 outputs, as log counts (model.head=counts)",
    )
    assert preflight.names == ("log counts",)
    preflight = tried(loaded("counts", [3, 4]))
    assert preflight.notes == (
        "explaining the model's output, (N, 3, 4) flattened to 12 targets, as log counts (model.head=counts)",
    )
    assert preflight.names[5] == "log counts, target 5"


def test_outputs_that_are_left_out_are_said() -> None:
    model = loaded("none", [7])
    assert tried(model).notes == ()
    assert tried(model, [0]).notes == ("explaining output 0 of the model's 7 (engine.targets)",)
    assert tried(model, [0]).names == ("output 0",)
    assert tried(model, [4, 2]).notes == ("explaining outputs 4, 2 of the model's 7 (engine.targets)",)
    assert tried(loaded("none", [1])).names == ("output",)
    assert tried(loaded("none", [2, 30], [3], output=1)).names[2] == "output 1, target 2"
    one = OutputShapes(output=(2, 1))
    assert target_names({"head": "none", "output": "accessibility"}, [0], one) == ["output accessibility"]


class Counting(nn.Module):
    """A part of a model that is a BPNet with control tracks."""

    def __init__(self) -> None:
        super().__init__()
        self.part = BPNet(n_filters=4, n_layers=1, n_outputs=1, trimming=4, n_control_tracks=2)

    def forward(self, x: Tensor, control: Tensor | None = None) -> Tensor:
        return self.part(x, control)[1]


def test_control_tracks_that_are_not_given_are_said() -> None:
    torch.manual_seed(0)
    model = LoadedModel(
        (Counting().eval(),), ("0",), "w", Code(settings={"of": "counting"}), {"head": "none", "output": None}, True
    )
    note = "the model was trained with 2 control tracks and gets zeros (dataset.args gives them)"
    assert tried(model).notes == (note,)
    config = Config()
    config.dataset.args = ["control.npy"]
    given = run_preflight(model, CODES, "s0", config, "cpu", [np.zeros((2, 48), np.float32)])
    assert given.notes == ()


def test_further_inputs_that_are_turned_are_said() -> None:
    args = [
        {"shape": [1], "dtype": "int64"},
        {"shape": [48], "dtype": "float32"},
        {"shape": [2, 48], "dtype": "float32"},
    ]
    assert strand_notes(["dose", "one", "two"], args, 48) == [
        "dataset.args: one is reversed for the other strand: its last axis has 48 places",
        "dataset.args: two is reversed for the other strand, and its two tracks change places: its last axis has 48 "
        "places",
    ]


def test_what_is_taken_of_an_output_is_said() -> None:
    preflight = tried(loaded("none", [6, 3], output="[:, mid2].mean(1)"))
    assert preflight.notes == (
        "taking [:, mid2].mean(1) (model.output) of what the model returns: a single tensor of shape (N, 6, 3), "
        "3 targets",
    )
    assert preflight.names[2] == "[:, mid2].mean(1), target 2"
    assert tried(loaded("profile_midpoint", [2, 30], [1], output="[0][:, 0:1]")).notes == (
        "taking [0][:, 0:1] (model.output) of what the model returns: a tuple with 0: (N, 2, 30), 1: (N, 1)",
        "explaining the profile over 1 strand x 30 positions (model.head=profile_midpoint)",
    )
    with pytest.raises(UserError, match=r"model\.output=0 leaves .*model\.head=profile_midpoint$"):
        tried(loaded("none", [2, 30], [1], output=0))
    with pytest.raises(UserError, match=r"not finite; .* or the numbers negative of which model\.output=sqrt"):
        tried(loaded("none", [7], output="sqrt([:, 1:3] - 1000)"))
