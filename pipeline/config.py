"""What a run is: one dataclass per configuration group, a sentence for every field, and checks across fields.

The YAML files under conf/ hold the defaults of each choice; these schemas hold the types. `None` means not given.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.checks import DATASETS, LAYOUTS, cluster_problems, dataset_problems, model_problems, store_problems
from pipeline.errors import UserError
from pipeline.wording import did_you_mean, in_a_line, one_of

DTYPES = ("float32", "float64", "tf32", "float16", "bfloat16")
DRAWN = (
    "dinucleotide_shuffle",
    "dinucleotide_shuffle_uniform",
    "local_dinucleotide_shuffle",
    "shuffle",
    "genomic",
)  # kinds of references of which any number can be drawn
FIXED = ("uniform", "zeros", "background")  # kinds of which there is one, the same for all sequences


@dataclass
class ModelConfig:
    """Which model, and which of its outputs is explained."""

    name: str = "example"  # the family: example, bpnet, chrombpnet or module
    _target_: str | None = None  # model=module: the class, by its import path
    checkpoint: Any = None  # file of weights; a list or a pattern of files where the model has folds
    head: str = "none"  # what turns the output into one value for each target; recorded in the store
    output: Any = None  # which output where the model returns several: an index or a key
    init: dict[str, Any] = field(default_factory=dict)  # arguments of the class
    prefix: str | None = None  # taken off the names of weights, the others being left out; null: found where one fits
    input_layout: str = "ncl"  # axes that the model takes: ncl is (N, 4, L); nc1l, ncl1, n1cl, nlc
    bases: str = "ACGT"  # the base of each of its channels; AGCT for models of DeepSEA's family
    bias: Any = None  # model=chrombpnet: the BPNet of the bias, or one for each fold
    with_bias: bool = False  # model=chrombpnet: attribute accessibility and bias together, not accessibility alone
    trust_pickle: bool = False  # allow a checkpoint that runs code when it is loaded


@dataclass
class ColumnsConfig:
    """dataset=table: names of columns where they are not the usual ones; none leaves a column out."""

    name: str | None = None  # of the row's name; usually name or id
    chrom: str | None = None  # of the chromosome; usually chrom, chr or chromosome
    start: str | None = None  # of the 0-based start; usually start or chromStart
    end: str | None = None  # of the exclusive end; usually end, stop or chromEnd
    strand: str | None = None  # of the strand, + or -; usually strand


@dataclass
class DatasetConfig:
    """Which sequences, and what makes one unusable."""

    name: str = "example"  # the form of the input: one of DATASETS
    path: str | None = None  # dataset=fasta, table or array: the file; for Zarr the folder
    genome: str | None = None  # dataset=loci, tiles or variants: genome FASTA, plain or (b)gzip
    vcf: str | None = None  # dataset=variants: VCF file, plain or gzip
    loci: str | None = None  # dataset=loci: BED or narrowPeak file, 0-based half-open
    strand: str = "ignore"  # dataset=loci: apply reverse-complements rows on the minus strand, ignore does not
    stride: int | None = None  # dataset=tiles: bases from one window's start to the next's; usually dataset.length
    blacklist: str | None = None  # dataset=tiles: BED file; windows that share a base with it are left out
    chroms: list[str] = field(default_factory=list)  # dataset=tiles: chromosomes to take; empty: all
    column: str | None = None  # dataset=table: the sequence; not given: the only one called sequence or seq
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)  # dataset=table: the others
    delimiter: str | None = None  # dataset=table: comma, tab, semicolon or pipe; not given: from name and header
    key: str | None = None  # dataset=array: which array of a npz file or Zarr group
    args: list[Any] = field(default_factory=list)  # further inputs of the model, in order; see pipeline/entries.py
    axes: str | None = None  # dataset=array or table: N4L, NL4 or NL, where the shape does not tell their order
    length: int | None = None  # bases in a sequence; for loci, tiles and variants the width of the windows
    timeout_s: int = 300  # give up when the input gives nothing for this many seconds
    on_bad: str = "error"  # rows that cannot be used: error stops before anything is computed, skip leaves them out
    min_known: float = 0.5  # the least share of a sequence's bases that must be known (not N)


@dataclass
class ReferencesConfig:
    """What sequences are compared with."""

    name: str = "dinucleotide_shuffle"  # how references are made: one of DRAWN, FIXED or array
    n_shuffles: int | None = 20  # references of each sequence, for those of DRAWN; the others know their number
    window: int | None = None  # references=local_dinucleotide_shuffle: bases in each part that is shuffled by itself
    frequencies: list[float] = field(default_factory=list)  # references=background: of A, C, G, T; empty: the input's
    path: str | None = None  # references=array: npy, npz or Zarr; shapes are in pipeline/references/arrays.py
    genome: str | None = None  # references=genomic: genome FASTA, plain or (b)gzip


@dataclass
class EngineConfig:
    """How attributions are computed."""

    batch_size: Any = "auto"  # sequence-reference pairs in a batch, or auto: from the sequence length and the device
    targets: Any = field(default_factory=lambda: [0])  # indices of the model's outputs to explain, or all
    device: str = "auto"  # cpu, cuda, cuda:1, or auto: a GPU if there is one
    dtype: str = "float32"  # numbers of the computation (tf32: on NVIDIA GPUs); results are stored as float32
    threads: int = 1  # CPU threads of one actor; more cores are better used by more actors
    reverse_complement: str = "none"  # average: attribute both strands, and average in the frame of the given one
    deterministic: bool = True  # refuse operations whose result changes from call to call
    warning_threshold: float = 0.001  # a larger convergence delta, in units of the model's output, is over the limit
    on_nonconvergence: str = "warn"  # deltas over the limit: warn says so, fail also ends with exit code 1


@dataclass
class ClusterConfig:
    """Where the work is done."""

    name: str = "local"  # local: Ray on this machine; address: a running Ray cluster; none: in this process
    address: str | None = None  # cluster=address: host:port of the cluster's head, or auto: the one this machine is in
    actors: Any = "auto"  # processes that hold the model, or auto: all that there is room for
    min_actors: int | None = None  # autoscaling clusters: begin with so many actors; needs cluster.max_actors
    max_actors: int | None = None  # autoscaling clusters: ask for up to so many while there is work, instead of actors
    gpus_per_actor: Any = "auto"  # 0.5 puts two actors on each GPU; auto: 1 on a GPU, 0 on a CPU
    resources: dict[str, float] = field(default_factory=dict)  # custom Ray resources of each actor, by name
    code: str | None = None  # a folder of your own modules, sent to the nodes of a cluster; null: nothing is sent
    wait_for_actors_s: int = 600  # give up when the actors have not started after this many seconds
    mixed_devices: str = "refuse"  # allow: devices of different kinds, giving up bit-identical results


@dataclass
class StoreConfig:
    """Where the result goes."""

    path: str = "attributions.zarr"  # the Zarr store to make, or to go on with: a path, s3://, gs:// or az://
    options: dict[str, str] = field(default_factory=dict)  # of an object store: endpoint, region, ...; no credentials
    rows_per_shard: int = 128  # sequences in a shard, the unit of work; give it more where a shard takes below 10 s
    per_fold: bool = False  # keep the values of each fold beside their mean
    precision_bits: int | None = None  # mantissa bits kept of attributions, 1 to 23; null: all 23


@dataclass
class RunConfig:
    """Which part of the work this process does."""

    shards: str | None = None  # a-b: these shards alone, both ends included, for job arrays without Ray


@dataclass
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    references: ReferencesConfig = field(default_factory=ReferencesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0  # reference k of every sequence is drawn with seed + k


def from_mapping(composed: Any) -> Config:
    """A checked configuration from a composed mapping (a dict or DictConfig).

    Merging into the schema once more finds keys that were appended past it, and values that are still missing.

    Raises:
        UserError: an unknown key, a wrong type, a missing value, or fields that contradict each other.
    """
    try:
        given = OmegaConf.create(OmegaConf.to_container(composed) if OmegaConf.is_config(composed) else composed)
        merged = OmegaConf.merge(OmegaConf.structured(Config), given)
        missing = sorted({*OmegaConf.missing_keys(given), *OmegaConf.missing_keys(merged)})
        if missing:
            raise UserError(f"{missing[0]} is not given; add {missing[0]}=... to the command")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    assert isinstance(config, Config)
    check(config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a configuration or one of its groups, fit for JSON."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The model configuration that `to_dict` made `values` of."""
    model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), DictConfig(values)))
    assert isinstance(model, ModelConfig)
    return model


def check(config: Config) -> None:
    """Raise UserError, one line, for the first value that is out of range or contradicts another."""
    for problem in problems(config):
        raise UserError(problem)


def problems(config: Config) -> Iterator[str]:
    """What is wrong with the values of a configuration, each with the fix. Looks at no file and no device."""
    yield from _choices(config)
    yield from _ranges(config)
    yield from _contradictions(config)


def _choices(config: Config) -> Iterator[str]:
    allowed = {
        "model.name": (config.model.name, ("example", "bpnet", "chrombpnet", "module")),
        "model.input_layout": (config.model.input_layout, LAYOUTS),
        "dataset.name": (config.dataset.name, DATASETS),
        "dataset.strand": (config.dataset.strand, ("ignore", "apply")),
        "dataset.on_bad": (config.dataset.on_bad, ("error", "skip")),
        "references.name": (config.references.name, (*DRAWN, *FIXED, "array")),
        "engine.dtype": (config.engine.dtype, DTYPES),
        "engine.on_nonconvergence": (config.engine.on_nonconvergence, ("warn", "fail")),
        "engine.reverse_complement": (config.engine.reverse_complement, ("none", "average")),
        "cluster.name": (config.cluster.name, ("local", "address", "none")),
        "cluster.mixed_devices": (config.cluster.mixed_devices, ("refuse", "allow")),
    }
    for key, (value, choices) in allowed.items():
        if value not in choices:
            yield f"{key}={value}; expected {one_of(choices)}{did_you_mean(str(value), choices)}"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.engine.device):
        yield f"engine.device={config.engine.device}; expected auto, cpu, cuda or cuda:<number>"


def _ranges(config: Config) -> Iterator[str]:
    at_least_one = {
        "references.n_shuffles": config.references.n_shuffles,
        "engine.threads": config.engine.threads,
        "store.rows_per_shard": config.store.rows_per_shard,
        "cluster.wait_for_actors_s": config.cluster.wait_for_actors_s,
        "cluster.min_actors": config.cluster.min_actors,
        "cluster.max_actors": config.cluster.max_actors,
        "dataset.length": config.dataset.length,
        "dataset.stride": config.dataset.stride,
        "dataset.timeout_s": config.dataset.timeout_s,
        "engine.batch_size": None if config.engine.batch_size == "auto" else config.engine.batch_size,
        "cluster.actors": None if config.cluster.actors == "auto" else config.cluster.actors,
    }
    for key, value in at_least_one.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            auto = " or auto" if key in ("engine.batch_size", "cluster.actors") else ""
            yield f"{key}={value}; expected a whole number of at least 1{auto}"
    if not 1 <= (bits := 23 if config.store.precision_bits is None else config.store.precision_bits) <= 23:
        yield f"store.precision_bits={bits}; expected 1 to 23 mantissa bits, or null for all of them"
    if not 0 <= config.dataset.min_known <= 1:
        yield f"dataset.min_known={config.dataset.min_known}; expected a share between 0 and 1"
    if not config.engine.warning_threshold > 0:
        yield f"engine.warning_threshold={config.engine.warning_threshold}; expected a number above 0"
    yield from _frequencies(config.references.frequencies)
    if not 0 <= config.seed < 2**32 - (config.references.n_shuffles or 1):
        yield f"seed={config.seed}; expected 0 or more, below 2**32 - references.n_shuffles"
    targets = config.engine.targets
    is_list = isinstance(targets, list) and all(type(target) is int and target >= 0 for target in targets)
    if targets != "all" and not (is_list and targets and len(set(targets)) == len(targets)):
        yield f"engine.targets={targets}; expected a list of different output indices such as [0,2], or all"
    if (shards := config.run.shards) is not None:
        if not re.fullmatch(r"\d+(-\d+)?", shards):
            yield f"run.shards={shards}; expected first-last, such as 0-9 (both included, counted from 0)"
        elif (ends := [int(end) for end in shards.split("-")]) != sorted(ends):
            yield f"run.shards={shards} ends before it begins; expected first-last, such as 0-9"


def _frequencies(frequencies: list[float]) -> Iterator[str]:
    if frequencies and not (len(frequencies) == 4 and min(frequencies) >= 0 and abs(sum(frequencies) - 1) < 1e-6):
        yield f"references.frequencies={frequencies}; expected four shares, of A, C, G and T, that sum to 1"


def _references(references: ReferencesConfig) -> Iterator[str]:
    """Settings of one kind of references given with another, or not given with their own."""
    owners = {"window": "local_dinucleotide_shuffle", "frequencies": "background", "path": "array", "genome": "genomic"}
    for key, owner in owners.items():
        value = getattr(references, key)
        if references.name == owner and value is None:
            yield f"references={owner} needs references.{key}; add references.{key}=... to the command"
        if references.name != owner and value not in (None, []):
            yield (
                f"references={references.name} and references.{key} contradict each other; "
                f"use references={owner} or leave references.{key} out"
            )
    if references.name in DRAWN and references.n_shuffles is None:
        yield f"references={references.name} needs references.n_shuffles; add references.n_shuffles=... to the command"
    if references.window is not None and references.window < 4:
        yield f"references.window={references.window}; expected 4 bases or more: both ends of a window stay"


def _contradictions(config: Config) -> Iterator[str]:
    yield from _references(config.references)
    yield from cluster_problems(config.cluster, config.engine.device)
    yield from store_problems(config.store)
    yield from model_problems(config.model)
    yield from dataset_problems(config.dataset)
    if config.dataset.name == "variants" and config.store.rows_per_shard % 2:
        yield (
            f"dataset=variants and store.rows_per_shard={config.store.rows_per_shard} contradict each other; use an "
            f"even number: both alleles of a variant are in one shard"
        )


def keys(schema: Any = Config, prefix: str = "") -> list[str]:
    """Every dotted key of a schema."""
    found = []
    for item in fields(schema):
        default = item.default_factory() if callable(item.default_factory) else item.default
        found += keys(type(default), f"{prefix}{item.name}.") if is_dataclass(default) else [prefix + item.name]
    return found


def explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf."""
    return in_a_line(error, keys(), [item.name for item in fields(Config)])
