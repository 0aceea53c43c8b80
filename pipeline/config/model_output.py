"""`model.output` as it is written: what is explained of what the model returns, by numpy's indexing and arithmetic.

human                                   an entry of a mapping, a named tuple or an object; 0 is one of a tuple
[:, 5]                                  of a tensor; the first axis is the sequences, and stays whole
human[:, mid4].mean(1)                  the four middle places of axis 1 averaged; [:, 446:450] are four by number
[:, 5] - [:, 0:5].mean(1)               differences, sums, and products with numbers: 0.5*a - 2*b
log1p([:, :, mid4].sum(2))              transforms, also written .log1p()
.softmax(1)[:, 2]                       a probability of several that sum to 1 along an axis

It is data: nothing of it is run as Python, and it is limited in length and in steps.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from pipeline.messages.visible import brief
from pipeline.messages.words import did_you_mean, one_of

REDUCTIONS = ("mean", "sum", "logsumexp", "max", "min")
SOFTMAX = "softmax"  # along an axis, which stays
TRANSFORMS = ("log1p", "log", "log2", "log10", "sqrt", "exp", "sigmoid", "identity")
WHOLE = "output"  # all that the model returns, where no entry is called so
_MAX_LENGTH, _MAX_TOKENS, _MAX_DEPTH = 20_000, 200, 12  # tokens but for those of lists of numbers
_FUNCTIONS = (*REDUCTIONS, SOFTMAX, *TRANSFORMS)
_AXIS_NAMES, _KEEP_NAMES = ("axis", "dim"), ("keepdim", "keepdims")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.(?![^\W\d]|\.))?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")|(?P<sign>\.\.\.|[][()+\-*/:,.=])|(?P<odd>\S))"
)
_MIDDLE = re.compile(r"mid(\d{0,9})")


@dataclass(frozen=True)
class Whole:
    """All that the model returns."""

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Middle:
    """So many middle places of an axis; None: the middle one, without its axis."""

    n: int | None

    def __str__(self) -> str:
        return "mid" if self.n is None else f"mid{self.n}"


Item = int | str | slice | tuple[int, ...] | Middle  # `...` is the text "..."; another text is a key


@dataclass(frozen=True)
class Keyed:
    """An entry of what the model returns, by its name."""

    of: "Node"
    key: str

    def __str__(self) -> str:
        name = self.key if re.fullmatch(r"[^\W\d]\w*", self.key) else None
        if name is None:
            return f"{_stem(self.of)}[{_quoted(self.key)}]"
        return name if isinstance(self.of, Whole) else f"{_stem(self.of)}.{name}"


@dataclass(frozen=True)
class Indexed:
    """Places by axis; one index alone may be an entry."""

    of: "Node"
    items: tuple[Item, ...]

    def __str__(self) -> str:
        return f"{_stem(self.of)}[{', '.join(map(_shown, self.items))}]"


@dataclass(frozen=True)
class Reduced:
    """One value for several places along axes; or, of a softmax, one for each."""

    of: "Node"
    how: str
    axes: tuple[int, ...]
    keeps: bool = False

    def __str__(self) -> str:
        kept = ", keepdim=True" if self.keeps else ""
        return f"{_operand(self.of)}.{self.how}({', '.join(map(str, self.axes))}{kept})"


@dataclass(frozen=True)
class Transformed:
    """A function of each value."""

    of: "Node"
    how: str

    def __str__(self) -> str:
        return f"{self.how}({str(self.of) or WHOLE})"


@dataclass(frozen=True)
class Number:
    """A number that is given."""

    value: float

    def __str__(self) -> str:
        return f"{self.value:g}" if float(f"{self.value:g}") == self.value else repr(self.value)


@dataclass(frozen=True)
class Negative:
    """Of the other sign."""

    of: "Node"

    def __str__(self) -> str:
        return f"-{_operand(self.of)}"


@dataclass(frozen=True)
class Binary:
    """A sum or difference, or a product with a number."""

    sign: str
    left: "Node"
    right: "Node"

    def __str__(self) -> str:
        if self.sign in "+-":
            right = f"({self.right})" if _is_sum(self.right) else str(self.right) or WHOLE
            return f"{str(self.left) or WHOLE} {self.sign} {right}"
        left = f"({self.left})" if isinstance(self.left, Binary) and self.left.sign in "+-" else str(self.left) or WHOLE
        return f"{left}{self.sign}{_operand(self.right)}"


Node = Whole | Keyed | Indexed | Reduced | Transformed | Number | Negative | Binary


def parse(text: str) -> Node:
    """What `model.output` means. Raises ValueError that says what is wrong with it, and where."""
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"it has {len(text)} characters; expected at most {_MAX_LENGTH}")
    return Parser(text).whole()


def normal(text: str) -> str:
    """The text as it is written here, so that spaces and quotes make no difference."""
    if quoted := re.fullmatch(r"\s*(?:'([^']*)'|\"([^\"]*)\")\s*", text):
        text = quoted[1] or quoted[2] or ""
    return text if is_name(text) or output_problem(text) else str(parse(text))


def output_problem(text: str | None) -> str | None:
    """What is wrong with a text of `model.output`, whatever the model returns; None where nothing is."""
    if text is None or is_name(text):
        return None
    try:
        parse(text)
    except ValueError as error:
        return str(error)
    return None


def is_name(text: str) -> bool:
    """Whether it may be that of an entry as it stands; the model's outputs tell."""
    return not set("[(") & set(text)


class Parser:
    """Of one text, from left to right."""

    example = "[:, 5] or human[:, 5]"

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0
        self._tokens = [
            (str(match.lastgroup), match[str(match.lastgroup)], match.start(str(match.lastgroup)))
            for match in _TOKEN.finditer(text)
        ]
        if sum(kind != "number" and token != "," for kind, token, _ in self._tokens) > _MAX_TOKENS:
            raise ValueError("it has too many parts; several places are written as one list, [:, [1, 5, 7]]")

    def whole(self) -> Node:
        found = self._sum()
        if self._kind:
            self._expected("the end, +, -, [ or .", self._as_name())
        if isinstance(found, Number) and re.fullmatch(r"\s*-?\d{1,9}\s*", self._text):
            return Indexed(Whole(), (int(self._text),))
        if not _is_of_output(found):
            raise ValueError(f"it names no output of the model, such as {self.example}")
        return found

    def _as_name(self) -> str:
        """The end of a message, where the text may have been meant as a name."""
        return f" (an entry of this name is written [{_quoted(brief(self._text))}])"

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} times")
        left = self._product()
        while self._is("+", "-"):
            left = Binary(self._take(), left, self._product())
        self._depth -= 1
        return left

    def _product(self) -> Node:
        left = self._signed()
        while self._is("*", "/"):
            sign, right = self._take(), self._signed()
            if sign == "/" and _is_of_output(right):
                raise ValueError(
                    f"a ratio of outputs is not linear in them; its logarithm is a difference: "
                    f"log({left}) - log({right})"
                )
            if _is_of_output(left) and _is_of_output(right):
                raise ValueError("a product of outputs is not linear in them; expected a number times an output")
            if isinstance(right, Number) and sign == "/" and not right.value:
                raise ValueError("it divides by 0")
            left = Binary(sign, left, right)
        return left

    def _signed(self) -> Node:
        if self._is("+"):
            self._take()
            return self._postfix()
        if self._is("-"):
            self._take()
            of = self._postfix()
            return Number(-of.value) if isinstance(of, Number) else Negative(of)
        return self._postfix()

    def _postfix(self) -> Node:
        found = self._atom()
        while self._is("[", ".") or self._is_key(found):
            if self._kind == "number":
                found = Indexed(found, (int(self._take()[1:]),))
                continue
            if isinstance(found, Number):
                self._expected("* or another sign behind a number")
            if self._take() == "[":
                found = self._index(found)
                continue
            name = self._name()
            found = self._call(name, found) if self._is("(") else Keyed(found, name)
        return found

    def _atom(self) -> Node:
        kind = self._kind
        if self._is("[", "."):
            return Whole()
        if self._is("("):
            self._take()
            found = self._sum()
            self._close(")")
            return found
        if kind == "number":
            return self._number()
        if kind == "text":
            return Keyed(Whole(), self._take()[1:-1])
        if kind != "name":
            self._expected(f"an output, such as {self.example}")
        name = self._take()
        return self._call(name, None) if self._is("(") else Keyed(Whole(), name)

    def _number(self) -> Node:
        text = self._take()
        if text.isdecimal() and len(text) < 10 and self._is("["):
            return Indexed(Whole(), (int(text),))
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{brief(text)} is too large a number")
        return Number(value)

    def _call(self, name: str, of: Node | None) -> Node:
        """`name(of, ...)`, or `of.name(...)`; the opening bracket is next."""
        if name not in _FUNCTIONS:
            raise ValueError(
                f"there is no {name}(); expected {one_of(_FUNCTIONS)}{did_you_mean(name, _FUNCTIONS)}{self._as_name()}"
            )
        self._take()
        if of is None:
            of = self._sum()
            if not self._is(")"):
                self._close(",")
        if not _is_of_output(of):
            of_all = "" if name in TRANSFORMS else of
            raise ValueError(f"{name}() is given a number; expected an output: .{name}({of_all}) is of the whole of it")
        if name in TRANSFORMS:
            self._close(")")
            return of if name == "identity" else Transformed(of, name)
        axes, keeps = self._axes()
        if not axes:
            raise ValueError(f"{name}() needs the axes that it is taken over, such as .{name}(1); axis 0 are sequences")
        if name == SOFTMAX and (len(axes) > 1 or keeps):
            raise ValueError("softmax() is taken along one axis, which stays, such as .softmax(1)")
        return Reduced(of, name, tuple(axes), keeps)

    def _axes(self) -> tuple[list[int], bool]:
        """1, 2 or (1, 2) or axis=1 or dim=[1, 2], and keepdim=True, to the closing bracket."""
        axes: list[int] = []
        keeps = False
        while not self._is(")"):
            name = self._take() if self._kind == "name" else None
            if name is not None:
                if name not in (*_AXIS_NAMES, *_KEEP_NAMES):
                    raise ValueError(f"{name} is not known here; expected axes, such as mean(1), and keepdim=True")
                self._close("=")
            if name in _KEEP_NAMES:
                keeps = self._name().lower() == "true"
            elif self._is("(", "["):
                axes += self._list()
            else:
                axes.append(self._integer())
            if not self._is(")"):
                self._close(",")
        self._take()
        return axes, keeps

    def _list(self) -> list[int]:
        closing = {"(": ")", "[": "]"}[self._take()]
        found = []
        while not self._is(closing):
            found.append(self._integer())
            if not self._is(closing):
                self._close(",")
        self._take()
        return found

    def _index(self, of: Node) -> Node:
        items: list[Item] = []
        while not self._is("]"):
            items.append(self._item())
            if not self._is("]"):
                self._close(",")
        self._take()
        if not items or items.count("...") > 1:
            raise ValueError("[] holds nothing, or ... twice; expected a place for each axis, such as [:, 5]")
        if len(items) == 1 and isinstance(key := items[0], str) and key != "...":
            return Keyed(of, key[1:-1])
        if name := next((item for item in items if isinstance(item, str) and item != "..."), None):
            raise ValueError(f"a name stands alone in its brackets, such as ['human'][:, 5]; {_by_name(name[1:-1])}")
        return Indexed(of, tuple(items))

    def _item(self) -> Item:
        if self._is("["):
            if not (places := self._list()):
                raise ValueError("[] is a list of no places")
            return tuple(places)
        if self._is("...") or self._kind == "text":
            return self._take()
        if self._kind == "name":
            if (match := _MIDDLE.fullmatch(name := self._take())) is None:
                raise ValueError(f"{name} is no place; expected numbers, :, ..., mid4; {_by_name(name)}")
            return Middle(int(match[1]) if match[1] else None)
        parts: list[int | None] = [None]
        n_colons = 0
        while not self._is("]", ","):
            if self._is(":"):
                self._take()
                n_colons += 1
                parts.append(None)
            elif parts[-1] is None:
                parts[-1] = self._integer()
            else:
                self._expected(":, , or ]")
        if n_colons == 0:
            if parts[0] is None:
                self._expected("a place")
            return parts[0]
        if n_colons > 2 or parts[2:] == [0]:
            raise ValueError("expected first:last or first:last:step, with a step that is not 0")
        return slice(*parts)

    @property
    def _kind(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _is(self, *signs: str) -> bool:
        return self._kind == "sign" and self._tokens[self._at][1] in signs

    def _is_key(self, found: Node) -> bool:
        """Whether a number follows that is a key, human.128."""
        return (
            self._kind == "number"
            and bool(re.fullmatch(r"\.\d{1,9}", self._tokens[self._at][1]))
            and _is_of_output(found)
        )

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _close(self, sign: str) -> None:
        if not self._is(sign):
            self._expected(sign)
        self._take()

    def _name(self) -> str:
        if self._kind != "name":
            self._expected("a name")
        return self._take()

    def _integer(self) -> int:
        sign = -1 if self._is("-") else 1
        if sign < 0:
            self._take()
        if self._kind != "number" or not self._tokens[self._at][1].isdecimal():
            self._expected("a whole number")
        if len(text := self._take()) > 18:
            raise ValueError(f"{brief(text)} is too large a number")
        return sign * int(text)

    def _expected(self, what: str, otherwise: str = "") -> NoReturn:
        if not self._kind:
            raise ValueError(f"expected {what} at its end")
        at = self._tokens[self._at][2]
        raise ValueError(f"expected {what} at {self._text[at : at + 12]!r}{otherwise}")


def _by_name(name: str) -> str:
    """The end of a message, where a target is meant by its name."""
    return f"targets are chosen by their names with model.target_names=names.txt and 'engine.targets=[{name}]'"


def _is_of_output(node: Node) -> bool:
    match node:
        case Number():
            return False
        case Negative():
            return _is_of_output(node.of)
        case Binary():
            return _is_of_output(node.left) or _is_of_output(node.right)
    return True


def _is_sum(node: Node) -> bool:
    return isinstance(node, Negative) or (isinstance(node, Binary) and node.sign in "+-")


def _operand(node: Node) -> str:
    """In brackets where it would be read otherwise."""
    return _stem(node) or WHOLE


def _stem(node: Node) -> str:
    """The same, of what brackets or a dot follow: nothing for the whole."""
    return f"({node})" if isinstance(node, Binary | Negative) else str(node)


def _quoted(key: str) -> str:
    return f'"{key}"' if "'" in key else f"'{key}'"


def _shown(item: Item) -> str:
    match item:
        case slice():
            first, last, step = ("" if part is None else str(part) for part in (item.start, item.stop, item.step))
            return f"{first}:{last}" + (f":{step}" if step else "")
        case tuple():
            return f"[{', '.join(map(str, item))}]"
    return str(item)
