"""Words: of errors about settings, and of counts."""

import difflib
import re
from collections.abc import Iterator


def in_a_line(error: Exception, settings: list[str], groups: list[str]) -> str:
    """One line for an error of Hydra or OmegaConf, which speak in several.

    Args:
        error: theirs.
        settings: dotted names of all settings.
        groups: names of all groups, and of settings without one.
    """
    text = " ".join(str(part) for part in _causes(error))
    if match := re.search(r"Could not override '([^']*)'", text):
        known = settings + groups
        if match[1] not in known:
            return f"{match[1] or repr('')} is not a setting{did_you_mean(match[1], known)}"
    if match := re.search(r"(?:Could not find|In '[^']+': Could not find) '(\w+)/([^']+)'", text):
        options = re.findall(r"^\t(\w+)$", text, re.MULTILINE)
        return f"{match[1]}={match[2]}; expected {one_of(options)}{did_you_mean(match[2], options)}"
    key = re.search(r"full_key: ([\w.\[\]]+)", text)
    if (match := re.search(r"Key '([^']+)' (?:is )?not in '?\w+'?", text)) and key:
        return f"{key[1]} is not a setting{did_you_mean(key[1], settings)}"
    if (match := re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", text)) and key:
        names = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
        return f"{key[1]}={match[1]}; expected {names.get(match[2], match[2])}"
    if match := re.search(r"Error merging override ([^\s=]+)=(\S*) .*is not a ListConfig", text):
        return f"{match[1]}={match[2]}; expected a list: {match[1]}=[{match[2]}]"
    if match := re.search(r"Error merging override (\S+)", text):
        return f"{match[1]}: the value is not of the type that {key[1] if key else 'the setting'} takes"
    if "parsing override" in text or "OverrideParseException" in type(error).__name__:
        override = getattr(error, "override", "")
        return (
            f"{override!r} is not a setting; expected name=value, and quotes around a value with brackets, spaces or ="
        )
    first = str(error).strip().splitlines()[0]
    return f"{key[1]}: {first}" if key else first


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def one_of(choices: tuple[str, ...] | list[str]) -> str:
    """a, b or c."""
    return ", ".join(choices[:-1]) + f" or {choices[-1]}" if len(choices) > 1 else "".join(choices)


def counted(n: int, noun: str) -> str:
    """1 shard, 2 shards."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """The end of a message about a word that is not known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return (
        f"; did you mean {close[0]}?"
        if close
        else "; `dlshap run --cfg job` prints all settings"
        if "." in word
        else ""
    )
