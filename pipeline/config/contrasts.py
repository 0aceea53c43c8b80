"""Contrasts in `engine.targets`: linear combinations of the model's targets, in the grammar of `model.output`.

K562 - mean(others)                     names of model.target_names, or of several heads; `others`: all not named in it
specific=K562 - 0.5*(GM12878 + HepG2)   with a label of its own
[5] - mean([0:5])                       places of targets, without names; also [:, 5], [[1, 3, 7]], [-1]
'DNASE:K562' - sum('CAGE:A', [3])       a name with signs in it stands in quotes
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.config.model_output import Binary, Indexed, Keyed, Negative, Node, Number, Parser, Reduced, Whole
from pipeline.messages.errors import UserError
from pipeline.messages.visible import brief
from pipeline.messages.words import counted

OTHERS = "others"
_SIGNS = set("[]()+-*/='\"")
_LONGEST = 200  # characters of a label, as of a name of a target
_LABELLED = re.compile(r"\s*([^='\"\[\]()]*?)\s*=(.*)", re.DOTALL)
Weights = dict[int, float]  # of targets, by their places


def is_contrast(text: str) -> bool:
    """Whether a text may be one; names of targets may have signs in them too, and come first."""
    return bool(_SIGNS & set(text))


@dataclass(frozen=True)
class Contrast:
    """A contrast as it is asked for; called with the number of targets, it gives the number of each that takes part.

    Attributes:
        label: what the store calls it.
        node: what it is.
        places: of the targets that have names.
    """

    label: str
    node: Node
    places: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.label}={self.node}"

    @property
    def names(self) -> list[str]:
        """Names of targets in it."""
        return [name for name in _names(self.node) if name != OTHERS]

    def __call__(self, n_targets: int) -> Weights:
        try:
            found = _Evaluation(self, n_targets).value(self.node)
            weights = {place: weight for place, weight in _one(found, self.node).items() if weight}
            if not weights:
                raise ValueError("nothing is left: its targets cancel each other")
            if not all(map(math.isfinite, weights.values())):
                raise ValueError("its numbers are too large")
        except ValueError as error:
            raise UserError(f"engine.targets: {brief(self.label)}: {error}") from None
        return weights


def parse_contrast(text: str, places: Mapping[str, int] | None = None) -> Contrast:
    """What a text means, given the places of named targets. Raises ValueError that says what is wrong with it."""
    label, expression = "", text
    if (labelled := _LABELLED.fullmatch(text)) is not None:
        label, expression = labelled[1], labelled[2]
        if not label:
            raise ValueError("it has nothing before the =; expected a label, such as specific=K562 - mean(others)")
    node = _Parser(expression).whole()
    label = label or " ".join(text.split())
    if len(label) > _LONGEST or not label.isprintable():
        raise ValueError(
            f"its label has {len(label)} characters; give a shorter one, such as specific={brief(text, 20)}"
        )
    return Contrast(label, node, places or {})


def unnamed_problem(text: str) -> str | None:
    """What is wrong with a text in `engine.targets` of a model whose targets have no names; None where nothing is."""
    names = [text]
    if is_contrast(text):
        try:
            names = parse_contrast(text).names
        except ValueError as error:
            return f"engine.targets: {brief(text)}: {error}"
    if not names:
        return None
    return (
        f"engine.targets: {brief(text)} has names, and model.target_names is not set; add "
        f"model.target_names=names.txt, a file with one name a line for all targets of the model, or give places of "
        f"targets, such as [5]"
    )


class _Parser(Parser):
    """As of `model.output`, but that mean() and sum() are over targets, and there are no other functions."""

    example = "K562 or [5]"

    def _as_name(self) -> str:
        return " (a name with signs in it stands in quotes of its own)"

    def _call(self, name: str, of: Node | None) -> Node:
        if name not in ("mean", "sum"):
            raise ValueError(
                f"there is no {name}() of targets, as contrasts are linear in them; expected mean(...) or sum(...), or "
                f"give the model's output as model.output, which takes others"
            )
        self._take()
        parts = [] if of is None else [of]
        if of is not None and not self._is(")"):
            raise ValueError(f"{name}() is over targets here, and has no axes; write {name}({of})")
        while not self._is(")"):
            parts.append(self._sum())
            if not self._is(")"):
                self._close(",")
        self._take()
        if not parts:
            raise ValueError(f"{name}() is of nothing; expected {name}(others), or targets")
        if len(parts) == 1:
            return Reduced(parts[0], name, ())
        total = parts[0]
        for part in parts[1:]:
            total = Binary("+", total, part)
        return Binary("/", total, Number(len(parts))) if name == "mean" else total


class _Evaluation:
    """Of a contrast for a number of targets: one combination, or as many as the targets that a part of it names."""

    def __init__(self, contrast: Contrast, n: int) -> None:
        self._contrast, self._n = contrast, n

    def value(self, node: Node) -> list[Weights]:
        match node:
            case Keyed() | Indexed(of=Whole()):
                return [{place: 1.0} for place in self._places(node)]
            case Reduced():
                parts = self.value(node.of)
                share = 1 / len(parts) if node.how == "mean" else 1.0
                return [_added(*(_times(part, share) for part in parts))]
            case Negative():
                return [_times(_one(self.value(node.of), node.of), -1)]
            case Binary(sign="+" | "-"):
                left, right = (_one(self.value(each), each) for each in (node.left, node.right))
                return [_added(left, _times(right, 1 if node.sign == "+" else -1))]
            case Binary(sign="*") if (factor := _number(node.left)) is not None:
                return [_times(_one(self.value(node.right), node.right), factor)]
            case Binary() if (factor := _number(node.right)) is not None:
                if node.sign == "/" and not factor:
                    raise ValueError("it divides by 0")
                return [_times(_one(self.value(node.left), node.left), factor if node.sign == "*" else 1 / factor)]
            case Number():
                raise ValueError(f"{node} is a number, and no target; target {node} is written [{node}]")
        raise ValueError(f"{node} is no target; expected a name, or a place such as [5]")

    def _places(self, node: Keyed | Indexed) -> list[int]:
        """Of the targets that a part names."""
        if isinstance(node, Keyed):
            if (name := _name(node)) in self._contrast.places:
                return [self._contrast.places[name]]
            if name != OTHERS:
                raise ValueError(f"there is no target {brief(name)}")
            named = {
                place for each in _leaves(self._contrast.node, self._contrast.places) for place in self._places(each)
            }
            if others := [place for place in range(self._n) if place not in named]:
                return others
            raise ValueError(f"there are no others: it names all of {counted(self._n, 'target')}")
        items = node.items[1:] if len(node.items) > 1 and node.items[0] == slice(None) else node.items
        there = f"there are {counted(self._n, 'target')}, 0 to {self._n - 1}"
        match items:
            case (int() as place,):
                chosen = [place]
            case (tuple() as several,):
                chosen = list(several)
            case (slice() as part,):
                if any(end is not None and not -self._n <= end <= self._n for end in (part.start, part.stop)):
                    raise ValueError(f"{node}: {there}; a slice ends at {self._n} at most")
                chosen = list(range(*part.indices(self._n)))
                if not chosen:
                    raise ValueError(f"{node} is no target: {there}")
            case _:
                raise ValueError(f"{node} is no place of a target; expected such as [5], [0:5] or [[1, 3, 7]]")
        for place in chosen:
            if not -self._n <= place < self._n:
                raise ValueError(f"target {place} is not there: {there}")
        return [place % self._n for place in chosen]


def _leaves(node: Node, places: Mapping[str, int]) -> Iterator[Keyed | Indexed]:
    """The parts that name targets, but for `others`."""
    match node:
        case Keyed():
            if _name(node) != OTHERS or OTHERS in places:
                yield node
        case Indexed():
            yield node
        case Reduced() | Negative():
            yield from _leaves(node.of, places)
        case Binary():
            yield from _leaves(node.left, places)
            yield from _leaves(node.right, places)


def _names(node: Node) -> list[str]:
    return [_name(leaf) for leaf in _leaves(node, {OTHERS: 0}) if isinstance(leaf, Keyed)]


def _name(node: Keyed) -> str:
    """One with a dot in it is read as an entry of an entry."""
    return node.key if isinstance(node.of, Whole) else str(node)


def _number(node: Node) -> float | None:
    """The value of a part without targets; None where it has some."""
    match node:
        case Number():
            return node.value
        case Negative():
            return None if (of := _number(node.of)) is None else -of
        case Binary():
            left, right = _number(node.left), _number(node.right)
            if left is None or right is None:
                return None
            quotient = left / right if right else math.nan
            return {"+": left + right, "-": left - right, "*": left * right, "/": quotient}[node.sign]
    return None


def _one(parts: list[Weights], node: Node) -> Weights:
    if len(parts) > 1:
        raise ValueError(f"{node} is {len(parts)} targets; take mean({node}) or sum({node})")
    return parts[0]


def _times(weights: Weights, factor: float) -> Weights:
    return {place: factor * weight for place, weight in weights.items()}


def _added(*parts: Weights) -> Weights:
    total: Weights = {}
    for part in parts:
        for place, weight in part.items():
            total[place] = total.get(place, 0.0) + weight
    return total
