"""What a worker is given and what it gives back: plain values that travel between processes."""

import os
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.schema import Config, LimitsConfig
from pipeline.config.settings import settings_of
from pipeline.models.folds import fold_paths
from pipeline.planning.plan import Plan
from pipeline.store.backends.base import LOCK_TIMEOUT_S


@dataclass(frozen=True)
class WorkSpec:
    """What a worker is given.

    Attributes:
        store: url of the store.
        options: of its storage backend.
        plan: of the run.
        model: the model's configuration.
        search: folders in which to look for the user's own modules.
        mixed_devices: whether a device of another kind than the plan's may compute.
        lock_timeout_s: how long another worker is waited for.
        limits: what a file may hold.
        gpu_share: of a GPU, that a worker has for itself.
    """

    store: str
    options: dict[str, str]
    plan: Plan
    model: dict[str, Any]
    search: list[str]
    mixed_devices: bool
    lock_timeout_s: float = LOCK_TIMEOUT_S
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    gpu_share: float = 1.0


@dataclass(frozen=True)
class ShardResult:
    """What became of one shard.

    Attributes:
        shard: its index.
        n_rows: sequences in it.
        error: one line; "" where the shard is committed.
        fatal: whether the error is the storage's or the machine's rather than the shard's, so that others will meet it.
        node: where that was, as Ray calls it; "" without Ray.
        is_found: whether the shard was done already, as where another command works on the same run.
        is_device_broken: whether it was the device, so that another process may do it.
        worker: host and process that committed it; "" where none did.
        read_s, wait_s, device_s, write_s: seconds of its phases; see DoneRecord.
    """

    shard: int
    n_rows: int
    error: str = ""
    fatal: bool = False
    node: str = ""
    is_found: bool = False
    worker: str = ""
    read_s: float = 0.0
    wait_s: float = 0.0
    device_s: float = 0.0
    write_s: float = 0.0
    is_device_broken: bool = False


def sent_model(config: Config) -> dict[str, Any]:
    """The model's configuration as other processes and machines are given it, with its files by where they are."""
    model: dict[str, Any] = config.absolute()["model"]
    for each in settings_of(config.model):
        if each.is_file:
            paths = fold_paths(model[each.key], f"model.{each.key}")  # a pattern may match other files elsewhere
            model[each.key] = paths if len(paths) > 1 else paths[0]
    model["target_names"] = None  # they are sent as they were read
    return model


def search_folders(config: Config) -> list[str]:
    """Folders in which to look for the user's own modules."""
    return [*filter(None, [config.absolute()["cluster"]["code"]]), os.getcwd()]
