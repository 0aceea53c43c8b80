"""From what was given to a configuration that can be run, or to the one line that says what is wrong with it."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from pipeline.config.expansion import require_bounded
from pipeline.config.interpolations import NO_NAME, refuse_all, refuse_lookups
from pipeline.config.overrides import setting_of
from pipeline.config.registry import GROUPS, base_schema, names, owners, schema
from pipeline.config.schema import AUTO, Config, Group, ModelConfig
from pipeline.config.settings import REQUIRED, absolute_path, plain_paths, settings_of, to_dict
from pipeline.messages.errors import UserError
from pipeline.messages.secrets import refuse_options, refuse_values, without_credentials
from pipeline.messages.words import did_you_mean, one_of


def from_mapping(composed: Any) -> Config:
    """A checked configuration from a composed mapping (a dict or DictConfig).

    Raises:
        UserError: an unknown setting, a wrong type, a missing value, or settings that contradict each other.
    """
    try:
        given: Any = _whole_groups(OmegaConf.to_container(OmegaConf.create(composed)))
        refuse_options((given.get("store") or {}).get("options") or {}, "store.options.")
        refuse_values(given, "")
        refuse_lookups(given)
        require_bounded(given)
        chosen = {group: _schema_of(given, group)() for group in GROUPS}
        _make_plain(given, Config(**chosen))
        for group, empty in chosen.items():
            if isinstance(given.get(group), dict):
                given[group] = _own(given[group], group, empty)
        merged = OmegaConf.merge(OmegaConf.structured(Config(**chosen)), given)
        if missing := sorted({*OmegaConf.missing_keys(OmegaConf.create(given)), *OmegaConf.missing_keys(merged)}):
            raise UserError(_needed(missing[0], chosen))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        if "is not a ListConfig" in str(error):
            value = OmegaConf.select(OmegaConf.create(given), error.full_key or "")
            raise UserError(f"{error.full_key}={value}; expected a list: {error.full_key}=[{value}]") from None
        raise UserError(explain(error)) from None
    except RecursionError:
        raise UserError("a value of the configuration is nested too deeply") from None
    assert isinstance(config, Config)
    refuse_all(to_dict(config), "the configuration")
    _require_utf8(config)
    check(config)
    return config


def _whole_groups(given: Any) -> dict[str, Any]:
    """The mapping with each group's settings; a text in the place of a group's names its choice.

    Raises:
        UserError: something else is in the place of a group's settings.
    """
    groups = {item.name for item in fields(Config) if isinstance(item.type, type) and issubclass(item.type, Group)}
    for group in groups & given.keys():
        if isinstance(given[group], str) and group in GROUPS:
            given[group] = {"name": given[group]}
        elif given[group] is not None and not isinstance(given[group], dict):
            schema_of_group = base_schema(group) if group in GROUPS else type(getattr(Config(), group))
            some = ", ".join([item.name for item in fields(schema_of_group)][:3])
            given_text = without_credentials(str(given[group]))
            raise UserError(f"{group}={given_text}; expected a mapping of its settings ({some}, ...)")
    return given


def _make_plain(given: dict[str, Any], empty: Config) -> None:
    """Make every path that is given plain text. Raises UserError for what is none."""
    for each in settings_of(empty):
        group, _, key = each.key.partition(".")
        values = given.get(group)
        if each.is_file and isinstance(values, dict) and key in values:
            try:
                values[key] = plain_paths(values[key], each.key)
            except ValueError as error:
                raise UserError(str(error)) from None


def _require_utf8(config: Config) -> None:
    """Raises UserError for what a store, which keeps its settings as UTF-8, could not keep: some names of files."""
    for each in settings_of(config):
        value = absolute_path(each.value) if each.is_file else each.value
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            fix = "; rename the file or folder, or give a link to it (ln -s)" if each.is_file else ""
            raise UserError(f"{each.key}={value} is not UTF-8, as the settings in a store are{fix}") from None


def _name_of(given: Mapping[str, Any], group: str) -> str:
    """The choice of a group."""
    values = given.get(group)
    name = values.get("name") if isinstance(values, dict) else None
    return str(base_schema(group)().name if name is None else name)


def _schema_of(given: dict[str, Any], group: str) -> type:
    """The schema of what is chosen for a group."""
    name = _name_of(given, group)
    if group == "model" and name == AUTO:
        values = given.setdefault(group, {})
        if values.get("checkpoint") is not None or _name_of(given, "dataset") != "example":
            return ModelConfig  # a choice is asked for before a run begins
        values["name"] = name = "example"
    return schema(group, name)


def _own(values: Mapping[str, Any], group: str, empty: Any) -> dict[str, Any]:
    """The settings of a group without those of its other choices that say nothing.

    Raises:
        UserError: one of them says something.
    """
    own = {}
    for key, value in values.items():
        if hasattr(empty, key) or not (others := owners(group, key)):
            own[key] = REQUIRED if value is None and getattr(empty, key, None) == REQUIRED else value
        elif value is not None and value not in (to_dict(each())[key] for each in others.values()):
            choices = one_of(list(others))
            if empty.name == AUTO:
                raise UserError(f"{group}.{key}={value} needs {group}={choices}; set {group}={choices}")
            files = [each.key for each in settings_of(empty, f"{group}.") if each.is_file and each.value == REQUIRED]
            if files and (found := setting_of(f"{group}.{key}")) is not None and found.is_file:
                raise UserError(
                    f"{group}={empty.name} has no {group}.{key}, which belongs to {group}={choices}; it takes "
                    f"{' and '.join(files)}"
                )
            raise UserError(
                f"{group}={empty.name} and {group}.{key} contradict each other; "
                f"use {group}={choices}, or leave {group}.{key} out"
            )
    return own


def _needed(key: str, chosen: Mapping[str, Any]) -> str:
    """What to say of a setting that must be given."""
    what = f"set {key}=..."
    for group, empty in chosen.items():
        for each in settings_of(empty, f"{group}."):
            if each.key == key:
                return f"{group}={empty.name} needs {key} ({each.description}); {what}"
    return f"{key} is not given; {what}"


def check(config: Config) -> None:
    """Raise UserError, one line, for the first value that is out of range or contradicts another."""
    for problem in problems(config):
        raise UserError(problem)


def problems(config: Config) -> Iterator[str]:
    """What is wrong with the values of a configuration, each with the fix. Looks at no file and no device."""
    for each in settings_of(config):
        if (problem := each.problem) is not None:
            yield problem
    for item in fields(config):
        if isinstance(group := getattr(config, item.name), Group):
            yield from group.problems()
    yield from config.problems()


def keys(groups: Iterable[str] = tuple(GROUPS)) -> list[str]:
    """The dotted keys of all settings, with those that some choice of these groups has, whose modules are imported."""
    found = [each.key for each in settings_of(Config())]
    for group in groups:
        found += [each.key for name in names(group) for each in settings_of(schema(group, name)(), f"{group}.")]
    return list(dict.fromkeys(found))


def explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf, whose messages have several."""
    return without_credentials(_explained(error))


def _explained(error: Exception) -> str:
    text = " ".join(str(part) for part in _causes(error))
    if match := re.search(r"Could not override '([^']*)'", text):
        known = _keys_beside(match[1]) + [item.name for item in fields(Config)]
        if match[1] not in known:
            return f"{match[1] or 'what begins with ='} is not a setting{did_you_mean(match[1], known)}"
    if match := re.search(r"(?:Could not find|In '[^']+': Could not find) '(\w+)/([^']+)'", text):
        options = re.findall(r"^\t(\w+)$", text, re.MULTILINE)
        return f"{match[1]}={match[2]}; expected {one_of(options)}{did_you_mean(match[2], options)}"
    key = re.search(r"full_key: ([\w.\[\]]+)", text)
    if (match := re.search(r"Key '([^']+)' (?:is )?not in '?\w+'?", text)) and key:
        return f"{key[1]} is not a setting{did_you_mean(key[1], _keys_beside(key[1]))}"
    if (match := re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", text)) and key:
        kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
        return f"{key[1]}={match[1]}; expected {kinds.get(match[2], match[2])}"
    if match := re.search(r"Ambiguous value for argument '([^=]*)=(.*?)'\n", text):
        takes_list = (found := setting_of(match[1].lstrip("+"))) is not None and found.type in (Any, list[Any])
        fix = f"; write {shlex.quote(f'{match[1]}=[{match[2]}]')}" if takes_list else ""
        expected = "a list in brackets" if fix else "one"
        return f"{match[1]}={match[2]} gives several values; expected {expected}, or --multirun for a run of each{fix}"
    if match := re.search(r"Error merging override \+*(store\.options|\S+)", text):
        return f"{match[1]}: the value is not of the type that {key[1] if key else 'the setting'} takes"
    first = str(error).strip().splitlines()[0]
    if isinstance(error, InterpolationKeyError):
        first += f" (${{...}} is the value of another setting; {NO_NAME})"
    return f"{key[1]}: {first}" if key else first


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _keys_beside(key: str) -> list[str]:
    """The keys that an unknown one may be a misspelling of: those of its group, and what belongs to none."""
    return keys({key.partition(".")[0]} & {*GROUPS})


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The model configuration that `to_dict` made `values` of."""
    empty = schema("model", values["name"])()
    model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(empty), DictConfig(values)))
    assert isinstance(model, ModelConfig)
    return model
