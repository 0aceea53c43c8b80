"""Settings as people type them, `name=value`: which text Hydra is given for them, and how values are written again.

The text after the first `=` of a setting that takes a text, a path above all, is its value as it stands. Left to
Hydra's grammar: a value in quotes, one with Hydra's escapes (`\\=`), `null`, interpolations, a list where several paths
may be given, all settings of other types, and deletions (`~name`).
"""

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

from pipeline.config.registry import GROUPS, names, schema
from pipeline.config.schema import Config
from pipeline.config.settings import Setting, settings_of
from pipeline.messages.visible import brief


def grammar() -> ModuleType:
    """Hydra's, which is not loaded before something is to be read."""
    from pipeline.config import hydra_private

    return hydra_private


_BARE = re.compile(
    r"(?!(?:null|true|false|nan|inf)$)[a-z_/][\w./-]*", re.IGNORECASE | re.ASCII
)  # a text that needs no quotes
_QUOTED = re.compile(r"\s*(['\"]).*\1\s*", re.DOTALL)
_CLOSING = {"[": "]", "{": "}"}
OUTPUT = "model.output"
_KINDS = {
    int: "a whole number",
    int | None: "a whole number or null",
    float: "a number",
    bool: "true or false",
}


# --- reading --------------------------------------------------------------------------------------------------------


def as_hydra(overrides: Sequence[str]) -> list[str]:
    """Overrides as they are typed, in Hydra's grammar. Some that Hydra cannot read are left as they are."""
    chosen = {name: value for name, _, value in (each.partition("=") for each in overrides) if name in GROUPS}
    return [_as_hydra(each, chosen) for each in overrides]


def _as_hydra(override: str, chosen: Mapping[str, str]) -> str:
    name, sign, text = override.partition("=")
    key = name.lstrip("+")
    if not sign or not text or _BARE.fullmatch(text) or "${" in text or text.strip().lower() == "null":
        return override
    if key == OUTPUT:  # its quotes are its own
        return f"{name}={quoted(text)}" if set("[(.:'\"") & set(text) else override
    if not re.fullmatch(r"[\w.]+", key):
        return override
    found = setting_of(key, chosen)
    if found is None:  # whoever checks the configuration names it; what is in a mapping is for Hydra to read
        is_unknown = "." in key and not any(setting_of(each, chosen) for each in _above(key))
        return f"{name}={quoted(text)}" if is_unknown else override
    if not found.is_text or _is_hydras(text, found.takes_several):
        return override
    return f"{name}={quoted(text)}"


def _above(key: str) -> Iterator[str]:
    """The keys of what a setting may be a part of."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _is_hydras(text: str, several: bool) -> bool:
    """Whether a text is written in Hydra's grammar: in quotes, with escapes, or as a list where that is taken."""
    if _QUOTED.fullmatch(text) and grammar().is_quoted(text):
        return True
    if several and text.lstrip().startswith("["):
        return isinstance(grammar().value_of(text), list) or _requoted(text) is not None
    if "\\" not in text:
        return False
    value = grammar().value_of(text)
    return isinstance(value, str) and value != text.strip()


def setting_of(key: str, chosen: Mapping[str, str] = MappingProxyType({})) -> Setting | None:
    """What is known of a setting; of one that several choices have, by the one that is chosen if that is known."""
    group, _, own = key.partition(".")
    if (found := _among(Config(), "", key)) is not None or group not in GROUPS or not own:
        return found
    known = names(group)
    first = [chosen[group]] if chosen.get(group) in known else []
    schemas = (schema(group, name) for name in (*first, *known))
    return next((item for each in schemas if (item := _among(each(), f"{group}.", key)) is not None), None)


def _among(config: Any, prefix: str, key: str) -> Setting | None:
    return next((each for each in settings_of(config, prefix) if each.key == key), None)


# --- writing --------------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """A text in Hydra's quotes."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as they are given on a command line, before the shell's quotes."""
    return [f"{key}={_written(value)}" for key, value in settings.items()]


def command_line(arguments: Sequence[str], settings: Mapping[str, Any]) -> str:
    """A command line that gives these settings as well, ready to paste."""
    return shlex.join(["dlshap", *arguments, *as_overrides(settings)])


def _written(value: Any) -> str:
    """A value in the grammar of overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_written(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, str) and not _BARE.fullmatch(value):
        return quoted(value)
    return str(value)


# --- correcting -----------------------------------------------------------------------------------------------------


def problem_of(override: str, overrides: Sequence[str]) -> str:
    """What to say of an override that cannot be read, one of several: the corrected argument where there is one."""
    name, sign, text = override.partition("=")
    if not sign or not name.strip():
        return f"{brief(override)!r} is not a setting; expected name=value{_whole(override, overrides)}"
    found = setting_of(name.strip("+ "))
    if found is not None and name == name.strip() and (kind := _KINDS.get(found.type)):
        return f"{brief(override.strip())}; expected {kind}"
    corrected = next((each for each in _corrections(name.strip(), text.strip()) if grammar().can_read(each)), None)
    if corrected is None:
        return f"{brief(override)!r} is not a setting; expected name=value, such as dataset.path=x.fa"
    return f"{brief(override)!r} cannot be read as it is; write {shlex.quote(corrected)}"


def _whole(word: str, overrides: Sequence[str]) -> str:
    """The end of an error about a word without a name: the setting that it is a part of, cut in pieces at its spaces by
    a shell."""
    at = overrides.index(word)
    after = list(itertools.takewhile(lambda each: each.startswith("=") or "=" not in each, overrides[at + 1 :]))
    if after and "." in word and word.partition(".")[0] in (*GROUPS, "engine", "store", "run", "limits"):
        return f"; write {shlex.quote(word + '=' + ' '.join(after).lstrip('= '))}"
    name, sign, value = overrides[at - 1].partition("=") if at else ("", "", "")
    if not sign:
        return ", such as dataset.path=x.fa"
    whole = f"{name}={' '.join([value, word, *after]).strip()}"
    return f"; if it belongs to the value before it: {shlex.quote(whole)}"


def _corrections(name: str, text: str) -> Iterator[str]:
    """Ways to write a setting that Hydra can read, the likeliest first."""
    yield f"{name}={text}"
    yield f"{name}={text}{_CLOSING.get(text[:1], '')}"
    if (inner := _requoted(text)) is not None:
        yield f"{name}={inner}"
    yield f"{name}={_in_quotes(text)}"


def _in_quotes(text: str) -> str:
    """A text in Hydra's quotes, in double ones where that is simple: the shell's are single ones."""
    return quoted(text) if '"' in text or "\\" in text else f'"{text}"'


def _requoted(text: str) -> str | None:
    """A list or a mapping whose values are in quotes where they need them; None for any other text."""
    if len(text) < 2 or _CLOSING.get(text[0]) != text[-1]:
        return None
    parts = [_part(each, text[0] == "{") for each in _split(text[1:-1])]
    return f"{text[0]}{','.join(parts)}{text[-1]}"


def _part(part: str, has_name: bool) -> str:
    name, sign, value = part.partition(":") if has_name else ("", "", part)
    value = value.strip()
    if not grammar().can_read(f"x={value}") or not value:
        value = _requoted(value) or _in_quotes(value)
    return f"{name}{sign}{value}"


def _split(text: str) -> Iterator[str]:
    """What stands between the commas that are within no brackets and no quotes."""
    depth, quote, part = 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not part.strip():
            quote = character
        depth += (not quote) * ((character in "[{(") - (character in ")}]"))
        if character == "," and depth == 0 and not quote:
            yield part
            part = ""
        else:
            part += character
    yield part
