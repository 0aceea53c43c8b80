"""Pipes among the files of a run: refused before anything is read, rather than after a wait for what never comes."""

import os
from typing import Any

from pipeline.config import dataset_args
from pipeline.config.schema import Config
from pipeline.config.settings import expanded, settings_of
from pipeline.inputs.text import refuse_pipe

_WRITTEN = "store.path"


def refuse_pipes(config: Config) -> None:
    """Raises UserError, with what to do, for the first setting that names a pipe or this process's own input."""
    named = [(each.key, each.value) for each in settings_of(config) if each.is_file and each.key != _WRITTEN]
    for key, value in [*named, ("dataset.args", dataset_args.files_of(config.dataset.args))]:
        for path in _paths(value):
            refuse_pipe(path, key)


def _paths(value: Any) -> list[str]:
    """The paths that a setting holds and that are there; others are complained of where they are read."""
    paths = value if isinstance(value, list) else [] if value is None else [value]
    return [str(path) for path in paths if os.path.exists(expanded(path))]
