r"""Text that others chose (names, labels, paths, answers), as it may stand in a terminal, a page or a table.

A character that would move the cursor, colour, reorder, hide or end a line is shown as the escape that Python writes
for it: \x1b, \u202e, \n. The names themselves are kept as they are wherever they are data.
"""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.messages.secrets import without_credentials

LONGEST_LINE = 2000
_LINE_END = 400  # characters that are kept of the end of a longer one: what to do stands there
_ACTING = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: escape sequences, carriage returns, bells
    "\u2028-\u202e\u2066-\u2069\u200e\u200f\u061c"  # ends of lines and of paragraphs, directions of text
    "\xad\u034f\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # not seen
    "\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\ud800-\udfff"  # bytes of file names that are no text
    "]"
)


def is_visible(text: str) -> bool:
    """Whether `visible` leaves a text as it is."""
    return (text.isascii() and text.isprintable()) or _ACTING.search(text) is None


def visible(text: str, kept: str = "") -> str:
    """A text whose acting characters are escapes, but for those that are `kept`."""
    if text.isascii() and text.isprintable():
        return text
    return _ACTING.sub(lambda found: found[0] if found[0] in kept else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def line(text: str) -> str:
    """One line of what is told; of a long one the beginning and the end."""
    if len(text) > LONGEST_LINE:
        cut = len(text) - LONGEST_LINE
        text = f"{text[: LONGEST_LINE - _LINE_END]} ... ({cut} more characters) ... {text[-_LINE_END:]}"
    return visible(text)


def in_lines(texts: Iterable[str]) -> str:
    """Lines of what is told, each of them one line whatever is in it."""
    return "\n".join(map(line, texts))


def shown(text: str, most: int = 80) -> str:
    """A value of the user's in quotes, as a message shows it: the beginning of a long one."""
    return visible(repr(text) if len(text) <= most else f"{text[:most]!r}...")


def brief(text: str, most: int = 200) -> str:
    """A name without quotes: of a long one the beginning and the length."""
    return visible(text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)")


def to_json(value: Any) -> str:
    """JSON in ASCII. Python's own leaves DEL as it is, and terminals do not."""
    return json.dumps(value).replace("\x7f", r"\u007f")


class VisibleStream:
    """A text stream that shows what would act on a terminal; ends of lines and tabs are the writer's own."""

    def __init__(self, stream: Any, cleaned: Callable[[str], str] = str) -> None:
        self.stream, self._cleaned = stream, cleaned

    def write(self, text: str) -> int:
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(
            visible(self._cleaned(text), kept="\n\t").encode(encoding, "backslashreplace").decode(encoding)
        )
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def visible_streams() -> Iterator[None]:
    """Within this context all that is written to sys.stdout and sys.stderr is visible, warnings of libraries too; and
    what is written to stderr is without credentials."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None:  # closed by `>&-`
        sys.stdout = VisibleStream(sys.stdout)
    if sys.stderr is not None:
        sys.stderr = VisibleStream(sys.stderr, without_credentials)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
