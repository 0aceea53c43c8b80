"""Settings that a person decides, and never a store alone: those that run code, connect somewhere, or tell who asks.

Which these are, each setting says itself (`is_plain` in settings.py).
"""

from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.config.schema import Config, Group
from pipeline.config.settings import settings_of


def not_given(config: Config, given: DictConfig) -> dict[str, Any]:
    """The settings that are not plain and have other values than those that a person gave.

    Args:
        config: what is to be run.
        given: what the person's overrides alone describe.

    Returns:
        Values by dotted keys; of a mapping those of its entries that differ.
    """
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    empty: dict[str, Any] = {name: type(value)() for name, value in values.items() if isinstance(value, Group)}
    defaults = {each.key: each.value for each in settings_of(Config(**empty))}
    found: dict[str, Any] = {}
    for each in settings_of(config):
        own = OmegaConf.select(given, each.key, default=defaults[each.key])
        own = OmegaConf.to_container(own, resolve=True) if OmegaConf.is_config(own) else own
        if each.is_plain or str(each.value) == str(own):  # as text: an option may have been given as a number
            continue
        if isinstance(each.value, dict) and isinstance(own, dict):
            entries = {name: value for name, value in each.value.items() if str(own.get(name, own)) != str(value)}
            found |= {f"{each.key}.{name}": value for name, value in entries.items()}
        else:
            found[each.key] = each.value
    return found
