"""Several runs on one Ray: it is started or reached for the first run that has work to do, and kept for the others."""

import contextlib

from pipeline.config.schema import Config
from pipeline.execution.executor import executor_of
from pipeline.execution.run import run_config
from pipeline.execution.store_access import attributes_of
from pipeline.execution.summary import Summary
from pipeline.store.run_directory import RunDirectory


def run_within(shared: contextlib.ExitStack, config: Config) -> Summary:
    """`run_config`, on what the runs before it have connected to. After a failure that is let go: the next run connects
    again, since what failed may be Ray.

    Args:
        shared: holds the connection; the same for all runs, whose `cluster` is the same.
        config: of this run.
    """
    try:
        if not _is_complete(config):
            shared.enter_context(executor_of(config)).connect()
        return run_config(config)
    except Exception:
        shared.close()
        raise


def _is_complete(config: Config) -> bool:
    directory = RunDirectory(config.store.path, config.store.options, config.store.lock_timeout_s)
    attributes = attributes_of(directory)
    return attributes is not None and bool(attributes["complete"])
