"""DeepLIFT/SHAP attributions of many sequences as a batch pipeline: sequences in, one Zarr store out.

summary = pipeline.run(["dataset=fasta", "dataset.path=sequences.fa", "store.path=out.zarr"])
store = pipeline.open_store("out.zarr")
store.attribution[:10]        # (10, T, L) float32
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.reader import Store
    from pipeline.summary import Summary

__all__ = ["open_store", "run"]


def run(config: Config | Mapping[str, Any] | Sequence[str] = ()) -> Summary:
    """Run the pipeline, or what is left of a run.

    Args:
        config: overrides as on the command line (`["model=bpnet", ...]`), a nested mapping of settings, or a Config.

    Returns:
        What was done; `.store` is the path of the store.

    Raises:
        UserError: a ValueError; bad input or configuration.
        RunError: a RuntimeError; the work failed, what is committed stays, and the same call goes on from there.
    """
    # Imported here so that `import pipeline` stays light.
    from pipeline.cli import compose_config
    from pipeline.config import Config, check, from_mapping
    from pipeline.driver import run_config

    if isinstance(config, Config):
        check(config)
        return run_config(config)
    return run_config(from_mapping(config) if isinstance(config, Mapping) else compose_config(list(config)))


def open_store(
    path: str | os.PathLike[str], allow_incomplete: bool = False, options: Mapping[str, str] | None = None
) -> Store:
    """Open a store for reading, of a disk or an object store; see `pipeline.reader.open_store`.

    Raises:
        UserError: a ValueError; nothing or something else lies there, or the run is not complete.
    """
    from pipeline.reader import open_store as open_

    return open_(os.fspath(path), allow_incomplete, options)
