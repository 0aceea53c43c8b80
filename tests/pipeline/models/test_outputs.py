"""`model.output`: what it explains of models of all shapes, against wrappers written by hand, and what it refuses."""

from __future__ import annotations

import dataclasses
import shlex
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from dlshap_core.references import dinucleotide_shuffle
from pipeline.config.compose import compose, compose_config, override
from pipeline.config.model_output import normal, output_problem, parse
from pipeline.messages.errors import UserError
from pipeline.models.outputs import SelectedOutput, chosen, suggestions
from tests.pipeline.conftest import chosen as settings

LENGTH = 48
Pair = namedtuple("Pair", ["profile", "counts"])  # what users' models return


@dataclasses.dataclass
class Heads:
    human: Tensor
    mouse: Tensor


class Shaped(nn.Module):
    """Positive outputs (N, *shape) for each shape, put together by a function."""

    def __init__(self, form: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.shapes = form, shapes
        self.layers = nn.ModuleList(nn.Linear(4 * LENGTH, torch.Size(shape).numel()) for shape in shapes)

    def forward(self, x: Tensor) -> Any:
        flat = torch.relu(x.flatten(1) - 0.1)
        layers = zip(self.layers, self.shapes, strict=True)
        return self.form(
            *(torch.nn.functional.softplus(layer(flat)).reshape(len(x), *shape) for layer, shape in layers)
        )


class Wrapped(nn.Module):
    """What people write by hand."""

    def __init__(self, model: nn.Module, body: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.body = model, body

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(self.model(x))
        return found.reshape(len(x), -1)


def alone(y: Tensor) -> Tensor:
    return y


def in_tuple(y: Tensor) -> Any:
    return ({"a": y, "b": y[:, 1:]}, y.mean(1))


Case = tuple[Callable[..., Any], list[tuple[int, ...]], str, Callable[[Any], Tensor]]
CASES: dict[str, Case] = {
    "bins, tracks": (alone, [(16, 5)], "[:, 6:10].mean(1)", lambda y: y[:, 6:10].mean(1)),
    "middle bins": (alone, [(16, 5)], "[:, mid4].mean(1)", lambda y: y[:, 6:10].mean(1)),
    "tracks, bins": (alone, [(5, 17)], "[:, :, mid5].mean(2)", lambda y: y[:, :, 6:11].mean(2)),
    "strands summed": (alone, [(2, 12)], ".sum(1)[:, mid2].mean(1)", lambda y: y.sum(1)[:, 5:7].mean(1)),
    "of the last axis": (alone, [(2, 12)], "[..., mid4].sum(-1)", lambda y: y[..., 4:8].sum(-1)),
    "donor at the centre": (alone, [(3, 11)], "[:, 2, mid]", lambda y: y[:, 2, 5]),
    "donor, channels last": (alone, [(11, 3)], "[:, 5, 2]", lambda y: y[:, 5, 2]),
    "a head of a dict": (lambda a, b: {"human": a, "mouse": b}, [(8, 5), (8, 3)], "human[:, mid4].mean(1)", None),
    "a head by quotes": (lambda a, b: {"my-head": a, "b": b}, [(8, 5), (3,)], "['my-head'].mean(1)", None),
    "a dataclass": (Heads, [(8, 5), (3,)], "output.human.mean(axis=1)", lambda y: y.human.mean(1)),
    "a named tuple": (Pair, [(2, 12), (1,)], "profile.sum((1, 2))", lambda y: y.profile.sum((1, 2))),
    "a dict in a tuple": (in_tuple, [(8, 3)], "[0]['b'][:, ::2].mean(1)", lambda y: y[0]["b"][:, ::2].mean(1)),
    "one minus others": (alone, [(7,)], "[:, 5] - [:, 0:5].mean(1)", lambda y: y[:, 5] - y[:, 0:5].mean(1)),
    "each minus the mean": (alone, [(7,)], "output - .mean(1)", lambda y: y - y.mean(1)[:, None]),
    "each minus, kept": (alone, [(4, 7)], "(output - .mean(2, keepdim=True))[:, :, -1]", None),
    "coefficients": (alone, [(4, 6)], "0.5*[:, 1] - 2*[:, -1]/3", lambda y: 0.5 * y[:, 1] - 2 * y[:, -1] / 3),
    "signs": (alone, [(4,)], "-([:, 1] + [:, 2]) * 2 - 1", lambda y: -(y[:, 1] + y[:, 2]) * 2 - 1),
    "of two outputs": (lambda a, b: (a, b), [(6,), (6,)], "[0] - [1]", lambda y: y[0] - y[1]),
    "factors": (alone, [(4,)], "2*[:, 1:]/3*4/(1 + 4)", lambda y: 2 * y[:, 1:] / 3 * 4 / 5),
    "logarithms": (alone, [(5,)], "log([:, 1]) - log([:, 2])", lambda y: torch.log(y[:, 1]) - torch.log(y[:, 2])),
    "squashed": (alone, [(12, 4)], "sqrt([:, mid4].sum(1) + 1)", lambda y: torch.sqrt(y[:, 4:8].sum(1) + 1)),
    "log of a sum": (alone, [(12, 4)], "[:, mid4].sum(1).log1p()", lambda y: torch.log1p(y[:, 4:8].sum(1))),
    "logsumexp": (alone, [(12, 4)], "logsumexp(output, 1)", lambda y: y.logsumexp(1)),
    "largest": (alone, [(12, 4)], "exp(.max(dim=1))", lambda y: torch.exp(y.amax(1))),
    "smallest": (alone, [(12, 4)], ".min(1)", lambda y: y.amin(1)),
    "a probability": (alone, [(3, 11)], ".softmax(1)[:, 2, mid]", lambda y: y.softmax(1)[:, 2, 5]),
    "log2 fold": (alone, [(5,)], "log2([:, 1]) - log2([:, 2])", lambda y: y[:, 1].log2() - y[:, 2].log2()),
    "log10 and sigmoid": (alone, [(5,)], "sigmoid(log10(output))", lambda y: y.log10().sigmoid()),
    "a key that is a number": (lambda a: {"atac": {128: a}}, [(8, 3)], "atac.128[:, mid2].mean(1)", None),
    "a key of digits": (lambda a: {"atac": {"128": a}}, [(8,)], "atac[128]", lambda y: y["atac"]["128"]),
    "identity": (alone, [(6,)], "identity([:, 1:3])", lambda y: y[:, 1:3]),
    "chosen tracks": (alone, [(16, 9)], "[:, mid4, [1, 5, -2]].mean(1)", lambda y: y[:, 6:10].mean(1)[:, [1, 5, 7]]),
    "backwards": (alone, [(6,)], "[:, ::-2]", lambda y: y[:, [5, 3, 1]]),
    "axes of length 1": (alone, [(1, 5, 1)], "output", lambda y: y),
    "a value for each row": (alone, [(4, 5)], ".mean(1, 2)", lambda y: y.mean((1, 2))),
    "a name of all": (lambda y: {"output": y}, [(4,)], "output[:, 2]", lambda y: y["output"][:, 2]),
}
WRITTEN = {
    "a head of a dict": lambda y: y["human"][:, 2:6].mean(1),
    "a head by quotes": lambda y: y["my-head"].mean(1),
    "a key that is a number": lambda y: y["atac"][128][:, 3:5].mean(1),
    "each minus, kept": lambda y: (y - y.mean(2, keepdim=True))[:, :, -1],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_wrapper_written_by_hand_bit_for_bit(case: str, dtype: torch.dtype) -> None:
    form, shapes, text, body = CASES[case]
    model = Shaped(form, *shapes).to(dtype).eval()
    body = body or WRITTEN[case]
    generator = torch.Generator().manual_seed(1)
    X = one_hot(torch.randint(0, 4, (3, LENGTH), generator=generator).to(torch.uint8))
    references = dinucleotide_shuffle(X, n=2, random_state=0)
    assert output_problem(text) is None
    ours, theirs = (
        attribute(each, X, references, targets="all", device="cpu", raw_outputs=True)
        for each in (SelectedOutput(model, normal(text), is_for_head=False), Wrapped(model, body))
    )
    for name in ("prediction", "hypothetical", "reference_prediction"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    spread = ours.prediction.abs().max()
    assert ours.convergence_delta.abs().max() < (2e-5 if dtype == torch.float32 else 1e-12) * max(1, spread)


def test_float32_is_float64_but_for_rounding() -> None:
    for form, shapes, text, _ in CASES.values():
        X = one_hot(torch.randint(0, 4, (2, LENGTH), generator=torch.Generator().manual_seed(2)).to(torch.uint8))
        model = SelectedOutput(Shaped(form, *shapes).eval(), normal(text), is_for_head=False)
        references = dinucleotide_shuffle(X, n=2, random_state=0)
        single, double = (
            attribute(model, X, references, targets="all", device="cpu", dtype=dtype).hypothetical.double()
            for dtype in (torch.float32, torch.float64)
        )
        assert (single - double).abs().max() <= 2e-5 * double.abs().max(), text


@pytest.mark.parametrize("text", [text for _, _, text, _ in CASES.values()])
def test_the_normal_form_is_the_same_expression(text: str) -> None:
    assert parse(normal(text)) == parse(normal(normal(text)))
    assert normal(normal(text)) == normal(text)
    assert normal(text.replace(" ", "")) == normal(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[:, 1]/[:, 2]", "log([:, 1]) - log([:, 2])"),
        ("[:, 1]*[:, 2]", "a number times an output"),
        ("[:, 1].__class__()", "there is no __class__()"),
        ("medain([:, 1], 1)", "expected mean"),
        ("logsumexpp([:, 1], 1)", "did you mean logsumexp?"),
        ("[:, __import__]", "__import__ is no place"),
        ("[:, K562]", "model.target_names=names.txt and 'engine.targets=[K562]'"),
        (".softmax(1, 2)", "along one axis, which stays, such as .softmax(1)"),
        ("[:, 5", "at its end"),
        ("[:, 1] [:, 2] (", "at '('"),
        ("Dnase (K562)", "is written ['Dnase (K562)']"),
        ("[:, :5].mean()", "needs the axes"),
        ("mean(1)", ".mean(1) is of the whole"),
        ("[:, 1:5:0]", "step that is not 0"),
        ("[]", "holds nothing"),
        ("[..., 1, ...]", "... twice"),
        ("[:, []]", "a list of no places"),
        ("['a', 1]", "a name stands alone"),
        ("[:, 'K562']", "model.target_names=names.txt and 'engine.targets=[K562]'"),
        ("log(2)", ".log() is of the whole"),
        ("[:, 1]/0", "divides by 0"),
        ("1e999*[:, 1]", "too large a number"),
        ("1e3[:, 1]", "another sign behind a number at '[:, 1]'"),
        ("9" * 5000 + "[:, 1]", "too large a number"),
        ("[:, 99999999999999999999999]", "too large a number"),
        ("(" * 400 + "[:, 1]" + ")" * 400, "too many parts"),
        ("(" * 20 + "[:, 1]" + ")" * 20, "nested more than 12"),
        ("+".join(["[:,1]"] * 3000), "too many parts"),
        ("[" * 30_000, "30000 characters"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place(text: str, expected: str) -> None:
    (problem,) = settings("model", "module", output=text).problems()
    assert problem.startswith("model.output=")
    assert expected in problem
    assert len(problem) < 700


THREE_AXES = torch.zeros(2, 16, 5)
GIVEN = ["model=module", "model._target_=a.B", "dataset=fasta", "dataset.path=x.fa"]


@pytest.mark.parametrize(
    ("outputs", "text", "expected"),
    [
        (THREE_AXES, "[0]", "[:, 0] is one of its targets"),
        (THREE_AXES, "[1, 2]", "axis 0, which is the sequences"),
        (THREE_AXES, "[0:1, 2]", "axis 0, which is the sequences"),
        (THREE_AXES, ".mean(0)", "axis 0, which is the sequences"),
        (THREE_AXES, ".mean(-3)", "axis 0, which is the sequences"),
        (THREE_AXES, ".mean(3)", "no such axis of (N, 16, 5)"),
        (THREE_AXES, ".mean(1, -2)", "twice over an axis"),
        (THREE_AXES, "[:, 16]", "axis 1 has 16 places, 0 to 15"),
        (THREE_AXES, "[:, [3, -17]]", "place -17 is not there"),
        (THREE_AXES, "[:, 446:450].mean(1)", "axis 1 has 16 places"),
        (THREE_AXES, "[:, 12:20].mean(1)", "a slice ends at 16 at most"),
        (THREE_AXES, "[:, 5:5].mean(1)", "nothing is left of axis 1"),
        (THREE_AXES, "[:, mid3].mean(1)", "give mid4"),
        (THREE_AXES, "[:, mid18].mean(1)", "axis 1 has 16 places"),
        (THREE_AXES, "[:, mid]", "mid2 is both"),
        (THREE_AXES, "[:, 1, 2, 3]", "has 4 places, and the output 3 axes"),
        (THREE_AXES, "[:, 1] - [:, :, 1]", "(N, 5) and (N, 16); expected the same axes"),
        (THREE_AXES, "human[:, 1]", "no such output (the whole of it is written output, or nothing)"),
        (THREE_AXES, "shape", "no such output"),
        ({"human": THREE_AXES}, "hunam[:, 1]", "human: (N, 16, 5), such as 'model.output=human[:, mid4].mean(1)'"),
        ({"human": THREE_AXES}, "hunam[:, 1]", "; did you mean human?"),
        ({"human": THREE_AXES}, "[:, 1]", "no such output as [:, 1]"),
        ({}, "[0]", "a mapping with nothing in it; nothing of it"),
        ({"human": THREE_AXES}, ".mean(1)", "not one tensor"),
        ((THREE_AXES, THREE_AXES[:, 0]), "[2][:, 1]", "such as 'model.output=[1]' (5 targets, axis 1), or"),
        ((THREE_AXES, None), "[2][:, 1]", "0: (N, 16, 5), 1: NoneType, such as 'model.output=[0][:, mid4].mean(1)'"),
        (
            torch.zeros(4, 3),
            "[:, 1]",
            "is (4, 3) for 2 sequences: no row for each; the model returns a single",
        ),
        (
            torch.zeros(4, 3),
            "[:, 1]",
            "; nothing of it is numbers with a row for each sequence: return those",
        ),
        ({"label": torch.zeros(2, dtype=torch.int64), "p": torch.zeros(2)}, "x", "such as 'model.output=p' (1 target)"),
        (Heads(THREE_AXES, THREE_AXES), "__class__[:, 1]", "no such output"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(outputs: Any, text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        chosen(outputs, normal(text), 2)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "first"),
    [
        (torch.zeros(2, 16, 5), "[:, mid4].mean(1)"),
        (torch.zeros(2, 5, 17), "[:, :, mid5].mean(2)"),
        (torch.zeros(2, 4, 1, 3), ".mean(1)"),
        (torch.zeros(2, 2, 9, 9, 2), "[:, :, mid5, mid5].mean(1, 2, 3)"),
        ({"human": THREE_AXES, "mouse": THREE_AXES}, "human[:, mid4].mean(1)"),
        ({"my head": THREE_AXES}, "['my head'][:, mid4].mean(1)"),
        ({3: torch.zeros(2, 3)}, "[3]"),
        ((None, {"a-b": THREE_AXES}), "[1]['a-b'][:, mid4].mean(1)"),
        (([torch.zeros(2, 3)], torch.zeros(2)), "[0][0]"),
        (Pair(THREE_AXES, torch.zeros(2, 1)), "profile[:, mid4].mean(1)"),
        (Heads(THREE_AXES, THREE_AXES), "human[:, mid4].mean(1)"),
        (OrderedDict(logits=torch.zeros(2)), "logits"),
        ({"it's": THREE_AXES}, '["it\'s"][:, mid4].mean(1)'),
    ],
)
def test_a_model_whose_output_is_not_chosen_is_refused_with_settings_that_work(outputs: Any, first: str) -> None:
    class Returns(nn.Module):
        def forward(self, _: Tensor) -> Any:
            return outputs

    with pytest.raises(UserError) as caught:
        SelectedOutput(Returns(), None, is_for_head=False)(torch.zeros(2, 4, 8))
    pasted = shlex.split("'model.output=" + str(caught.value).partition("'model.output=")[2])[0]
    found = [text for text, _ in suggestions(outputs, 2)]
    assert first in found
    assert compose_config([*GIVEN, pasted]).model.output_text in map(normal, found)
    for suggested, _ in suggestions(outputs, 2):
        again = settings("model", "module", output=suggested).output_text
        assert SelectedOutput(Returns(), again, is_for_head=False)(torch.zeros(2, 4, 8)).shape[2:].numel() == 1


def test_what_still_has_two_axes_is_refused_with_what_goes_behind_it() -> None:
    class Returns(nn.Module):
        def forward(self, _: Tensor) -> Any:
            return {"my-head": THREE_AXES, "b": THREE_AXES}

    for text, first in [
        ("my-head", '["my-head"][:, mid4].mean(1)'),
        ("b[:, 2:]", "b[:, 2:][:, mid4].mean(1)"),
        ("b - ['my-head'][:]", '(b - ["my-head"][:])[:, mid4].mean(1)'),
    ]:
        with pytest.raises(UserError) as caught:
            SelectedOutput(Returns(), normal(text), is_for_head=False)(torch.zeros(2, 4, 8))
        assert f"'model.output={first}' (5 targets, axis 2)" in str(caught.value)
        assert chosen({"my-head": THREE_AXES, "b": THREE_AXES}, normal(first), 2).shape == (2, 5)


def test_the_text_is_the_same_from_the_command_yaml_and_python(tmp_path: Any) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "tracks.yaml").write_text("# @package _global_\nmodel:\n  output: 'human[:,446:450].mean(1)'\n")
    given = GIVEN
    yaml = compose_config([*given, "experiment=tracks"], str(tmp_path)).model.output_text
    assert yaml == "human[:, 446:450].mean(1)" == normal("human[ :,446:450].mean(axis=1)")
    for typed, text in [
        ("human[:,446:450].mean(1)", yaml),
        ('"human[:, 446:450].mean(1)"', yaml),
        ("'my head'", "my head"),
        ("null", None),
        ("-1", "-1"),
        (r"['it\'][:, 2]", r"['it\'][:, 2]"),
    ]:
        assert compose_config([*given, f"model.output={typed}"]).model.output_text == text
    assert normal("0[:, 2]") == normal("[0][:,2]")
    (problem,) = settings("model", "module", output=[1]).problems()
    assert "in YAML in quotes" in problem


def test_a_repeated_run_takes_another_output() -> None:
    given = ["model.output=[:, 2] - [:, 1]"]
    before = {"model": {"name": "module", "output": "[:, 1]"}, "dataset": {"name": "fasta"}}
    assert override(before, compose(given), given).model.output == "[:, 2] - [:, 1]"
