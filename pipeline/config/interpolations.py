"""What stands in a setting for something else, `${...}`: another setting may, what is looked up elsewhere may not.

Settings are printed, stored and sent to workers. A variable of the environment (`${oc.env:...}`), or whatever else a
resolver looks up, is no one's business there; and what a store holds is never looked up.
"""

import re
from collections.abc import Iterator
from typing import Any

from pipeline.messages.errors import UserError

NO_NAME = "a file whose name holds ${ is given by another: ln -s 'NAME' OTHER"
_SETTING = re.compile(r"\$\{[^:{}]*\}")  # of innermost braces, without a colon: the value of another setting
_VARIABLE = re.compile(r"\$\{oc\.env:([A-Za-z_]\w*)(?:,[^{}]*)?\}")


def refuse_lookups(settings: Any) -> None:
    """Raise UserError where a value, in nested mappings and lists, is looked up elsewhere than in the settings."""
    for key, text in _texts(settings):
        rest, before = text, ""
        while rest != before:
            rest, before = _SETTING.sub("", rest), rest
        if "${" in rest:
            by_shell = _VARIABLE.sub(r"$\1", text)
            way = f'let the shell look it up: {key}="{by_shell}"' if "${" not in by_shell else "give the value itself"
            raise UserError(
                f"{key}={text} would be looked up elsewhere (in the environment, say), and settings are stored and "
                f"printed; {way}"
            )


def refuse_all(settings: Any, whose: str) -> None:
    """Raise UserError where a value stands for something else."""
    for key, text in _texts(settings):
        if "${" in text:
            raise UserError(
                f"{whose} holds {key}={text}, which stands for something else; settings of a run never do; {NO_NAME}"
            )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text among the values of nested mappings and lists, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list | tuple):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
