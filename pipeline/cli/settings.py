"""The configuration that the settings of a command line describe."""

import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass

from omegaconf import OmegaConf

from pipeline.config.interpolations import refuse_all
from pipeline.config.overrides import as_overrides, command_line
from pipeline.config.schema import Config
from pipeline.config.trust import not_given
from pipeline.config.validate import from_mapping
from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG
from pipeline.models import own_modules


def config_of(
    overrides: Sequence[str],
    config_dir: str | None = None,
    repeated: str | None = None,
    command: Sequence[str] = (),
    is_trusted: bool = False,
) -> Config:
    """The configuration of a command, or that of a store whose run is repeated; see `repeat_config`.

    The user's own modules are looked for in its cluster.code and in the working folder.
    """
    from pipeline.config.compose import compose_config  # Hydra is for commands that compose, not for all

    if repeated is None:
        found = compose_config(overrides, config_dir)
    else:
        found = repeat_config(repeated, overrides, config_dir, command, is_trusted)
    own_modules.search(found.cluster.code, os.getcwd())
    return found


def repeat_config(
    store: str,
    overrides: Sequence[str],
    config_dir: str | None = None,
    command: Sequence[str] = (),
    is_trusted: bool = False,
) -> Config:
    """The configuration that a store was made with, under some overrides, for the same store unless they name another.

    Options of an object store are those of the overrides alone, as they are needed to read the store.

    Args:
        store: its path or URL.
        overrides: as on the command line.
        config_dir: a folder with more choices for the groups.
        command: the words of the command, which an error repeats.
        is_trusted: whether also those settings are taken that a store alone does not decide; see config/trust.py.

    Raises:
        UserError: the store does not say how it was made, an override cannot be used, or a setting that the store alone
            does not decide is not among them.
    """
    from pipeline.config.compose import compose, override
    from pipeline.store.attributes import read_attributes
    from pipeline.store.backends.registry import open_backend

    composed = compose(overrides, config_dir)
    options = OmegaConf.to_container(composed.store.options)
    assert isinstance(options, dict)
    attributes = read_attributes(open_backend(store, {str(name): str(value) for name, value in options.items()}))
    if not isinstance((attributes or {}).get("config"), dict):
        raise UserError(f"{store}: there is no store there that says how it was made")
    assert attributes is not None
    refuse_all(attributes["config"], store)
    groups = {item.name: attributes["config"].get(item.name) for item in fields(Config) if is_dataclass(item.type)}
    if odd := [name for name, group in groups.items() if not isinstance(group, dict)]:
        raise UserError(f"{store} does not say how it was made: its settings of {odd[0]} are no settings")
    settings = OmegaConf.create(attributes["config"])
    settings.store.path, settings.store.options = store, options
    settings.run.shards = None  # the whole of it
    settings.limits = composed.limits  # not those of whoever made the store
    config = from_mapping(override(settings, composed, overrides))
    if decided := not_given(config, composed):
        named = ", ".join(as_overrides(decided))
        if not is_trusted:
            raise UserError(
                f"{store} names what runs code or is connected to: {named}. If you trust that, give it again, "
                f"`{command_line(command, decided)}`, or all at once with --trust-config"
            )
        LOG.info(f"--trust-config takes from {store}: {named}")
    return config
