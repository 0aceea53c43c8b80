"""Trying a model on a sequence before a run spends anything: which operations it holds, and what it returns.

The audit (see dlshap_core.audit) is kept in a cache, $DLSHAP_CACHE or ~/.cache/dlshap, by all that it depends on.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dlshap_core.audit import Audit, AuditedOperation, audit
from dlshap_core.batch_size import MORE, pairs_that_fit, split_evenly
from dlshap_core.engine import Attribution, attribute, numbers
from dlshap_core.errors import is_out_of_memory, let_go
from dlshap_core.one_hot import one_hot
from dlshap_core.passes.decisions import Decisions
from dlshap_core.shuffles import shuffle_codes
from pipeline.config import limits
from pipeline.config.contrasts import Contrast, Weights, unnamed_problem
from pipeline.config.dataset_args import parse
from pipeline.config.schema import Config
from pipeline.config.validate import model_from_dict
from pipeline.execution.determinism import repeatable
from pipeline.execution.device import Machine, noticed_if_broken
from pipeline.execution.gpu_memory import bound, on_device
from pipeline.execution.host import give_back_freed_memory
from pipeline.execution.pair_memory import LONG, PairFit, fit_of_pair
from pipeline.execution.versions import installed_code
from pipeline.execution.work import search_folders, sent_model
from pipeline.messages.errors import DeviceBrokenError, UserError
from pipeline.messages.secrets import one_line
from pipeline.messages.words import counted, some
from pipeline.models import own_modules
from pipeline.models.bpnet import BPNet
from pipeline.models.explained import OutputShapes, head_labels, heads_of, output_notes, target_names, watched
from pipeline.models.forward_arguments import Filled, wrong_number
from pipeline.models.input_hints import form_hint
from pipeline.models.lengths import length_hint
from pipeline.models.load import LoadedModel, bare, finished, load_model
from pipeline.models.target_names import labels_of, plain, resolve
from pipeline.planning.extra_inputs import ExtraInputs, as_tensors, describe_extra_inputs
from pipeline.references.kind import Drawn
from pipeline.store.backends.local import LocalBackend

T = TypeVar("T")
_SAYS_WHAT = (RuntimeError, ValueError, TypeError, IndexError)  # errors of a model that are told without their kind
_CUBLAS = (
    "CUDA has computed in this process before dlshap could set it: begin again with CUBLAS_WORKSPACE_CONFIG=:4096:8 in "
    "the environment; engine.deterministic=false does without"
)
_AS_IT_IS = PairFit()
_N_NAMED = 8  # targets in an error
_NOT_DETERMINISTIC = (
    "on a GPU nothing gives the same bits in each run here: write it by other operations, or allow last bits to differ "
    "with engine.deterministic=false"
)
NOT_EXACT = ("integrated", "detach followed")  # how treatments begin that are right to a stated error, or by choice


@dataclass(frozen=True)
class Preflight:
    """What it found.

    Attributes:
        targets: of the run, as in a plan.
        audit: how each operation is treated.
        pairs_that_fit: the device's memory in one batch; None where it is not looked at.
        decisions: what each fold decides from its input in Python, by the line that decides.
        names: of the targets; see models/explained.py.
        labels: of the targets.
        heads: of the targets; of a contrast of several all of them, with commas.
        notes: lines about what is explained of the model's output.
        fit: how a pair is computed.
    """

    targets: list[int | Weights]
    audit: Audit
    pairs_that_fit: int | None = None
    decisions: list[dict[str, list[Any]]] = field(default_factory=list)
    names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fit: PairFit = field(default_factory=PairFit)


@dataclass(frozen=True)
class WorkWithModel(Generic[T]):
    """What another process does with a model, on a machine that has the device: called there, it loads the model.

    Attributes:
        config: of the run.
        model: the model's configuration.
        search: folders in which to look for the user's own modules.
        target_names: of the model; see LoadedModel.
        device: as in torch.
        function: called with the model.
    """

    config: Config
    model: dict[str, Any]
    search: list[str]
    target_names: tuple[str, ...]
    device: str
    function: Callable[[LoadedModel], T]

    def __call__(self) -> T:
        own_modules.search(*self.search)
        bound(self.device, self.config.cluster.gpu_share)
        with limits.using(self.config.limits):
            return self.function(replace(load_model(model_from_dict(self.model)), target_names=self.target_names))


def with_model(config: Config, loaded: LoadedModel, machine: Machine, function: Callable[[LoadedModel], T]) -> T:
    """What a function makes of the model, called where the device is."""
    if machine.elsewhere is None:
        return function(loaded)
    sent = sent_model(config), search_folders(config), loaded.target_names
    found: T = machine.elsewhere(WorkWithModel(config, *sent, machine.device, function))
    return found


def run_preflight(
    loaded: LoadedModel,
    codes: np.ndarray,
    name: str,
    config: Config,
    device: str,
    extra_inputs: ExtraInputs = (),
    step: Callable[[str], None] = lambda _: None,
) -> Preflight:
    """Audit a model, and attribute one sequence, so that a model that cannot be attributed is known at once.

    Args:
        loaded: the model.
        codes: (L,) uint8.
        name: what the input calls the sequence.
        config: of the run.
        device: where to try.
        extra_inputs: of the model, for the sequence.
        step: told what is done next.

    Raises:
        UserError: the memory is short, or the model does not take the sequence or its extra inputs, returns something
            else than one value for each target, has fewer outputs than engine.targets asks for, or holds operations
            that cannot be attributed.
    """
    step("trying the model: the memory of one pair")
    fit = fit_of_pair(loaded, codes, config, device, extra_inputs)
    if fit.split and device == "cpu":
        give_back_freed_memory()
    step("trying the model: its operations")
    found = cached_audit(loaded, codes, name, config, device, extra_inputs, fit)
    if found.refused:
        count = "" if len(found.refused) == 1 else f"{len(found.refused)} reasons: "
        reasons = "; ".join(" ".join(reason.split()) for reason in found.refused)
        hint = form_hint(reasons, config.model, config.engine.dtype)
        if "deterministic implementation" in reasons:
            hint = _NOT_DETERMINISTIC
        given = _extra_inputs_hint(config, extra_inputs) + (f" ({hint})" if hint else "")
        raise UserError(
            f"the model cannot be attributed: {count}{reasons}{given}. `dlshap audit` lists all its operations"
        )

    random_state = config.random_state

    def attribute_pairs(
        n: int, fold: nn.Module = loaded.module, decisions: Decisions | None = None, n_references: int = MORE
    ) -> Attribution:
        n_sequences, k = split_evenly(n, n_references)
        drawn = one_hot(torch.from_numpy(shuffle_codes(codes[None], range(random_state, random_state + k))))
        return attribute(
            fold,
            one_hot(codes[None]).expand(n_sequences, -1, -1),
            drawn.expand(n_sequences, -1, -1, -1),
            args=_repeated(extra_inputs, n_sequences),
            targets=loaded.asked(config.targets),
            batch_size=n_sequences * k,
            device=device,
            decisions=decisions,
            split=fit.split,
            **numbers(config.engine.dtype),
        )

    decided, n_pairs = [Decisions() for _ in loaded.folds], 1 if fit.split or fit.is_tried_alone else 2
    step(f"trying the model: {counted(n_pairs, 'pair')} of the first sequence")
    with _as_user_errors(loaded, codes, name, config, device, extra_inputs), on_device(loaded.folds, device):
        with watched(loaded.module) as seen:
            tried = attribute_pairs(n_pairs, decisions=decided[0])
        if decided[0].expected:  # other weights may decide otherwise, by the same lines
            for fold, decisions in list(zip(loaded.folds, decided, strict=True))[1:]:
                attribute_pairs(n_pairs, fold, decisions)
        run = partial(attribute_pairs, n_references=_fewest_references(config))
        tried_out = None if fit.split else pairs_that_fit(run, device, config.cluster.gpu_share)
    if not bool(torch.isfinite(tried.prediction).all()):
        suspects = "the weights damaged, or dataset.args out of range" if extra_inputs else "the weights damaged"
        output = loaded.description.get("output") or ""
        if re.search(r"\b(log|log1p|sqrt)\(", output):
            suspects += f", or the numbers negative of which model.output={output} takes a logarithm or root"
        raise UserError(f"{_failure(codes, name)}: its prediction is not finite; are {suspects}?")
    asked = loaded.asked(config.targets)
    _require_names(loaded, seen, config)
    own_labels = loaded.target_names or head_labels(loaded.description, seen)
    targets, labels = resolve(asked, seen.n_targets), labels_of(asked, seen.n_targets, own_labels)
    alone = list(range(seen.n_targets)) if isinstance(asked, str) else [_place_or_label(each) for each in asked]
    names = labels if loaded.target_names else target_names(loaded.description, alone, seen)
    heads = [_heads_in(target, heads_of(loaded.description, seen)) for target in targets]
    notes = [
        *output_notes(loaded.description, seen, alone, config.model.length_of(len(codes))),
        *_control_notes(loaded, extra_inputs),
    ]
    expected = [decisions.expected for decisions in decided]
    return Preflight(
        targets=targets,
        audit=found,
        pairs_that_fit=tried_out or fit.most,
        decisions=expected,
        names=tuple(names),
        labels=tuple(labels),
        heads=tuple(heads),
        notes=tuple(notes),
        fit=fit,
    )


def _control_notes(loaded: LoadedModel, extra_inputs: ExtraInputs) -> list[str]:
    """What a BPNet that was trained with control tracks sees where none are given."""
    n = max((part.n_control_tracks for part in bare(loaded.module).modules() if isinstance(part, BPNet)), default=0)
    if extra_inputs or not n:
        return []
    return [f"the model was trained with {counted(n, 'control track')} and gets zeros (dataset.args gives them)"]


def audit_model(
    loaded: LoadedModel,
    codes: np.ndarray,
    name: str,
    config: Config,
    device: str,
    extra_inputs: ExtraInputs = (),
    fit: PairFit = _AS_IT_IS,
) -> Audit:
    """The audit on a sequence and a shuffle of it, or of what takes much on one pair, and keep it in the cache;
    arguments as of `run_preflight`, and `fit` says how a pair is computed.

    Raises:
        UserError: the model fails for another reason than an operation that is refused.
    """
    random_state = config.random_state
    shuffled = shuffle_codes(codes[None], [random_state])
    is_alone = len(codes) >= LONG or fit.is_tried_alone
    X = one_hot(codes[None] if is_alone else np.concatenate([codes[None], shuffled[0]]))
    _require_number(loaded, config)
    with _as_user_errors(loaded, codes, name, config, device, extra_inputs):
        found = audit(
            loaded.module,
            X,
            one_hot(torch.from_numpy(shuffled)) if is_alone else None,
            args=_repeated(extra_inputs, len(X)),
            targets=loaded.asked(config.targets),
            device=device,
            dtype=numbers(config.engine.dtype)["dtype"],
            random_state=random_state,
            split=fit.split,
        )
    _keep(_cache_file(loaded, len(codes), config, device, extra_inputs), found)
    return found


def cached_audit(
    loaded: LoadedModel,
    codes: np.ndarray,
    name: str,
    config: Config,
    device: str,
    extra_inputs: ExtraInputs = (),
    fit: PairFit = _AS_IT_IS,
) -> Audit:
    """The audit from the cache, or a new one; arguments and errors as of `audit_model`."""
    try:
        path = _cache_file(loaded, len(codes), config, device, extra_inputs)
        values = json.loads(LocalBackend(path.parent).read(path.name))
        operations = tuple(AuditedOperation(**operation) for operation in values.pop("operations"))
        return Audit(operations, tuple(values.pop("refused")), **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # absent, damaged, or of another version
        return audit_model(loaded, codes, name, config, device, extra_inputs, fit)


def not_exact(found: Audit) -> list[str]:
    """What an audit found to be attributed otherwise than by an exact rule, one phrase for each operation and way."""
    phrases = [
        f"{operation.operation} in {operation.module or 'the model'}: {operation.treatment}"
        for operation in found.operations
        if operation.treatment.startswith(NOT_EXACT)
    ]
    # An integrated operation is listed as such, and once more with its nodes.
    return [phrase for phrase in phrases if not any(other.startswith(f"{phrase}, ") for other in phrases)]


def _place_or_label(target: int | Contrast) -> int | str:
    return target.label if isinstance(target, Contrast) else target


def _heads_in(target: int | Weights, heads: Sequence[str]) -> str:
    """What a target is of, given the head of each output."""
    places = [target] if isinstance(target, int) else target
    return ",".join(dict.fromkeys(heads[place] for place in places))


def _require_names(loaded: LoadedModel, seen: OutputShapes, config: Config) -> None:
    """Raises UserError where there are not as many names as targets, and for a head's name where one has several."""
    n_names, n_outputs = len(loaded.target_names), seen.n_targets
    texts = [] if isinstance(config.targets, str) else [each for each in config.targets if isinstance(each, str)]
    if not n_names and max(seen.widths, default=1) > 1 and any(map(unnamed_problem, texts)):
        listed = [f"{place} ({label})" for place, label in enumerate(head_labels(loaded.description, seen))]
        raise UserError(
            f"engine.targets={config.targets}: a head has several targets here, so its name is not enough; "
            f"give places: {some(listed, _N_NAMED)}"
        )
    if n_names not in (0, n_outputs):
        raise UserError(
            f"model.target_names={config.model.target_names} has {counted(n_names, 'name')}, and the model "
            f"{counted(n_outputs, 'target')}; expected a name for each, of what model.output leaves"
        )


def _fewest_references(config: Config) -> int:
    """References of each sequence, or 1 where only its files know: what is kept of a sequence is then counted with
    every pair, which asks for too much memory rather than for too little."""
    kind = config.references
    return kind.n if isinstance(kind, Drawn) else 1


def _failure(codes: np.ndarray, name: str) -> str:
    return f"the model cannot be attributed on the first sequence, {name!r} ({len(codes)} bases)"


def _repeated(extra_inputs: ExtraInputs, n: int) -> list[Tensor]:
    """The extra inputs of one row, for n rows."""
    return as_tensors([np.stack([value] * n) for value in extra_inputs])


def _require_number(loaded: LoadedModel, config: Config) -> None:
    """Raises UserError where the model takes another number of extra inputs than the input has."""
    given, channels = config.model, config.model.channels_from
    names = [parse(arg).text for index, arg in enumerate(config.dataset.args) if index not in channels]
    if (problem := wrong_number(bare(loaded.module), names, given.input, given.forward)) is not None:
        raise UserError(problem)


@contextmanager
def _as_user_errors(
    loaded: LoadedModel, codes: np.ndarray, name: str, config: Config, device: str, extra_inputs: ExtraInputs
) -> Iterator[None]:
    """The settings of a run, and its errors as the user's, unless the device broke."""
    try:
        with (
            noticed_if_broken(device),
            repeatable(config.engine.threads, config.engine.deterministic, fills=True),
        ):
            yield
    except (UserError, DeviceBrokenError):  # the first about the model's output, whatever the length
        raise
    except Exception as error:
        if isinstance(error, IndexError) and str(error).startswith("target "):  # the engine's own
            names = f"; model.target_names has {len(loaded.target_names)} names" if loaded.target_names else ""
            raise UserError(f"engine.targets={config.targets}: {error}{names}") from error
        if is_out_of_memory(error):
            let_go(error)  # nothing is tried again while the memory is full
            raise UserError(
                f"{_failure(codes, name)}: the pairs that it is tried with do not fit into the memory of the device; "
                f"use a machine with more memory, or shorter sequences: {one_line(error)}"
            ) from error
        fix = ""
        if "CUBLAS_WORKSPACE_CONFIG" in str(error):
            fix = f" ({_CUBLAS})"
        elif "deterministic" in str(error):
            fix = f" ({_NOT_DETERMINISTIC})"
        elif hint := form_hint(str(error), config.model, config.engine.dtype) or _length_hint(
            loaded, len(codes), config, extra_inputs
        ):
            fix = f" ({hint})"
        elif isinstance(error, RuntimeError):  # what torch raises where shapes do not fit
            fix = f" (no length was found that the model takes, {len(codes)} or another; does it take other inputs?)"
        kind = "" if isinstance(error, _SAYS_WHAT) else f"{type(error).__name__}: "
        raise UserError(
            f"{_failure(codes, name)}: {kind}{error}{fix}{_extra_inputs_hint(config, extra_inputs)}"
        ) from error


def _length_hint(loaded: LoadedModel, length: int, config: Config, extra_inputs: ExtraInputs) -> str | None:
    """The lengths that a model takes, apart from what its sequences are padded with."""
    given = config.model
    unpadded = finished(bare(loaded.module), replace(given, length=None, pad=None))
    filled = Filled(unpadded, _repeated(extra_inputs, 1), length)
    tried = length if given.length is None else given.length - given.n_flanks
    return length_hint(filled, tried, config.dataset.is_of_genome, given.n_flanks, given.length is not None)


def _extra_inputs_hint(config: Config, extra_inputs: ExtraInputs) -> str:
    """What the model got beside the sequence; "" where that was nothing."""
    if not extra_inputs:
        return ""
    named = zip([parse(arg).text for arg in config.dataset.args], extra_inputs, strict=True)
    kinds = ", ".join(f"{text} as {arg.dtype} ({', '.join(map(str, ('N', *arg.shape)))})" for text, arg in named)
    return f"; dataset.args gives {kinds}: is that what forward expects? a name with :float or :int gives that type"


def _cache_file(loaded: LoadedModel, length: int, config: Config, device: str, extra_inputs: ExtraInputs) -> Path:
    depends_on: dict[str, Any] = {
        "weights": loaded.weights_hash,
        "code": loaded.code.digest,
        "engine": installed_code(),
        "torch": torch.__version__,
        "length": length,
        "targets": plain(loaded.asked(config.targets)),
        "dtype": config.engine.dtype,
        "deterministic": config.engine.deterministic,
        "device": torch.device(device).type,
        "args": describe_extra_inputs(extra_inputs),
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    folder = os.environ.get("DLSHAP_CACHE") or "~/.cache/dlshap"
    return Path(folder).expanduser() / "audits" / f"{key}.json"


def _keep(path: Path, found: Audit) -> None:
    """Keep an audit for the next run, which can do without: a cache that cannot be written is no error."""
    try:
        LocalBackend(path.parent).write(path.name, (json.dumps(found.to_dict(), indent=1) + "\n").encode())
    except OSError:
        return
