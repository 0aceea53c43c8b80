"""What a run is: one schema for each group of the configuration, with what all choices of the group have.

The settings of one choice alone lie beside the code that reads them, in a subclass (see registry.py); the YAML files
under conf/ hold the defaults of each choice. `None` means not given.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.config.contrasts import is_contrast, unnamed_problem
from pipeline.config.dataset_args import absolute, entry_problems
from pipeline.config.model_input import InputSettings, missing_channels
from pipeline.config.model_output import normal, output_problem
from pipeline.config.settings import absolute_path, setting, settings_of, to_dict
from pipeline.messages.visible import brief

DTYPES = ("float32", "float64", "tf32", "float16", "bfloat16")
SEED_STEP = 1 << 16  # numpy's seeds that belong to one seed of a run, so that two runs share none
AUTO = "auto"  # as a model's name: nobody chose one


@dataclass
class Group:
    """The settings of one group."""

    def problems(self) -> Iterator[str]:
        """What is wrong with the values of this group alone, each with the fix."""
        yield from ()


@dataclass
class ModelConfig(InputSettings, Group):
    """Which model, and which of its outputs is explained."""

    name: str = setting("the family; auto: example for dataset=example", AUTO, fingerprint="resolved", is_plain=True)
    checkpoint: Any = setting(
        "file of weights; a list or a pattern of files where the model has folds",
        None,
        fingerprint="resolved",
        is_file=True,
        is_plain=True,
    )
    head: Any = setting(
        "what turns the output into one value for each target, or a list of these; recorded in the store",
        "none",
        fingerprint="resolved",
        is_plain=True,
    )
    output: Any = setting(
        "the part of what the model returns that is explained: an entry (human, 0), or [:, mid4].mean(1) and the like",
        None,
        fingerprint="resolved",
        is_plain=True,
    )
    target_names: str | None = setting(
        "file with the names of all targets, one a line, or a table with a column `identifier`",
        None,
        fingerprint="resolved",
        is_file=True,
        is_plain=True,
    )
    init: dict[str, Any] = setting("arguments of the class", dict, fingerprint="resolved", is_plain=True)
    prefix: str | None = setting(
        "prefix to take off the names of weights; weights without it are left out; null: the one that fits",
        None,
        fingerprint="resolved",
        is_plain=True,
    )
    trust_pickle: bool = setting("allow a checkpoint that runs code when it is loaded", False, fingerprint="none")

    def problems(self) -> Iterator[str]:
        yield from self.input_problems()
        if self.output is not None and (isinstance(self.output, bool) or not isinstance(self.output, str | int)):
            yield f"model.output={self.output}; expected a text: in YAML in quotes, such as output: '[:, 5]'"
        elif (problem := output_problem(self.output_text)) is not None:
            yield f"model.output={brief(str(self.output))}: {problem}"
        if (wrong := self._head_problem) is not None:
            yield f"model.head={self.head}; {wrong}"

    @property
    def _head_problem(self) -> str | None:
        heads = self.heads
        if not heads or not all(isinstance(each, str) and each for each in heads):
            return "expected the name of a head, or a list of such: model.head=[counts,profile_midpoint]"
        if twice := [each for each in heads if heads.count(each) > 1]:
            return f"{twice[0]} is there twice; give each head once"
        if len(heads) > 1 and "none" in heads:
            return "none leaves the model's output as it is, and goes with no other head; leave it out of the list"
        return None

    @property
    def heads(self) -> list[str]:
        """`head`, as a list."""
        return self.head if isinstance(self.head, list) else [self.head]

    @property
    def output_text(self) -> str | None:
        """`output`, written in one way; None: all that the model returns."""
        return None if self.output is None else normal(str(self.output))


@dataclass
class DatasetConfig(Group):
    """Which sequences, and what makes one unusable."""

    has_columns: ClassVar[bool] = False  # or arrays, whose values can be extra inputs of the model, by name
    is_of_genome: ClassVar[bool] = False  # its sequences are windows, `length` wide
    rows_per_group: ClassVar[int] = 1  # rows that belong together, such as the alleles of a variant
    has_repeats: ClassVar[bool] = True  # whether repeated rows are reported

    name: str = setting("the form of the input", "example", is_plain=True)
    args: list[Any] = setting(
        "extra inputs of the model, in the order of its forward: columns, arrays or bigWigs", list, is_plain=True
    )
    length: int | None = setting("bases in a sequence", None, least=1, is_plain=True)
    timeout_s: int = setting("give up when the input gives nothing for this many seconds", 300, least=1, is_plain=True)
    on_bad: str = setting(
        "rows that cannot be used: error stops before anything is computed, skip leaves them out",
        "error",
        choices=("error", "skip"),
        is_plain=True,
    )
    min_known: float = setting("the least share of a sequence's bases that must be known (not N)", 0.5, is_plain=True)

    def problems(self) -> Iterator[str]:
        if not 0 <= self.min_known <= 1:
            yield f"dataset.min_known={self.min_known}; expected a share between 0 and 1"
        yield from entry_problems(self.name, self.args, self.has_columns, self.is_of_genome)


@dataclass
class ReferencesConfig(Group):
    """What sequences are compared with."""

    is_drawn: ClassVar[bool] = False  # any number of references can be drawn, from a seed

    name: str = setting("how references are made", "dinucleotide_shuffle", is_plain=True)
    n_shuffles: int | None = setting(
        "number of references of each sequence, for kinds that are drawn",
        20,
        fingerprint="resolved",
        least=1,
        is_plain=True,
    )
    random_state: int | None = setting(
        "numpy's seed of reference 0; reference k is drawn with this plus k; null: 65536 * seed", None, is_plain=True
    )

    def require_files(self) -> None:
        """Raise UserError for a missing file at once, rather than after the pass over the input."""

    def problems(self) -> Iterator[str]:
        n, given = self.n_shuffles or 1, self.random_state
        if self.is_drawn and self.n_shuffles is None:
            yield f"references={self.name} needs references.n_shuffles; set references.n_shuffles=..."
        if n > SEED_STEP:
            yield f"references.n_shuffles={n}; expected at most {SEED_STEP}: so many belong to one seed"
        if given is not None and not 0 <= given <= 2**32 - n:
            yield f"references.random_state={given}; expected 0 or more, at most 2**32 - references.n_shuffles"
        if given is not None and not self.is_drawn:
            yield (
                f"references={self.name} and references.random_state contradict each other: nothing is drawn; "
                f"leave references.random_state out"
            )


@dataclass
class EngineConfig(Group):
    """How attributions are computed."""

    batch_size: Any = setting(
        "sequence-reference pairs in a batch, or auto: from sequence length and device",
        "auto",
        fingerprint="resolved",
        choices=("auto",),
        least=1,
        is_plain=True,
    )
    targets: Any = setting(
        "targets to explain: their indices, names (model.target_names, or those of several heads), contrasts such as "
        "'K562 - mean(others)', or all; auto: the first, or all of several heads",
        AUTO,
        fingerprint="resolved",
        is_plain=True,
    )
    checkpoint: str = setting(
        "compute parts of the model again in the backward pass, for less memory and the same values: always, never, or "
        "auto: where a pair of a long sequence would not fit",
        "auto",
        fingerprint="none",
        choices=("auto", "never", "always"),
        is_plain=True,
    )
    device: str = setting(
        "cpu, cuda, cuda:1, or auto: a GPU if there is one", "auto", fingerprint="resolved", is_plain=True
    )
    dtype: str = setting(
        "number type of the computation (tf32: on NVIDIA GPUs); results are stored as float32",
        "float32",
        choices=DTYPES,
        is_plain=True,
    )
    threads: int = setting(
        "CPU threads of one actor; more cores are better used by more actors", 1, least=1, is_plain=True
    )
    reverse_complement: str = setting(
        "average: attribute both strands, and average in the frame of the given one",
        "none",
        choices=("none", "average"),
        is_plain=True,
    )
    deterministic: bool = setting("refuse operations whose result changes from call to call", True, is_plain=True)
    spot_check: bool = setting(
        "also predict one sequence and one reference of every shard by themselves; the shard fails if that differs",
        True,
        fingerprint="none",
        is_plain=True,
    )
    warning_threshold: float = setting(
        "convergence deltas above it, in units of the output, are counted", 0.001, fingerprint="none", is_plain=True
    )
    relative_threshold: float = setting(
        "deltas above this share of the pair's difference of predictions, plus 16 rounding steps of the larger "
        "prediction, are counted too",
        0.01,
        fingerprint="none",
        is_plain=True,
    )
    on_nonconvergence: str = setting(
        "deltas over either threshold: warn says so, fail also ends with exit code 1",
        "warn",
        fingerprint="none",
        choices=("warn", "fail"),
        is_plain=True,
    )

    def problems(self) -> Iterator[str]:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            yield f"engine.device={self.device}; expected auto, cpu, cuda or cuda:<number>"
        for key in ("warning_threshold", "relative_threshold"):
            if not getattr(self, key) > 0:
                yield f"engine.{key}={getattr(self, key)}; expected a number above 0"
        targets = self.targets
        is_list = isinstance(targets, list) and all(
            (type(target) is int and target >= 0) or (isinstance(target, str) and target) for target in targets
        )
        if targets not in (AUTO, "all") and not (is_list and targets and len(set(targets)) == len(targets)):
            one = f'"{targets}"' if is_contrast(str(targets)) else targets
            fix = "" if isinstance(targets, list) else f"; for one: {shlex.quote(f'engine.targets=[{one}]')}"
            yield (
                f"engine.targets={targets}; expected a list of different indices such as [0,2], of names such as "
                f'[K562_CTCF], of contrasts such as ["K562 - mean(others)"], or all{fix}'
            )


@dataclass
class ClusterConfig(Group):
    """Where the work is done."""

    name: str = setting("where the work is done", "local", is_plain=True)
    code: str | None = setting(
        "a folder of your own modules, sent to the nodes of a cluster; null: nothing is sent", None, is_file=True
    )
    mixed_devices: str = setting(
        "whether devices of different kinds may work together, which gives up bit-identical results",
        "refuse",
        choices=("refuse", "allow"),
        is_plain=True,
    )

    @property
    def gpu_share(self) -> float:
        """Of a GPU, that a worker has for itself."""
        return 1.0

    def contradictions(self, device: str) -> Iterator[str]:
        """What does not go with `engine.device`."""
        yield from ()


@dataclass
class StoreConfig(Group):
    """Where the result goes."""

    path: str = setting(
        "the Zarr store to make or go on with: a path, s3://, gs:// or az://",
        "attributions.zarr",
        fingerprint="none",
        is_file=True,
        is_plain=True,
    )
    options: dict[str, str] = setting(
        "options of an object store: endpoint, region, ...; no credentials", dict, fingerprint="none"
    )
    rows_per_shard: int = setting(
        "sequences in a shard, the unit of work; raise it where a shard takes less than 10 s",
        128,
        least=1,
        is_plain=True,
    )
    per_fold: bool = setting("keep the values of each fold beside their mean", False, is_plain=True)
    spread: bool = setting(
        "keep the standard deviation of attributions over the references, where there are several", True, is_plain=True
    )
    null_difference: bool = setting(
        "for variants, also predict both alleles within each reference: the null distribution of p-values, at "
        "some cost of time",
        False,
        is_plain=True,
    )
    precision_bits: int | None = setting(
        "mantissa bits kept of attributions, 1 to 23; null: all 23", None, fingerprint="resolved", is_plain=True
    )
    lock_timeout_s: int = setting(
        "give up when another command holds this store for this many seconds",
        21600,
        fingerprint="none",
        least=1,
        is_plain=True,
    )

    def problems(self) -> Iterator[str]:
        scheme, found, rest = self.path.partition("://")
        if not self.path or (found and not rest.strip("/")):  # opening the store checks the scheme
            yield (
                f"store.path={self.path!r}; expected a path, or s3://bucket/prefix, gs://bucket/prefix, "
                f"az://container/prefix"
            )
        if self.options and (not found or scheme == "file"):
            yield (
                f"store.path={self.path} and store.options contradict each other; options are those of an object "
                f"store: give an s3://, gs:// or az:// path, or leave store.options out"
            )
        if not 1 <= (bits := 23 if self.precision_bits is None else self.precision_bits) <= 23:
            yield f"store.precision_bits={bits}; expected 1 to 23 mantissa bits, or null for all of them"


@dataclass
class RunConfig(Group):
    """Which part of the work this process does."""

    shards: str | None = setting(
        "a-b: only these shards, both ends included, for job arrays without Ray", None, is_plain=True
    )

    def problems(self) -> Iterator[str]:
        if self.shards is None:
            return
        if not re.fullmatch(r"\d{1,18}(-\d{1,18})?", self.shards):
            yield f"run.shards={self.shards}; expected first-last, such as 0-9 (both included, counted from 0)"
        elif (ends := [int(end) for end in self.shards.split("-")]) != sorted(ends):
            yield f"run.shards={self.shards} ends before it begins; expected first-last, such as 0-9"


@dataclass
class LimitsConfig(Group):
    """What a file may make of itself before it is refused: see pipeline/config/limits.py."""

    record_mb: int = setting(
        "megabytes of one record of the input: a line of text, a cell of a table, the values of a row", 64, least=1
    )
    header_mb: int = setting(
        "megabytes of a checkpoint beside its tensors: a pickle, the header of safetensors, config.json", 8, least=1
    )
    name: int = setting("characters of the name of a row of the input, or of its chromosome", 4096, least=1)
    sequence: int = setting("bases of one sequence of the input", 1 << 21, least=1)
    block_mb: int = setting("megabytes that a file has read at once: a chunk of Zarr, a batch of Arrow", 512, least=1)
    held_mb: int = setting(
        "megabytes in memory of what is held as a whole: weights, references, chromosomes of a compressed genome",
        1024,
        least=1,
    )
    held_ratio: int = setting(
        "beyond limits.held_mb and limits.computed_mb: at most this many times the size of the file", 4, least=1
    )
    computed_mb: int = setting(
        "megabytes of the outputs of all layers for one sequence, where a checkpoint describes them", 128, least=1
    )
    streamed_mb: int = setting("megabytes that come out of a file that is read bit by bit", 64, least=1)
    streamed_ratio: int = setting(
        "beyond limits.streamed_mb: at most this many times the size of the file", 100, least=1
    )


@dataclass
class Config:
    """A whole run."""

    model: ModelConfig = setting("which model, and which of its outputs is explained", ModelConfig)
    dataset: DatasetConfig = setting("which sequences", DatasetConfig, fingerprint="resolved")
    references: ReferencesConfig = setting("what sequences are compared with", ReferencesConfig)
    engine: EngineConfig = setting("how attributions are computed", EngineConfig)
    cluster: ClusterConfig = setting("where the work is done", ClusterConfig, fingerprint="none")
    store: StoreConfig = setting("where the result goes", StoreConfig)
    run: RunConfig = setting("which part of the work this process does", RunConfig, fingerprint="none")
    limits: LimitsConfig = setting("what a file may hold before it is refused", LimitsConfig, fingerprint="none")
    seed: int = setting("reference k of every sequence is drawn with numpy's seed 65536 * seed + k", 0, is_plain=True)

    def problems(self) -> Iterator[str]:
        """What contradicts each other in different groups, each with the fix."""
        given = self.references.random_state
        if not 0 <= self.seed < SEED_STEP:
            yield (
                f"seed={self.seed}; expected 0 or more, below {SEED_STEP}; references.random_state takes any seed of "
                f"numpy's"
            )
        if given is not None and self.seed:
            yield (
                f"seed={self.seed} and references.random_state={given} contradict each other: each says what "
                f"references are drawn with; leave one of them out"
            )
        targets = self.engine.targets if isinstance(self.engine.targets, list) else []
        if self.model.target_names is None and len(self.model.heads) == 1:
            texts = [target for target in targets if isinstance(target, str)]
            yield from (problem for text in texts if (problem := unnamed_problem(text)) is not None)
        if (problem := missing_channels(self.model.channels_from, len(self.dataset.args))) is not None:
            yield problem
        if self.store.null_difference and self.dataset.rows_per_group != 2:
            yield (
                f"dataset={self.dataset.name} and store.null_difference=true contradict each other: it is of the "
                f"alleles of dataset=variants; leave it out"
            )
        if self.store.null_difference and not self.references.is_drawn:
            yield (
                f"references={self.references.name} and store.null_difference=true contradict each other: alleles are "
                f"put into references that are sequences, such as references=dinucleotide_shuffle"
            )
        yield from self.cluster.contradictions(self.engine.device)
        if self.store.rows_per_shard % self.dataset.rows_per_group:
            yield (
                f"dataset={self.dataset.name} and store.rows_per_shard={self.store.rows_per_shard} contradict each "
                f"other; use an even number: both alleles of a variant are in one shard"
            )

    def absolute(self) -> dict[str, Any]:
        """Plain values, fit for JSON, with the paths of files as they are from anywhere."""
        found = to_dict(self)
        for each in settings_of(self):
            if each.is_file:
                group, _, key = each.key.partition(".")
                found[group][key] = absolute_path(each.value)
        found["dataset"]["args"] = absolute(self.dataset.args)
        return found

    @property
    def targets(self) -> list[int | str] | str:
        """`engine.targets`, with what `auto` stands for."""
        if self.engine.targets != AUTO:
            return self.engine.targets
        return "all" if len(self.model.heads) > 1 else [0]

    @property
    def random_state(self) -> int:
        """What reference 0 of every sequence is drawn with; reference k is drawn with k more."""
        given = self.references.random_state
        return self.seed * SEED_STEP if given is None else given
