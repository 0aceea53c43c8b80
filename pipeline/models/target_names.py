"""Names of a model's targets from a file, one a line, and which places the names in `engine.targets` are.

A table with tabs and a header, as Basenji's, Enformer's and Borzoi's `targets.txt`, gives its column `identifier`.
"""

import difflib
from collections.abc import Sequence

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


def places(targets: Sequence[int | str] | str, names: Sequence[str]) -> list[int] | str:
    """`engine.targets` as places of the model's targets, or "all".

    Raises:
        UserError: a name that is not there, or a target that is there twice; names the nearest.
    """
    if isinstance(targets, str):
        return targets
    numbers = {name: place for place, name in enumerate(names)}
    if missing := [target for target in targets if isinstance(target, str) and target not in numbers]:
        raise UserError(f"engine.targets: there is no target {_missing(missing[0], names)}")
    found = [numbers[target] if isinstance(target, str) else target for target in targets]
    if twice := [target for target, place in zip(targets, found, strict=True) if found.count(place) > 1]:
        raise UserError(f"engine.targets: {' and '.join(map(str, twice))} are the same target; give it once")
    return found


def _missing(name: str, names: Sequence[str]) -> str:
    lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name.lower(), lower, n=_N_SHOWN, cutoff=0.5)
    close = [lower[each] for each in close] or [each for each in names if name.lower() in each.lower()][:_N_SHOWN]
    if close:
        return f"{brief(name)}; nearest are {', '.join(close)}"
    return f"{brief(name)} among {len(names)}: {some(list(names), _N_SHOWN)}"
