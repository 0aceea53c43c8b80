"""Words: of errors about settings, and of counts."""

import difflib
import math
from collections.abc import Sequence

from pipeline.messages.visible import brief


def one_of(choices: Sequence[str]) -> str:
    """a, b or c."""
    return ", ".join(choices[:-1]) + f" or {choices[-1]}" if len(choices) > 1 else "".join(choices)


def counted(n: int, noun: str) -> str:
    """1 shard, 2 shards."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def some(names: Sequence[str], most: int) -> str:
    """a, b and 3 more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(brief, names[:most])) + more


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a message about a word that is not known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return (
        f"; did you mean {close[0]}?"
        if close
        else "; `dlshap run --cfg job` prints all settings"
        if "." in word
        else ""
    )


def size(n_bytes: float) -> str:
    """An amount of bytes for people: 3.2 MB, 1.4 TB."""
    unit = min(int(math.log10(max(n_bytes, 1)) // 3), 5)
    return f"{n_bytes / 1000**unit:.{0 if unit == 0 else 1}f} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[unit]}"
