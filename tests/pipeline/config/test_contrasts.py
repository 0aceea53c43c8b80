"""Contrasts of targets as they are written: what each means, and what is refused, with what to write instead."""

from __future__ import annotations

import pytest

from pipeline.config.compose import compose_config
from pipeline.config.contrasts import Contrast, parse_contrast
from pipeline.messages.errors import UserError

PLACES = {"K562": 0, "GM12878": 1, "HepG2": 2, "HepG2-CTCF": 3, "DNASE:A": 4, "H1.esc": 5}
N = 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("K562 - mean(others)", {0: 1, 1: -0.2, 2: -0.2, 3: -0.2, 4: -0.2, 5: -0.2}),
        ("K562 - others.mean()", {0: 1, 1: -0.2, 2: -0.2, 3: -0.2, 4: -0.2, 5: -0.2}),
        ("K562 + HepG2 - 2*mean(others)", {0: 1, 2: 1, 1: -0.5, 3: -0.5, 4: -0.5, 5: -0.5}),
        ("K562 - 0.5*(GM12878 + HepG2)", {0: 1, 1: -0.5, 2: -0.5}),
        ("K562 - mean(GM12878, HepG2)", {0: 1, 1: -0.5, 2: -0.5}),
        ("sum(K562, GM12878, K562)/4", {0: 0.5, 1: 0.25}),
        ("-(K562 - GM12878)", {0: -1, 1: 1}),
        ("'DNASE:A' - \"HepG2-CTCF\" + ['K562']", {4: 1, 3: -1, 0: 1}),
        ("H1.esc - K562", {5: 1, 0: -1}),
        ("[5] - mean([0:5])", {5: 1, 0: -0.2, 1: -0.2, 2: -0.2, 3: -0.2, 4: -0.2}),
        ("[:, 5] - [:, 1:3].mean()", {5: 1, 1: -0.5, 2: -0.5}),
        ("[-1] - sum([[0, 2]])", {5: 1, 0: -1, 2: -1}),
        ("sum([::2]) - sum([1::2])", {0: 1, 2: 1, 4: 1, 1: -1, 3: -1, 5: -1}),
        ("(1 + 1)*K562 - GM12878*2/4", {0: 2, 1: -0.5}),
        ("K562 + GM12878 - GM12878", {0: 1}),
        ("[3]", {3: 1}),
    ],
)
def test_what_is_meant(text: str, expected: dict[int, float]) -> None:
    found = parse_contrast(text, PLACES)
    assert found(N) == pytest.approx(expected)
    assert found.label == text
    again = parse_contrast(f"  x={found.node}", PLACES)
    assert (again.label, again(N)) == ("x", found(N)), "what is written into a fingerprint means the same"


def test_a_label_stands_before_an_equals_sign() -> None:
    assert parse_contrast("specific to K562 = K562 - HepG2", PLACES).label == "specific to K562"
    assert parse_contrast(" K562  -  HepG2 ", PLACES).label == "K562 - HepG2"
    assert str(parse_contrast("a=K562-HepG2", PLACES)) == "a=K562 - HepG2"


def test_a_target_may_be_called_others() -> None:
    assert parse_contrast("a - others", {"a": 0, "others": 1})(4) == {0: 1, 1: -1}


def problem(text: str, n: int = N) -> str:
    try:
        parse_contrast(text, PLACES)(n)
    except (ValueError, UserError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("K562 - others", "others is 5 targets; take mean(others) or sum(others)"),
        ("[0:3] - K562", "[0:3] is 3 targets; take mean([0:3]) or sum([0:3])"),
        ("K562 - 5", "5 is a number, and no target; target 5 is written [5]"),
        ("log(K562) - log(HepG2)", "there is no log() of targets, as contrasts are linear in them"),
        ("max(others) - K562", "expected mean(...) or sum(...)"),
        ("K562*HepG2", "a product of outputs is not linear"),
        ("K562/HepG2", "a ratio of outputs is not linear"),
        ("K562/0", "it divides by 0"),
        ("K562/(1 - 1)", "it divides by 0"),
        ("1e308*10*K562", "its numbers are too large"),
        ("K562 - K562", "nothing is left: its targets cancel each other"),
        ("K562 - mean()", "mean() is of nothing; expected mean(others)"),
        ("[:, 1:3].mean(1) - K562", "mean() is over targets here, and has no axes; write mean([:, 1:3])"),
        ("[6] - K562", "target 6 is not there: there are 6 targets, 0 to 5"),
        ("sum([0:7])", "a slice ends at 6 at most"),
        ("sum([3:3])", "[3:3] is no target"),
        ("[mid] - K562", "[mid] is no place of a target; expected such as [5]"),
        ("[0, 1] - K562", "[0, 1] is no place of a target"),
        ("DNASE:A - K562", "expected the end, +, -, [ or . at ':A - K562' (a name with signs in it stands in quotes"),
        ("K562 - (HepG2", "expected ) at its end"),
        ("=K562 - HepG2", "it has nothing before the =; expected a label"),
        ("a=", "expected an output, such as K562 or [5]"),
        ("x" * 300 + "=K562 - HepG2", "its label has 300 characters; give a shorter one"),
        ("K562 - " * 300 + "K562", "it has too many parts"),
    ],
)
def test_what_is_refused(text: str, expected: str) -> None:
    assert expected in problem(text)


def test_there_may_be_no_others() -> None:
    assert "there are no others: it names all of 2 targets" in problem("K562 - GM12878 + mean(others)", 2)


def refused(*targets: str) -> str:
    with pytest.raises(UserError) as caught:
        compose_config([f"engine.targets={targets[0]}"] if len(targets) == 1 else list(targets))
    return str(caught.value)


def test_as_a_setting() -> None:
    for text in ('engine.targets=["[1] - mean(others)",0]', "engine.targets=['a=[1] - [0]']"):
        assert isinstance(compose_config([text]).targets, list)
    assert "K562 - mean(others) has names, and model.target_names is not set" in refused('["K562 - mean(others)"]')
    assert "engine.targets: [1] - [: expected" in refused('["[1] - ["]')
    assert "for one: 'engine.targets=[\"[1] - [0]\"]'" in refused('"[1] - [0]"')
    assert "write 'engine.targets=[\"[1] - mean(others)\"]'" in refused("[[1] - mean(others)]")


def test_it_is_data() -> None:
    assert parse_contrast("a - b", {"a": 0, "b": 1}) == Contrast("a - b", parse_contrast("a-b").node)
