"""Pipes among the files of a run: refused before anything is read, rather than after a wait for what never comes."""

import os
from collections.abc import Iterable
from typing import Any

from pipeline.config import dataset_args
from pipeline.config.schema import Config
from pipeline.config.settings import Setting, expanded, settings_of
from pipeline.inputs.text import refuse_pipe

_WRITTEN = "store.path"


def refuse_pipes(config: Config) -> None:
    """Raises UserError, with what to do, for the first setting that names a pipe or this process's own input."""
    refuse_pipes_among(each for each in settings_of(config) if each.key != _WRITTEN)
    _refuse("dataset.args", dataset_args.files_of(config.dataset.args))


def refuse_pipes_among(settings: Iterable[Setting]) -> None:
    """`refuse_pipes` for some settings."""
    for each in settings:
        if each.is_file:
            _refuse(each.key, each.value)


def _refuse(key: str, value: Any) -> None:
    for path in _paths(value):
        refuse_pipe(path, key)


def _paths(value: Any) -> list[str]:
    """The paths that a setting holds and that are there; others are complained of where they are read."""
    paths = value if isinstance(value, list) else [] if value is None else [value]
    return [str(path) for path in paths if os.path.exists(expanded(path))]
