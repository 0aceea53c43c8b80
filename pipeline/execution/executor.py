"""Executors: where the shards of a run are computed; `cluster=NAME` chooses one (see config/registry.py)."""

import abc
import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.config.schema import ClusterConfig, Config, EngineConfig
from pipeline.execution.device import Machine, resolve_device
from pipeline.execution.meter import Meter
from pipeline.execution.work import ShardResult, WorkSpec
from pipeline.messages.secrets import one_line


class Executor(contextlib.ExitStack, abc.ABC):
    """Where the shards of a run are computed. A context: what was started or connected is let go at its end.

    Attributes:
        meter: counts what the command does.
        uses_ray: whether Ray hands out the shards, which takes time of its own (see planning/cost.py).
    """

    uses_ray: ClassVar[bool] = True

    def __init__(self, engine: EngineConfig) -> None:
        super().__init__()
        self.engine = engine
        self.meter = Meter()
        self._hears_last_words: list[Callable[[str], None]] = []

    @contextlib.contextmanager
    def heard(self, last_words: Callable[[str], None]) -> Iterator[None]:
        """Within this context `last_words` is told, from another thread, why what computes is going away, if it is."""
        self._hears_last_words.append(last_words)
        try:
            yield
        finally:
            self._hears_last_words.remove(last_words)

    def last_words(self, reason: str) -> None:
        """Tell whoever wants to hear why this run is about to be interrupted."""
        for hears in list(self._hears_last_words):
            hears(reason)

    def ended_by(self, error: BaseException) -> None:
        """This error ends the run, which is told at once: on the way out Ray may take this process with it."""
        with contextlib.suppress(OSError):  # the backend may be what failed
            self.last_words(one_line(error) or type(error).__name__)

    def device_here(self) -> str:
        """The device on which this process tries the model. Raises UserError for a GPU that is not there."""
        return resolve_device(self.engine.device)

    def connect(self) -> None:
        """Start or reach what does the work, until this context ends. Nothing, where that is this process."""

    def machine(self) -> Machine:
        """Where the shards will be computed.

        Raises:
            UserError: there is no such device, or the cluster cannot be reached.
        """
        return Machine.here(self.device_here())

    def machine_to_try(self) -> Machine:
        """Where a command tries a model that computes no shards. Raises as `machine`."""
        return self.machine()

    @abc.abstractmethod
    def n_actors(self, device: str) -> int | None:
        """How many workers compute at a time on such a device; None where only the cluster knows."""

    @abc.abstractmethod
    def work(self, spec: WorkSpec, shards: np.ndarray) -> Generator[ShardResult, None, None]:
        """Start what is needed, and work on shards (indices in that order, at least one).

        Returns:
            What becomes of each, as it comes, in no particular order. When it is closed, nothing is at work any more.

        Raises:
            UserError: there is no room for the workers, or a machine cannot do the work.
            RunError: the workers did not start in time, or the cluster failed.
        """


@dataclass
class ExecutorConfig(ClusterConfig, abc.ABC):
    """The settings of one executor; a new executor is a subclass in a module of its own (see config/registry.py)."""

    @abc.abstractmethod
    def executor(self, engine: EngineConfig) -> Executor:
        """What computes the shards; nothing is started or connected yet."""


def executor_of(config: Config) -> Executor:
    """The executor that a configuration chooses."""
    assert isinstance(config.cluster, ExecutorConfig)
    return config.cluster.executor(config.engine)
