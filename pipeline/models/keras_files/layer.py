"""One layer of a file: its settings, each checked when it is read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LARGEST = 1 << 31  # of any size in a file


class LayerError(ValueError):
    """What is wrong with a layer; the reader adds the file."""


@dataclass(frozen=True)
class Variable:
    """A tensor of weights that a layer has.

    Attributes:
        name: as Keras calls it, behind the names of the layers within the layer: `kernel`, `forward/bias`.
        place: where Keras 3 keeps it below the layer's group.
        is_trained: whether training changes it, by which Keras 2 orders the weights of a nested model.
    """

    name: str
    place: str
    is_trained: bool = True

    def within(self, name: str, place: str) -> "Variable":
        """The same of a layer that lies within another."""
        return Variable(f"{name}/{self.name}", f"{place}/{self.place}", self.is_trained)


@dataclass(frozen=True)
class Layer:
    """What a file says of a layer.

    Attributes:
        name: its own.
        kind: the name of its class.
        config: its settings.
        major: of the version of Keras that wrote it.
        is_own: whether the class may be Keras's own, as far as the file says.
        alias: the class in the file, where it is read as another.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    major: int
    is_own: bool = True
    alias: str | None = None

    @property
    def stored_as(self) -> str:
        """The class in the file."""
        return self.alias or self.kind

    @property
    def shown(self) -> str:
        return f"layer {self.name!r} ({self.kind})"

    def error(self, problem: str) -> LayerError:
        return LayerError(f"{self.shown}: {problem}")

    def wrong(self, key: str, expected: str) -> LayerError:
        """The error for a setting that is something else."""
        return self.error(f"{key} is {_brief(self.config.get(key))}; expected {expected}")

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self.config.get(key, default)
        if type(value) is not int or not least <= value < _LARGEST:
            raise self.wrong(key, f"a whole number of at least {least}, below {_LARGEST:,}")
        return value

    def sizes(self, key: str, n: int, default: Any = None, least: int = 1) -> tuple[int, ...]:
        """A size for each of n axes; one number stands for all."""
        value = self.config.get(key)
        value = default if value is None else value
        many = [value] * n if type(value) is int else value
        if _are_sizes(many, least) and len(many) == n:
            return tuple(many)
        raise self.wrong(key, f"{n} whole numbers of at least {least}" if n > 1 else f"a whole number, {least} or more")

    def ends(self, key: str, n: int) -> tuple[tuple[int, int], ...]:
        """What is added or taken off before and after along each of n axes: a number, one for each axis, or pairs."""
        value: Any = self.config.get(key)
        many = [value] * n if type(value) is int else value
        if n == 1 and _are_sizes(many, 0) and len(many) == 2:
            many = [many]
        if isinstance(many, list | tuple) and len(many) == n:
            pairs = [[one, one] if type(one) is int else one for one in many]
            if all(_are_sizes(pair, 0) and len(pair) == 2 for pair in pairs):
                return tuple((pair[0], pair[1]) for pair in pairs)
        raise self.wrong(key, "whole numbers of 0 or more")

    def axes(self, key: str, default: int = -1) -> tuple[int, ...]:
        """One axis or several, as Keras counts them."""
        value = self.config.get(key, default)
        many = [value] if type(value) is int else value
        if isinstance(many, Sequence) and many and all(type(one) is int and abs(one) < 8 for one in many):
            return tuple(many)
        raise self.wrong(key, "an axis")

    def number(self, key: str, default: float | None = None) -> float:
        value = self.config.get(key, default)
        if isinstance(value, Mapping):  # an array of NumPy without axes
            value = value.get("value")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise self.wrong(key, "a number")
        return float(value)

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        value = self.config.get(key)
        value = default if value is None else value
        if value not in choices:
            raise self.wrong(key, f"one of {', '.join(choices)}")
        return str(value)

    def refuse(self, **unusual: Any) -> None:
        """Raises LayerError where a setting is none of the values given, with which alone the layer is known."""
        for key, usual in unusual.items():
            if self.config.get(key, usual) not in (usual, None):
                raise self.error(f"{key}={_brief(self.config[key])} is not supported")

    def inner(self, key: str) -> "Layer":
        """A layer that is a setting of this one."""
        return layer_of(self.config.get(key), self.major, self)


def layer_of(found: Any, major: int, around: Layer) -> Layer:
    """The layer in a piece of a configuration. Raises LayerError where it is none."""
    if not isinstance(found, Mapping) or not isinstance(found.get("config"), Mapping):
        raise around.error("a layer within it is not described")
    kind, config = str(found.get("class_name")), found["config"]
    return Layer(str(config.get("name") or around.name), kind, config, major)


def own(*names: str, untrained: Sequence[str] = ()) -> Iterator[Variable]:
    """Variables of a layer itself, in order."""
    for index, name in enumerate(names):
        yield Variable(name, f"vars/{index}", name not in untrained)


def _are_sizes(found: Any, least: int) -> bool:
    return isinstance(found, list | tuple) and all(type(one) is int and least <= one < _LARGEST for one in found)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
