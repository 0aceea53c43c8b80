"""`--multirun`: overrides in Hydra's syntax of sweeps, as the jobs that they describe.

`seed=0,1`, `seed=range(0,5)` and `engine.targets=choice([0],[1])` are sweeps. A path is taken as it stands, commas and
all (see overrides.py); `model.checkpoint=choice(a.pt,b.pt)` sweeps over paths. Several sweeps are combined, each value
with each; the last one changes fastest.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.overrides import OUTPUT, grammar, setting_of
from pipeline.config.registry import GROUPS
from pipeline.messages.errors import UserError

MAX_JOBS = 10_000
LONGEST_NAME = 120  # of a job in the name of its store: a name in a folder has 255 bytes
_FUNCTION = re.compile(r"\s*(choice|range|sort|shuffle|glob|interval)\(.*\)\s*", re.DOTALL)
_OF_ALL = ("store.path", "store.options", "cluster")  # the same for all jobs: only what they compute differs


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        values: what it has of each sweep, by setting.
        overrides: all that describe it.
    """

    values: Mapping[str, str]
    overrides: list[str]

    @property
    def title(self) -> str:
        """For people: seed=0 engine.targets=[1]"""
        return " ".join(f"{key}={value}" for key, value in self.values.items())

    @property
    def name(self) -> str:
        """For names of files, a function of the job alone, so that a sweep that is made longer finds its stores."""
        parts = [f"{key.rpartition('.')[2]}-{_plain(value)}" for key, value in self.values.items()]
        name = "_".join(parts)
        if len(name) <= LONGEST_NAME:
            return name
        return f"{name[:LONGEST_NAME]}-{hashlib.sha256(self.title.encode()).hexdigest()[:8]}"

    def store(self, path: str) -> str:
        """The path of its store, from the one that is given for all: out.zarr becomes out_seed-0.zarr."""
        whole = path.rstrip("/")
        stem = whole.removesuffix(".zarr")
        return f"{stem}_{self.name}{whole[len(stem) :]}" if self.values else path


def _plain(value: str) -> str:
    """A value without the characters that mean something in a path or to a shell."""
    inner = re.sub(r"^[^\w.+-]+|[^\w.+-]+$", "", value)
    return re.sub(r"[^\w.+-]+", "-", inner)


def jobs_of(overrides: Sequence[str]) -> list[Job]:
    """The jobs that overrides describe; a single one where none of them is a sweep.

    Raises:
        UserError: a sweep that cannot be, or too many jobs.
    """
    chosen = {name: value for name, _, value in (each.partition("=") for each in overrides) if name in GROUPS}
    sweeps = {override: _values(override, chosen) for override in overrides}
    _require_possible({override: values for override, values in sweeps.items() if values is not None}, overrides)
    choices = [values if values is not None else [None] for values in map(sweeps.get, overrides)]
    return [_job(overrides, values) for values in itertools.product(*choices)]


def _job(overrides: Sequence[str], values: Sequence[str | None]) -> Job:
    """One combination; None: the override is no sweep."""
    own, given = {}, []
    for override, value in zip(overrides, values, strict=True):
        name = override.partition("=")[0]
        given.append(override if value is None else f"{name}={value}")
        if value is not None:
            own[name.lstrip("+")] = re.sub(r"\\(.)", r"\1", value)  # without Hydra's escapes
    return Job(own, given)


def _values(override: str, chosen: Mapping[str, str]) -> list[str] | None:
    """The values of a sweep, as they are written in an override; None: it is none, or cannot be read (composing it says
    why)."""
    name, _, text = override.partition("=")
    is_function = _FUNCTION.fullmatch(text) is not None
    if _takes_commas(name.lstrip("+"), chosen):
        if not is_function:
            return None
        if not grammar().is_sweep(override):
            raise UserError(f"{override} cannot be read; put each value in quotes: {name}=choice('a','b')")
    try:
        return grammar().sweep_values(override, MAX_JOBS + 1)
    except ValueError:
        raise UserError(f"{override}: expected values one by one, such as choice(a,b) or range(0,5)") from None


def _takes_commas(key: str, chosen: Mapping[str, str]) -> bool:
    """Whether a comma may be part of a setting's value: of a path, or of what is explained of a model's output."""
    found = setting_of(key, chosen)
    return found is not None and (found.is_file or key == OUTPUT)


def _require_possible(sweeps: Mapping[str, Sequence[str]], overrides: Sequence[str]) -> None:
    """Raises UserError for sweeps that are not what they look like."""
    given = [override.partition("=")[0].lstrip("+") for override in overrides]
    for override, values in sweeps.items():
        key = override.partition("=")[0].lstrip("+")
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in _OF_ALL):
            why = "each job's store gets the job's name" if key == "store.path" else "all jobs share them"
            raise UserError(f"{override}: {key} cannot be swept over: {why}; give one value")
        if given.count(key) > 1:
            raise UserError(f"{override}: {key} is given more than once; give its values in one place")
        if repeated := next((value for value in values if list(values).count(value) > 1), None):
            raise UserError(f"{override} has {repeated} more than once; leave one out")
    if (n := math.prod(map(len, sweeps.values()))) > MAX_JOBS:
        raise UserError(f"--multirun: these are {n} jobs or more; expected at most {MAX_JOBS:,}")
