"""Trying a model on a sequence before a run spends anything: which operations it holds, and what it returns.

The audit (see dlshap_core.audit) is kept in a cache, $DLSHAP_CACHE or ~/.cache/dlshap, by all that it depends on.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dlshap_core
from dlshap_core.audit import Audit, AuditedOperation, audit
from dlshap_core.engine import Attribution, attribute
from dlshap_core.references import shuffle_codes
from dlshap_core.sequences import one_hot
from pipeline.args import Args, args_of, as_tensors
from pipeline.capacity import pairs_that_fit
from pipeline.config import Config
from pipeline.entries import LOCATED, parse
from pipeline.errors import UserError
from pipeline.hardware import numbers, repeatable
from pipeline.models import LoadedModel, bare
from pipeline.models.further import Filled, wrong_number
from pipeline.models.lengths import length_hint
from pipeline.places import LocalPlace

NOT_EXACT = ("integrated", "detach followed")  # how treatments begin that are right to a stated error, or by choice


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        targets: of the run.
        audit: how each operation is treated.
        pairs_that_fit: the device's memory in one batch; None where it is not looked at.
    """

    targets: list[int]
    audit: Audit
    pairs_that_fit: int | None = None


def try_model(loaded: LoadedModel, codes: np.ndarray, name: str, config: Config, device: str, args: Args = ()) -> Trial:
    """Audit a model, and attribute one sequence, so that a model that cannot be attributed is known at once.

    Args:
        loaded: the model.
        codes: (L,) uint8.
        name: what the input calls the sequence.
        config: of the run.
        device: where to try.
        args: further inputs of the model for the sequence.

    Raises:
        UserError: the model does not take the sequence or its further inputs, returns something else than one value
            for each target, has fewer outputs than engine.targets asks for, or holds operations that cannot be
            attributed.
    """
    found = cached_audit(loaded, codes, name, config, device, args)
    if found.refused:
        count = "" if len(found.refused) == 1 else f"{len(found.refused)} reasons: "
        reasons = "; ".join(" ".join(reason.split()) for reason in found.refused)
        raise UserError(f"the model cannot be attributed: {count}{reasons}. `dlshap audit` lists all its operations")

    def attribute_pairs(n: int) -> Attribution:
        return attribute(
            loaded.module,
            one_hot(codes[None]),
            one_hot(torch.from_numpy(shuffle_codes(codes[None], range(config.seed, config.seed + n)))),
            args=_repeated(args, 1),
            targets=_targets(config),
            batch_size=n,
            device=device,
            **numbers(config.engine.dtype),
        )

    with _explained(loaded, codes, name, config, args):
        tried = attribute_pairs(2)
        share = config.cluster.gpus_per_actor
        fitting = pairs_that_fit(attribute_pairs, device, share if isinstance(share, float) and share < 1 else 1.0)
    if not bool(torch.isfinite(tried.prediction).all()):
        suspects = "the weights damaged, or dataset.args out of range" if args else "the weights damaged"
        raise UserError(f"{_failure(codes, name)}: its prediction is not finite; are {suspects}?")
    n_targets = tried.prediction.shape[1]
    targets = list(range(n_targets)) if config.engine.targets == "all" else list(config.engine.targets)
    return Trial(targets, found, fitting)


def audit_model(
    loaded: LoadedModel, codes: np.ndarray, name: str, config: Config, device: str, args: Args = ()
) -> Audit:
    """The audit on a sequence and a shuffle of it, and keep it in the cache; arguments as of `try_model`.

    Raises:
        UserError: the model fails for another reason than an operation that is refused.
    """
    both = np.concatenate([codes[None], shuffle_codes(codes[None], [config.seed])[0]])
    _require_number(loaded, config)
    with _explained(loaded, codes, name, config, args):
        found = audit(
            loaded.module,
            one_hot(both),
            args=_repeated(args, 2),
            targets=_targets(config),
            device=device,
            dtype=numbers(config.engine.dtype)["dtype"],
            random_state=config.seed,
        )
    _keep(_cache_file(loaded, len(codes), config, device, args), found)
    return found


def cached_audit(
    loaded: LoadedModel, codes: np.ndarray, name: str, config: Config, device: str, args: Args = ()
) -> Audit:
    """The audit from the cache, or a new one; arguments and errors as of `audit_model`."""
    try:
        values = json.loads(_cache_file(loaded, len(codes), config, device, args).read_text())
        operations = tuple(AuditedOperation(**operation) for operation in values.pop("operations"))
        return Audit(operations, tuple(values.pop("refused")), **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # absent, damaged, or of another version
        return audit_model(loaded, codes, name, config, device, args)


def not_exact(found: Audit) -> list[str]:
    """What an audit found to be attributed otherwise than by an exact rule, one phrase for each operation and way."""
    phrases = [
        f"{operation.operation} in {operation.module or 'the model'}: {operation.treatment}"
        for operation in found.operations
        if operation.treatment.startswith(NOT_EXACT)
    ]
    # An integrated operation is listed as such, and once more with its nodes.
    return [phrase for phrase in phrases if not any(other.startswith(f"{phrase}, ") for other in phrases)]


def _targets(config: Config) -> tuple[int, ...] | str:
    return "all" if config.engine.targets == "all" else tuple(config.engine.targets)


def _failure(codes: np.ndarray, name: str) -> str:
    return f"the model cannot be attributed on the first sequence, {name!r} ({len(codes)} bases)"


def _repeated(args: Args, n: int) -> list[Tensor]:
    """The further inputs of one row, for n rows."""
    return as_tensors([np.stack([value] * n) for value in args])


def _require_number(loaded: LoadedModel, config: Config) -> None:
    """Raises UserError where the model takes another number of further inputs than the input has."""
    names = [parse(arg).text for arg in config.dataset.args]
    if (problem := wrong_number(bare(loaded.module), names)) is not None:
        raise UserError(problem)


@contextmanager
def _explained(loaded: LoadedModel, codes: np.ndarray, name: str, config: Config, args: Args) -> Iterator[None]:
    """The settings of a run, and its errors as the user's."""
    try:
        with repeatable(config.engine.threads, config.engine.deterministic, fills=True):
            yield
    except Exception as error:
        if isinstance(error, IndexError) and str(error).startswith("target "):  # the engine's own
            raise UserError(f"engine.targets={config.engine.targets}: {error}") from error
        fix = ""
        if "deterministic" in str(error):
            fix = " (engine.deterministic=false allows it)"
        elif hint := length_hint(
            Filled(loaded.module, _repeated(args, 1), len(codes)), len(codes), config.dataset.name in LOCATED
        ):
            fix = f" ({hint})"
        elif isinstance(error, RuntimeError):  # what torch raises where shapes do not fit
            fix = f" (no length was found that the model takes, {len(codes)} or another; is its input another?)"
        raise UserError(f"{_failure(codes, name)}: {error}{fix}{_args_hint(config, args)}") from error


def _args_hint(config: Config, args: Args) -> str:
    """What the model got beside the sequence; "" where that was nothing."""
    if not args:
        return ""
    named = zip([parse(arg).text for arg in config.dataset.args], args, strict=True)
    kinds = ", ".join(f"{text} as {arg.dtype} ({', '.join(map(str, ('N', *arg.shape)))})" for text, arg in named)
    return f"; dataset.args gives {kinds}: is that what forward expects? a name with :float or :int gives that type"


def _cache_file(loaded: LoadedModel, length: int, config: Config, device: str, args: Args) -> Path:
    depends_on: dict[str, Any] = {
        "weights": loaded.weights_hash,
        "code": loaded.code_hash,
        "engine": _engine_hash(),
        "torch": torch.__version__,
        "length": length,
        "targets": config.engine.targets,
        "dtype": config.engine.dtype,
        "deterministic": config.engine.deterministic,
        "device": torch.device(device).type,
        "args": args_of(args),
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    folder = os.environ.get("DLSHAP_CACHE") or "~/.cache/dlshap"
    return Path(folder).expanduser() / "audits" / f"{key}.json"


@functools.cache
def _engine_hash() -> str:
    """Of the source of the mathematics: another engine may treat an operation otherwise."""
    digest = hashlib.sha256()
    for path in sorted(Path(dlshap_core.__path__[0]).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _keep(path: Path, found: Audit) -> None:
    """Keep an audit for the next run, which can do without: a cache that cannot be written is no error."""
    try:
        LocalPlace(path.parent).write(path.name, (json.dumps(found.to_dict(), indent=1) + "\n").encode())
    except OSError:
        return
