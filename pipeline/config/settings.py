"""Settings: the fields of the schemas, each with a sentence, what it may be, and how it reaches the values of a run.

A setting is in the fingerprint as it is unless it says otherwise: a forgotten word costs a needless refusal, and never
mixes the values of two runs in one store. In the same way, one is not taken from a store unless it says that it is
plain: a forgotten word costs a question, and never runs a stranger's code.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import omegaconf

from pipeline.messages.visible import visible
from pipeline.messages.words import did_you_mean, one_of

REQUIRED = omegaconf.MISSING


@dataclass(frozen=True)
class Setting:
    """What is known of a setting.

    Attributes:
        key: its dotted name.
        value: as it is given.
        description: a sentence, with the unit.
        fingerprint: `value` (as it is), `resolved` (what it resolves to is there instead: weights, rows, references,
            the batch size) or `none` (it does not reach the values).
        is_file: whether it names a file or a folder, or several.
        is_text: whether a text is its value as it stands: a path, or whatever else a person calls something.
        takes_several: whether a list of paths may be given too.
        choices: the words that it may be; None: any.
        least: the smallest whole number that it may be.
        is_plain: whether it runs no code, connects to nothing and says nothing to anyone, so that it is taken from a
            store whose run is repeated. One that does not say so must be given again.
    """

    key: str
    value: Any
    description: str
    fingerprint: str
    is_file: bool
    choices: tuple[str, ...] | None
    least: int | None
    is_plain: bool
    type: Any

    @property
    def is_text(self) -> bool:
        return self.is_file or self.type in (str, str | None)

    @property
    def takes_several(self) -> bool:
        return self.is_file and self.type is Any

    @property
    def problem(self) -> str | None:
        """What is wrong with the value, in a line; None where nothing is."""
        if self.value is None or (self.choices is None and self.least is None):
            return None
        if self.choices is not None and self.value in self.choices:
            return None
        if self.least is None:
            assert self.choices is not None
            return (
                f"{self.key}={self.value}; expected {one_of(self.choices)}{did_you_mean(str(self.value), self.choices)}"
            )
        if type(self.value) is int and self.value >= self.least:
            return None
        words = f" or {one_of(self.choices)}" if self.choices else ""
        return f"{self.key}={self.value}; expected a whole number of at least {self.least}{words}"


def setting(
    description: str,
    default: Any = REQUIRED,
    *,
    fingerprint: str = "value",
    is_file: bool = False,
    choices: tuple[str, ...] | None = None,
    least: int | None = None,
    is_plain: bool = False,
) -> Any:
    """A field of a schema; see `Setting`. `default` may be a function that makes it."""
    given = {"default_factory": default} if callable(default) else {"default": default}
    known = {
        "fingerprint": fingerprint,
        "is_file": is_file,
        "choices": choices,
        "least": least,
        "is_plain": is_plain,
    }
    return field(**given, metadata={"description": description, **known})


def settings_of(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration or of one of its groups, those of its groups one by one."""
    for item in fields(config):
        value, known = getattr(config, item.name), _known(type(config), item.name)
        if is_dataclass(value):
            for inner in settings_of(value, f"{prefix}{item.name}."):
                yield inner if known["fingerprint"] == "value" else replace(inner, fingerprint=known["fingerprint"])
        else:
            yield Setting(prefix + item.name, value, **known, type=item.type)


def _known(schema: type, key: str) -> Mapping[str, Any]:
    """What `setting` was told of a field; a subclass may have given it another default."""
    own = (
        vars(each)["__dataclass_fields__"][key]
        for each in schema.__mro__
        if key in vars(each).get("__dataclass_fields__", {})
    )
    return next(item.metadata for item in own if item.metadata)


def value_settings(config: Any) -> dict[str, Any]:
    """The settings that are in the fingerprint as they are, by their keys."""
    return {each.key: each.value for each in settings_of(config) if each.fingerprint == "value"}


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a configuration or one of its groups, fit for JSON."""
    return asdict(config)


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder in the place of `~` or `~user`."""
    return Path(os.path.expanduser(path))  # pathlib's own takes ./~x for ~x, and fails where there is no such user


def absolute_path(path: Any) -> Any:
    """A path as it is from anywhere; of several each; a URL and None as they are."""
    if isinstance(path, list):
        return [absolute_path(one) for one in path]
    return str(expanded(path).absolute()) if path and "://" not in path else path


def plain_paths(value: Any, key: str) -> Any:
    """What a setting of files holds, as text, with the home folder in the place of `~`; of several each.

    Raises:
        ValueError: it is none, in words.
    """
    if isinstance(value, list):
        return [plain_paths(one, key) for one in value]
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ValueError(
            f"{key}={value} is read as {type(value).__name__}, not as a path; put it in quotes, in YAML and Python as "
            f'well, or write ./ before it: {key}="./{value}"'
        )
    text = os.path.expanduser(os.fspath(value))
    if "\0" in text:
        raise ValueError(f"{key}={visible(text)} holds a null byte, which no path does")
    if not text.strip():
        raise ValueError(f"{key} is empty; give a path, or leave {key} out")
    return text
