"""What executors on Ray have in common: how many actors there are, and what each of them is given."""

import re
from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.config.settings import setting
from pipeline.execution.executor import ExecutorConfig

OF_KIND = "accelerator_type:"
SMALLEST_SHARE = 0.001  # of a node's one: as many actors as it has room for otherwise
OF_RAY = ("CPU", "GPU", "memory", "object_store_memory")  # resources that are not custom


@dataclass
class RayConfig(ExecutorConfig, ABC):
    """Settings of executors on Ray."""

    actors: Any = setting(
        "number of processes that hold the model, or auto: as many as there is room for",
        "auto",
        choices=("auto",),
        least=1,
        is_plain=True,
    )
    min_actors: int | None = setting(
        "on autoscaling clusters: start with this many actors; needs cluster.max_actors", None, least=1, is_plain=True
    )
    max_actors: int | None = setting(
        "on autoscaling clusters: ask for up to this many while there is work, instead of cluster.actors",
        None,
        least=1,
        is_plain=True,
    )
    gpus_per_actor: Any = setting(
        "GPUs of each actor: 0.5 puts two on each; auto: 1 on a GPU, 0 on a CPU", "auto", is_plain=True
    )
    resources: dict[str, float] = setting("custom Ray resources of each actor, by name", dict, is_plain=True)
    accelerator_type: str | None = setting(
        "kind of GPU that each actor needs, as Ray names it (A100, H100, L4); null: any", None, is_plain=True
    )
    wait_for_actors_s: int = setting(
        "give up when the actors have not started after this many seconds", 600, least=1, is_plain=True
    )

    @property
    def asked(self) -> int | None:
        """The most actors that there may be; None: as many as there is room for."""
        wanted = self.max_actors or self.actors
        return None if wanted == "auto" else int(wanted)

    @property
    def reserved(self) -> dict[str, float]:
        """The custom resources of each actor; Ray gives a node 1 of the resource that names its kind of GPU."""
        kind = self.accelerator_type
        return {**self.resources, **({f"{OF_KIND}{kind}": SMALLEST_SHARE} if kind else {})}

    @property
    def gpu_share(self) -> float:
        share = self.gpus_per_actor
        return share if isinstance(share, float) and share < 1 else 1.0

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self._pool()
        gpus = self.gpus_per_actor
        is_number = isinstance(gpus, (int, float)) and not isinstance(gpus, bool)
        if gpus != "auto" and not (is_number and (0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus)))):
            yield f"cluster.gpus_per_actor={gpus}; expected a share such as 0.5, a whole number of GPUs, or auto"
        if (kind := self.accelerator_type) is not None and not re.fullmatch(r"[\w.-]+", kind):
            yield f"cluster.accelerator_type={kind!r}; expected a kind of GPU as Ray names it, such as A100"
        for name, amount in self.resources.items():
            if name in OF_RAY:
                own = {"CPU": "; use engine.threads", "GPU": "; use cluster.gpus_per_actor"}.get(name, "")
                yield f"cluster.resources.{name}={amount}; expected custom resources of the cluster{own}"
            if not amount > 0:
                yield f"cluster.resources.{name}={amount}; expected a number above 0"

    def contradictions(self, device: str) -> Iterator[str]:
        if device.startswith("cuda:"):
            yield (
                f"cluster={self.name} and engine.device={device} contradict each other; Ray gives each "
                f"actor a GPU of its own: use engine.device=cuda, or cluster=none"
            )
        if self.gpus_per_actor == 0 and device.startswith("cuda"):
            yield (
                f"cluster.gpus_per_actor=0 and engine.device={device} contradict each other; "
                f"an actor without a share of a GPU sees none: use cluster.gpus_per_actor=auto, or engine.device=cpu"
            )

    def _pool(self) -> Iterator[str]:
        least, most = self.min_actors, self.max_actors
        if most is not None and self.actors != "auto":
            yield (
                f"cluster.actors={self.actors} and cluster.max_actors={most} contradict each other; give "
                f"cluster.actors for a fixed number, or cluster.min_actors and cluster.max_actors for a growing one"
            )
        if least is not None and most is None:
            yield f"cluster.min_actors={least} needs cluster.max_actors; set cluster.max_actors=..."
        if least is not None and most is not None and least > most:
            yield f"cluster.min_actors={least} is more than cluster.max_actors={most}; lower the one or raise the other"
