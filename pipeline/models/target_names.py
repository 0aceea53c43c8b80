"""Names of a model's targets from a file, one a line, and which places the names in `engine.targets` are.

A table with tabs and a header, as Basenji's, Enformer's and Borzoi's `targets.txt`, gives its column `identifier`.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.config.contrasts import Contrast, Weights, is_contrast, parse_contrast
from pipeline.config.settings import expanded
from pipeline.messages.errors import UserError
from pipeline.messages.visible import brief
from pipeline.messages.words import some
from pipeline.models.hashing import sha256

KEY = "model.target_names"
_MOST_BYTES = 1 << 26
_LONGEST = 200  # characters of a name
_MOST_NAMES = 1 << 18  # forty times as many as the largest published models have outputs
_COLUMN = "identifier"
_N_SHOWN = 3


def read_names(path: str | None) -> tuple[str, ...]:
    """The names in a file, in order; none without a file.

    Raises:
        UserError: no such file, no text, a name that is empty, there twice, or not fit to be printed.
    """
    if path is None:
        return ()
    found = expanded(path)
    if found.is_dir():
        raise UserError(f"{KEY}={path} is a folder; expected a file, one name a line")
    if not found.is_file():
        raise UserError(f"{KEY}={path}: no such file (looked for {found.absolute()}); expected one name a line")
    if (n_bytes := found.stat().st_size) > _MOST_BYTES:
        raise UserError(f"{KEY}={path} has {n_bytes:,} bytes; expected one name a line")
    try:
        text = found.read_bytes().decode("utf-8-sig").rstrip()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{KEY}={path} cannot be read: {error}; expected text (UTF-8), one name a line") from None
    if (n_lines := text.count("\n") + 1) > _MOST_NAMES + 1:
        raise UserError(f"{KEY}={path} has {n_lines:,} lines; expected one name a line, {_MOST_NAMES:,} at most")
    lines, first = text.splitlines(), 1
    if lines and "\t" in lines[0]:
        lines, first = _column(lines, path), 2
    names = [line.strip() for line in lines]
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=first):
        if not name or len(name) > _LONGEST or not name.isprintable():
            raise UserError(f"{KEY}={path}, line {number}: {brief(name)!r} is no name; expected one name a line")
        if name in seen:
            raise UserError(
                f"{KEY}={path}: {name} is on lines {seen[name]} and {number}; each target needs a name of its own"
            )
        seen[name] = number
    if not names:
        raise UserError(f"{KEY}={path} is empty; expected one name a line")
    return tuple(names)


def digest(names: Sequence[str]) -> str:
    """sha256 of names in their order, in hexadecimal."""
    return sha256("\n".join(names).encode())


def _column(lines: Sequence[str], path: str) -> list[str]:
    """Of a table with a header."""
    header = [name.strip() for name in lines[0].split("\t")]
    if _COLUMN not in header:
        raise UserError(
            f"{KEY}={path} has columns ({', '.join(map(brief, header))}) and none is called {_COLUMN}; give one name a "
            f"line: cut -f2 {path} > names.txt"
        )
    at = header.index(_COLUMN)
    rows = [line.split("\t") for line in lines[1:]]
    return [row[at] if at < len(row) else "" for row in rows]


Asked = list[int | Contrast] | str


def places(targets: Sequence[int | str] | str, names: Sequence[str]) -> Asked:
    """`engine.targets` as places of the model's targets and contrasts of several, or "all".

    Raises:
        UserError: a name that is not there, a target that is there twice, or what cannot be read as a contrast; names
            the nearest.
    """
    if isinstance(targets, str):
        return targets
    numbers = {name: place for place, name in enumerate(names)}
    found = [_found(target, numbers) if isinstance(target, str) else target for target in targets]
    same = [each if isinstance(each, int) else str(each.node) for each in found]
    if twice := [target for target, each in zip(targets, same, strict=True) if same.count(each) > 1]:
        raise UserError(f"engine.targets: {' and '.join(map(str, twice))} are the same target; give it once")
    return found


def plain(asked: Asked) -> list[int | str] | str:
    """Targets as plain values, for a fingerprint."""
    return asked if isinstance(asked, str) else [each if isinstance(each, int) else str(each) for each in asked]


def resolve(asked: Asked, n_targets: int) -> list[int | Weights]:
    """Targets of a model that has so many: places, and of contrasts the numbers by place.

    Raises:
        UserError: two are the same.
    """
    if isinstance(asked, str):
        return list(range(n_targets))
    found: list[int | Weights] = []
    for each in asked:
        weights = {each: 1.0} if isinstance(each, int) else each(n_targets)
        alone = next(iter(weights)) if list(weights.values()) == [1.0] else None
        found.append(weights if alone is None else alone)
        if found.index(found[-1]) < len(found) - 1:
            other = asked[found.index(found[-1])]
            raise UserError(f"engine.targets: {_label(other)} and {_label(each)} are the same target; give it once")
    return found


def labels_of(asked: Asked, n_targets: int, names: Sequence[str]) -> list[str]:
    """What the store calls the targets of a model that has so many: by their names where they have some.

    Raises:
        UserError: two are called the same.
    """
    each = range(n_targets) if isinstance(asked, str) else asked
    labels = [names[one] if isinstance(one, int) and names else _label(one) for one in each]
    if twice := [label for label, n in Counter(labels).items() if n > 1]:
        raise UserError(f"engine.targets: two targets are called {brief(twice[0])}; give one a label of its own")
    return labels


def _label(target: int | Contrast) -> str:
    return target.label if isinstance(target, Contrast) else str(target)


def _found(text: str, numbers: Mapping[str, int]) -> int | Contrast:
    if text in numbers:
        return numbers[text]
    names = list(numbers)
    if not is_contrast(text):
        raise UserError(f"engine.targets: there is no target {_missing(text, names)}")
    try:
        contrast = parse_contrast(text, numbers)
    except ValueError as error:
        near = f"; nearest are {', '.join(close)}" if (close := _nearest(text, names)) else ""
        raise UserError(f"engine.targets: {brief(text)}: {error}{near}") from None
    if unknown := [name for name in contrast.names if name not in numbers]:
        raise UserError(
            f"engine.targets: {brief(text)}: there is no target {_missing(unknown[0], names)} (a name with signs in it "
            f"stands in quotes of its own)"
        )
    return contrast


def _nearest(name: str, names: Sequence[str]) -> list[str]:
    lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name.lower(), lower, n=_N_SHOWN, cutoff=0.5)
    return [lower[each] for each in close] or [each for each in names if name.lower() in each.lower()][:_N_SHOWN]


def _missing(name: str, names: Sequence[str]) -> str:
    if close := _nearest(name, names):
        return f"{brief(name)}; nearest are {', '.join(close)}"
    return f"{brief(name)} among {len(names)}: {some(list(names), _N_SHOWN)}"
