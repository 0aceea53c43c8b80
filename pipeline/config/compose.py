"""Configurations composed by Hydra from conf/, an override list, and the choices of installed packages."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import hydra_private
from pipeline.config.interpolations import refuse_lookups
from pipeline.config.overrides import as_hydra, problem_of
from pipeline.config.registry import CONF, GROUPS, plugins
from pipeline.config.schema import AUTO, Config
from pipeline.config.validate import explain, from_mapping
from pipeline.messages.errors import UserError
from pipeline.messages.secrets import refuse_arguments, without_credentials

SCHEMA = "dlshap_schema"  # in conf/config.yaml


def compose_config(overrides: Sequence[str], config_dir: str | None = None) -> Config:
    """The checked configuration that a list of Hydra overrides (`name=value`) describes.

    Args:
        overrides: as on the command line.
        config_dir: a folder with more choices for the groups.

    Raises:
        UserError: one line about the first override that cannot be used.
    """
    return from_mapping(compose(overrides, config_dir))


def compose(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """conf/config.yaml under some overrides, whose values are not checked yet; see `compose_config`."""
    refuse_arguments(overrides)
    _refuse_hydras_own(overrides)
    refuse_lookups(dict(override.partition("=")[::2] for override in overrides))
    more = [] if config_dir is None else [f"hydra.searchpath=[file://{_require_folder(config_dir)}]"]
    root = {item.name: getattr(Config(), item.name) for item in fields(Config)}
    schema = OmegaConf.structured({**root, **{group: {} for group in GROUPS}})
    with _one_line_errors(overrides):
        given = [*more, *map(_with_new_keys, as_hydra(overrides))]
        composed = hydra_private.compose(str(CONF), given, [(None, SCHEMA, schema), *plugins()])
    refuse_lookups(OmegaConf.to_container(composed))
    return composed


def override(settings: Mapping[str, Any], composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Another run's settings under the overrides that `composed` was made with.

    A group that is chosen anew comes from `composed` whole; other settings are replaced one by one.

    Raises:
        UserError: an override chooses an experiment, or cannot be used.
    """
    config = OmegaConf.create(dict(settings))
    of_example = config.model.name == config.dataset.name == "example"
    with _one_line_errors(overrides):
        for key in hydra_private.override_keys(as_hydra(overrides)):
            if key == "experiment":
                raise UserError(
                    "--config-from and experiment=... contradict each other; give the experiment's settings"
                )
            OmegaConf.update(config, key, OmegaConf.select(composed, key), merge=False, force_add=True)
            of_example = of_example and key not in ("model", "model.name")
    if of_example and config.dataset.name != "example":
        config.model.name = AUTO  # the example's model is no choice for another input
    return config


def _with_new_keys(override: str) -> str:
    """Hydra does not know the settings of a group's choices (see registry.py), nor the keys of mappings: to it, both
    are new."""
    new = rf"({'|'.join(GROUPS)})\.|store\.options[.=]"
    return f"++{override}" if re.match(new, override) else override


def _refuse_hydras_own(overrides: Sequence[str]) -> None:
    """Raise UserError for settings of Hydra's own, which would do nothing: no application of Hydra is started."""
    for each in overrides:
        if re.match(r"[+~]*hydra([./=@]|$)", each):
            name = each.partition("=")[0]
            raise UserError(
                f"{name} has no effect: dlshap uses Hydra's syntax for settings, and nothing else of it; store.path "
                "says where the result goes, --config-dir where more choices are, and --multirun makes a run of each "
                "of several values"
            )


def _require_folder(path: str) -> Path:
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise UserError(f"--config-dir {path} is not a folder")
    return folder


@contextlib.contextmanager
def _one_line_errors(overrides: Sequence[str]) -> Iterator[None]:
    """Errors of Hydra and OmegaConf become UserError, and so does whatever they let through of YAML and its values."""
    try:
        yield
    except UserError:
        raise
    except OverrideParseException as error:
        raise UserError(without_credentials(problem_of(_as_typed(error.override, overrides), overrides))) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from None
    except Exception as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"a setting, or a YAML file of --config-dir, cannot be read: {reason}") from error


def _as_typed(override: str, overrides: Sequence[str]) -> str:
    """The override that Hydra was given in another form; see `_with_new_keys`."""
    return override if override in overrides else override.removeprefix("++")
