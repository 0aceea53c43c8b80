"""What values of a JSON file must be, by annotations of a class: whoever made the file may have written anything."""

import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

LARGEST = 2**53  # whole numbers beyond are none of JSON's
_SHOWN = 40  # letters of a value
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def require(values: Any, kind: Any, where: str) -> None:
    """Raises ValueError, one line, where a value is not of a kind.

    Args:
        values: plain.
        kind: int, float, str, bool, None, Any, list[...], dict[str, ...], a union of them, or a TypedDict, whose other
            keys may hold anything.
        where: what the line calls the value.
    """
    for problem in _problems(values, kind, where):
        raise ValueError(problem)


def require_fields(values: Any, kind: type, where: str) -> None:
    """The same of a dataclass: a value for each field that has one in `values`, of the kind that it is annotated as."""
    require(values, dict, where)
    for name, expected in _hints(kind).items():
        if name in values:
            require(values[name], expected, f"{where}.{name}")


def _problems(value: Any, kind: Any, where: str) -> Iterator[str]:
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return
    if origin in (Union, types.UnionType):
        found = [next(_problems(value, each, where), None) for each in inner]
        if None not in found:
            yield found[0] or ""
    elif not _is_a(value, dict if is_typeddict(kind) else origin):
        yield f"{where} is {_short(value)}; expected {_WORDS.get(dict if is_typeddict(kind) else origin, 'nothing')}"
    elif is_typeddict(kind):
        hints = _hints(kind)
        for name in sorted(kind.__required_keys__ - value.keys()):
            yield f"{where} has no {name}"
        for name in hints.keys() & value.keys():
            yield from _problems(value[name], hints[name], f"{where}.{name}")
    elif origin is list and inner:
        for i, item in enumerate(value):
            yield from _problems(item, inner[0], f"{where}[{i}]")
    elif origin is dict and inner:
        for name, item in value.items():
            yield from _problems(item, inner[1], f"{where}.{name}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_a(value: Any, kind: Any) -> bool:
    if kind in (None, type(None)):
        return value is None
    if kind is int:
        return type(value) is int and abs(value) < LARGEST
    if kind is float:
        return type(value) is float or _is_a(value, int)
    return isinstance(value, kind)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < LARGEST else "a number beyond all measure"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
