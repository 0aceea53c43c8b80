"""What may be said of the model, the input, the cluster and the place of a store: each problem a line, with the fix."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.entries import entry_problems
from pipeline.wording import did_you_mean, one_of

if TYPE_CHECKING:
    from pipeline.config import ClusterConfig, DatasetConfig, ModelConfig, StoreConfig

LAYOUTS = ("ncl", "nc1l", "ncl1", "n1cl", "nlc")  # axes of a model's input
SCHEMES = ("s3", "gs", "az")  # object stores that a store may lie in
CREDENTIALS = (  # in the name of an option of a store
    r"secret|token|password|passwd|credential|access_?key|account_?key|api_?key|master_?key|sas|signature|private|"
    r"service_?account|^key$"
)
NEEDED = {  # settings of each kind of input that must be given, and those that may be
    "example": ((), ()),
    "fasta": (("path",), ()),
    "loci": (("genome", "loci", "length"), ("strand",)),
    "variants": (("genome", "vcf", "length"), ()),
    "tiles": (("genome", "length"), ("stride", "blacklist", "chroms")),
    "table": (("path",), ("column", "columns", "delimiter", "axes")),
    "array": (("path",), ("key", "axes")),
}
DATASETS = tuple(NEEDED)
_OF_ALL = ("name", "args", "length", "timeout_s", "on_bad", "min_known")
_CHOICES = {"delimiter": ("comma", "tab", "semicolon", "pipe"), "axes": ("N4L", "NL4", "NL")}


def dataset_problems(dataset: "DatasetConfig") -> Iterator[str]:
    """Of the group `dataset`, but for its numbers and its name."""
    if dataset.name not in DATASETS:
        return  # said elsewhere
    needed, possible = NEEDED[dataset.name]
    more = {"length": ", the width of the windows in bases"}
    for key in needed:
        if getattr(dataset, key) is None:
            yield f"dataset={dataset.name} needs dataset.{key}{more.get(key, '')}; add dataset.{key}=... to the command"
    for key in _given(dataset):
        if key not in (*needed, *possible, *_OF_ALL):
            others = [name for name, settings in NEEDED.items() if key in (*settings[0], *settings[1])]
            yield (
                f"dataset={dataset.name} and dataset.{key} contradict each other; "
                f"use dataset={one_of(others)}, or leave dataset.{key} out"
            )
    for key, choices in _CHOICES.items():
        value = getattr(dataset, key)
        if value is not None and value not in choices:
            yield f"dataset.{key}={value}; expected {one_of(choices)}{did_you_mean(value, choices)}"
    yield from entry_problems(dataset.name, dataset.args)
    if len(set(dataset.chroms)) < len(dataset.chroms):
        yield f"dataset.chroms={dataset.chroms} names a chromosome twice; name each once"


def _given(dataset: "DatasetConfig") -> list[str]:
    """The settings that are not as they are by default."""
    default: Any = type(dataset)()
    return [key for key, value in vars(dataset).items() if value != getattr(default, key)]


def _resources(cluster: "ClusterConfig") -> Iterator[str]:
    gpus = cluster.gpus_per_actor
    is_number = isinstance(gpus, (int, float)) and not isinstance(gpus, bool)
    if gpus != "auto" and not (is_number and (0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus)))):
        yield f"cluster.gpus_per_actor={gpus}; expected a share such as 0.5, a whole number of GPUs, or auto"
    for name, amount in cluster.resources.items():
        if name in ("CPU", "GPU", "memory", "object_store_memory"):
            field_of_its_own = "engine.threads" if name == "CPU" else "cluster.gpus_per_actor"
            instead = f"; use {field_of_its_own}" if name in ("CPU", "GPU") else ""
            yield f"cluster.resources.{name}={amount}; expected custom resources of the cluster{instead}"
        if not amount > 0:
            yield f"cluster.resources.{name}={amount}; expected a number above 0"


def store_problems(store: "StoreConfig") -> Iterator[str]:
    """Of the group `store`, but for its numbers."""
    scheme, found, rest = store.path.partition("://")
    if not store.path or (found and (scheme not in SCHEMES or not rest.strip("/"))):
        yield f"store.path={store.path!r}; expected a path, or s3://bucket/prefix, gs://bucket/prefix, az://container/prefix"
    if not found and store.options:
        yield (
            f"store.path={store.path} and store.options contradict each other; options are those of an object store: "
            f"give an s3://, gs:// or az:// path, or leave store.options out"
        )
    for key in store.options:
        if re.search(CREDENTIALS, key, re.IGNORECASE):
            yield (
                f"store.options.{key} looks like a credential, which would be written into the store; leave it out, "
                f"and set the environment variable of your provider, such as AWS_SECRET_ACCESS_KEY, on every machine"
            )


def cluster_problems(cluster: "ClusterConfig", device: str) -> Iterator[str]:
    """Of the group `cluster` and engine.device, but for its numbers."""
    if cluster.name != "address" and cluster.address is not None:
        yield (
            f"cluster={cluster.name} and cluster.address contradict each other; "
            f"use cluster=address to connect to a running Ray cluster, or leave cluster.address out"
        )
    if cluster.name == "address" and not cluster.address:
        yield "cluster=address needs cluster.address; add cluster.address=host:port to the command, or =auto"
    if (cluster.address or "").startswith("ray://"):
        yield (
            f"cluster.address={cluster.address} is an address of Ray Client, which cannot do this work; run "
            f"the command on a machine of the cluster with cluster.address=auto, or submit it with `ray job submit`"
        )
    if cluster.name == "none" and cluster.actors not in ("auto", 1):
        yield f"cluster=none and cluster.actors={cluster.actors} contradict each other; use cluster=local for several"
    if cluster.name != "none" and device.startswith("cuda:"):
        yield (
            f"cluster={cluster.name} and engine.device={device} contradict each other; Ray gives each "
            f"actor a GPU of its own: use engine.device=cuda, or cluster=none"
        )
    if cluster.name == "none":
        given: dict[str, object] = {
            "gpus_per_actor": "auto",
            "resources": {},
            "code": None,
            "min_actors": None,
            "max_actors": None,
        }
        for key, default in given.items():
            if getattr(cluster, key) != default:
                yield f"cluster=none and cluster.{key} contradict each other; leave cluster.{key} out, or use Ray"
    if cluster.gpus_per_actor == 0 and device.startswith("cuda"):
        yield (
            f"cluster.gpus_per_actor=0 and engine.device={device} contradict each other; "
            f"an actor without a share of a GPU sees none: use cluster.gpus_per_actor=auto, or engine.device=cpu"
        )
    yield from _resources(cluster)
    yield from _pool(cluster)


def _pool(cluster: "ClusterConfig") -> Iterator[str]:
    least, most = cluster.min_actors, cluster.max_actors
    if most is not None and cluster.actors != "auto":
        yield (
            f"cluster.actors={cluster.actors} and cluster.max_actors={most} contradict each other; give cluster.actors "
            f"for a fixed number, or cluster.min_actors and cluster.max_actors for a growing one"
        )
    if least is not None and most is None:
        yield f"cluster.min_actors={least} needs cluster.max_actors; add cluster.max_actors=... to the command"
    if least is not None and most is not None and least > most:
        yield f"cluster.min_actors={least} is more than cluster.max_actors={most}; lower the one or raise the other"


def model_problems(model: "ModelConfig") -> Iterator[str]:
    """Of the group `model`, but for its choices."""
    if model.name != "module" and model._target_ is not None:
        yield f"model={model.name} and model._target_ contradict each other; use model=module for a class of your own"
    if sorted(model.bases) != sorted("ACGT"):
        yield f"model.bases={model.bases}; expected A, C, G and T in the order of the model's channels, such as AGCT"
    if model.name != "chrombpnet":
        for key, is_given in (("bias", bool(model.bias)), ("with_bias", model.with_bias)):
            if is_given:
                yield f"model={model.name} and model.{key} contradict each other; use model=chrombpnet"
    elif model.bias and not model.with_bias:
        yield (
            "model.bias and model.with_bias=false contradict each other; add model.with_bias=true, or leave model.bias "
            "out to attribute the accessibility alone"
        )
