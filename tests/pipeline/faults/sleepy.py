"""A model whose import makes every phase of a run slow enough to be met: each is as long as a blink of an eye else."""

import time
from typing import Any

import pipeline.execution.finalize as driver
import tests.pipeline.faults.chaos  # noqa: F401 - brings the points at which workers are slow
from pipeline.models.example import ExampleNet
from pipeline.store.run_directory import RunDirectory
from pipeline.store.template import StagedStore

PAUSE_S = 1.0


def install() -> None:
    """Pause in the midst of preparing, and between the steps of completing, which is told by a file."""
    real_append, real_complete, real_tidy = StagedStore.append, driver.complete_store, RunDirectory.tidy
    paused = []

    def append(self: Any, **row: Any) -> None:
        if not paused:
            paused.append(True)
            time.sleep(PAUSE_S)
        real_append(self, **row)

    def complete_store(place: Any, *more: Any) -> None:
        flag = f"{place.path}.run/completing"
        with open(flag, "w"):
            time.sleep(PAUSE_S)
        real_complete(place, *more)

    def tidy(self: RunDirectory) -> None:
        self.run.delete("completing")
        real_tidy(self)

    StagedStore.append = append  # type: ignore[method-assign]
    RunDirectory.tidy = tidy  # type: ignore[method-assign]
    driver.complete_store = complete_store


class SleepyNet(ExampleNet):
    """The packaged example's network."""


install()
