"""DeepLIFT/SHAP attributions of many sequences as a batch pipeline: sequences in, one Zarr store out.

model = ["model=bpnet", "model.checkpoint=bpnet.torch"]
summary = pipeline.run([*model, "dataset=fasta", "dataset.path=sequences.fa", "store.path=out.zarr"])
store = pipeline.open_store("out.zarr")
store.attribution[:10]        # (10, T, L) float32
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.messages.errors import RunError, UserError

if TYPE_CHECKING:
    from pipeline.config.schema import Config
    from pipeline.execution.summary import Summary
    from pipeline.store.reader import Store

__all__ = ["RunError", "UserError", "open_store", "run"]

logging.getLogger("dlshap").addHandler(logging.NullHandler())  # a library prints nothing unless it is asked to


def run(config: Config | Mapping[str, Any] | Sequence[str] = ()) -> Summary:
    """Run the pipeline, or what is left of a run. The process is left as it was, and nothing is printed.

    Messages and progress are records of the logger `dlshap`. To see them on stderr, as those of a command are:
    `with pipeline.messages.progress.shown_on_stderr(): pipeline.run(...)`. To handle them otherwise, give that logger a
    handler and the level INFO.

    Args:
        config: overrides as on the command line (`["model=bpnet", ...]`), a nested mapping of settings, or a Config.

    Returns:
        What was done; `.store` is the path of the store.

    Raises:
        UserError: a ValueError; bad input or configuration.
        RunError: a RuntimeError; the work failed, what is committed stays, and the same call goes on from there.
    """
    # Imported here so that `import pipeline` stays light.
    from pipeline.config.compose import compose_config
    from pipeline.config.schema import Config
    from pipeline.config.settings import to_dict
    from pipeline.config.validate import from_mapping
    from pipeline.execution.host import own_numerics, same_search_path
    from pipeline.execution.run import run_config
    from pipeline.models import own_modules

    with same_search_path():
        if isinstance(config, Config):
            config = from_mapping(to_dict(config))
        else:
            config = from_mapping(config) if isinstance(config, Mapping) else compose_config(list(config))
        own_modules.search(config.cluster.code)
        with own_numerics(allow_tf32=config.engine.dtype == "tf32"):
            return run_config(config)


def open_store(
    path: str | os.PathLike[str], allow_incomplete: bool = False, options: Mapping[str, str] | None = None
) -> Store:
    """Open a store for reading.

    Args:
        path: of the store, or its URL on an object store.
        allow_incomplete: open a store whose run has not finished; unfinished rows read as NaN.
        options: of the object store, such as endpoint and region.

    Raises:
        UserError: a ValueError; nothing or something else lies there, or the run is not complete.
    """
    from pipeline.store.reader import open_store as open_

    return open_(os.fspath(path), allow_incomplete, options)
