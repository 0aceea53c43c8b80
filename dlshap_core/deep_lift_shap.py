"""The face people know: `deep_lift_shap` with the parameters of tangermeme's, over the two-pass engine.

Shape legend: N sequences, R references of each, T targets, A alphabet, L length.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn

from dlshap_core.attributions import hypothetical_attributions, project
from dlshap_core.batch_size import auto_batch_size, pairs_that_fit, split_evenly
from dlshap_core.engine import TensorReferences, as_target, attribute, numbers, resolve_device, whole_number
from dlshap_core.one_hot import one_hot, to_codes, validate_one_hot
from dlshap_core.passes.borrowed_model import borrowed
from dlshap_core.passes.host import process_settings, thread_settings
from dlshap_core.passes.model_passes import model_dtype
from dlshap_core.passes.targets import Target
from dlshap_core.passes.user_rules import UserRule
from dlshap_core.references import dinucleotide_shuffle, shuffle_codes

ReferenceFunction = Callable[..., Tensor]
OneTarget = SupportsIndex | Mapping[SupportsIndex, float]


class AttributionReferences(NamedTuple):
    """Attributions with the references they were made with."""

    attributions: Tensor
    references: Tensor


class AttributionSd(NamedTuple):
    """Attributions, their standard deviation over the references, and the references where these are asked for too."""

    attributions: Tensor
    sd: Tensor
    references: Tensor | None = None


def deep_lift_shap(
    model: nn.Module,
    X: Tensor,
    args: Sequence[Tensor] | None = None,
    target: OneTarget | Iterable[OneTarget] = 0,
    batch_size: int | Literal["auto"] = 32,
    references: ReferenceFunction | Tensor = dinucleotide_shuffle,
    n_shuffles: int = 20,
    return_references: bool = False,
    hypothetical: bool = False,
    warning_threshold: float = 0.001,
    additional_nonlinear_ops: dict[type[nn.Module], UserRule] | None = None,
    print_convergence_deltas: bool = False,
    raw_outputs: bool = False,
    only_warn: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    random_state: int | None = None,
    verbose: bool = False,
    return_sd: bool = False,
) -> Tensor | AttributionReferences | AttributionSd:
    """DeepLIFT/SHAP attributions: contributions that add up to the difference of predictions, averaged over references.

    Args:
        model: returns (B, T), optionally followed by axes of length 1. It is left exactly as it was.
        X: (N, A, L) one-hot sequences.
        args: extra inputs of the model, each with N rows.
        target: the output to explain, a whole number of any type, or a combination of several such as {5: 1, 0: -0.5};
            with a list of these, the result gains an axis of targets after that of the sequences.
        batch_size: sequence-reference pairs in a batch, or "auto": many enough to keep a GPU busy, and no more than fit
            into the memory that is free there, for which 22 pairs are tried first; on a CPU as few as stay near its
            caches. The result does not depend on it.
        references: a function called as f(x, n=1, random_state=random_state + k) for reference k, returning
            (1, 1, A, L), or a tensor (N, R, A, L).
        n_shuffles: references of each sequence, where a function draws them.
        return_references: return (attributions, references).
        hypothetical: attributions of every base, not only of the observed one.
        warning_threshold: a convergence delta larger than this gives a RuntimeWarning.
        additional_nonlinear_ops: rules by module class, f(module, grad_input, grad_output) -> tuple.
        print_convergence_deltas: print the convergence deltas of each batch.
        raw_outputs: return the multipliers of every pair instead.
        only_warn: an X or references that are not one-hot give a warning instead of an error.
        dtype: of the computation; None for the model's, float16 and bfloat16 run under autocast, and "tf32" is float32
            whose products and convolutions a GPU may round.
        device: where to compute; None for a GPU if there is one, else the CPU.
        random_state: seed; reference k of every sequence is drawn with random_state + k. None is not reproducible.
        verbose: show progress on stderr.
        return_sd: return (attributions, sd, references) with the standard deviation of the observed base's attribution
            over the references (with R - 1); the references are None unless they are asked for.

    Returns:
        (N, A, L) attributions, or (N, R, A, L) multipliers with raw_outputs; with a list of T targets (N, T, A, L) or
        (N, T, R, A, L). With return_references a named tuple of these and the references (N, R, A, L); with return_sd
        one of these, the standard deviation (N, L) or (N, T, L), and the references.

    Raises:
        ValueError: X, references or the model's output of the wrong form (UnsupportedModelError for an operation), or
            return_sd with a single reference.
        IndexError: a target or rows of args that are not there.
        TypeError: a target that is no whole number or mapping.
        RuntimeError: no references, or a CUDA device that is not there.
    """
    with thread_settings():
        validate_one_hot(X, "X", only_warn=only_warn)
        if X.shape[0] == 0:
            raise ValueError("X holds no sequences")
        source = _reference_source(references, X, n_shuffles, random_state, only_warn, keeps=return_references)
        if return_sd and source.n < 2:
            raise ValueError("return_sd=True needs at least 2 references of each sequence, not 1")
        targets, is_one = _as_list(target)
        watch = _Watch(X.shape[0] * source.n, warning_threshold, print_convergence_deltas, verbose)
        options: dict[str, Any] = {
            "targets": targets,
            "device": device,
            "user_rules": additional_nonlinear_ops,
            "raw_outputs": raw_outputs,
            "spread": return_sd,
            **numbers(dtype),
        }
        if isinstance(batch_size, str):
            batch_size = _size_for(batch_size, model, X, source.n, args, options)
        result = attribute(model, X, source, args=args, batch_size=batch_size, progress=watch, **options)
        if raw_outputs:
            assert result.multipliers is not None
            attributions = result.multipliers
        else:
            attributions = result.hypothetical
            if not hypothetical:
                attributions = project(attributions, X.detach().cpu().unsqueeze(1))
        if is_one:
            attributions = attributions.squeeze(1)
        given = None
        if return_references:
            given = source.tensor if isinstance(source, TensorReferences) else source.all()
        if (sd := result.attribution_sd) is not None:
            return AttributionSd(attributions, sd.squeeze(1) if is_one else sd, given)
        return attributions if given is None else AttributionReferences(attributions, given)


def _captum_deep_lift_shap(
    model: nn.Module,
    X: Tensor,
    args: Sequence[Tensor] | None = None,
    target: SupportsIndex = 0,
    batch_size: int = 32,
    references: ReferenceFunction | Tensor = dinucleotide_shuffle,
    n_shuffles: int = 20,
    return_references: bool = False,
    hypothetical: bool = False,
    device: str | torch.device | None = None,
    random_state: int | None = None,
    verbose: bool = False,
) -> Tensor | AttributionReferences:
    """The debugging twin: the same attributions by captum's DeepLiftShap (an optional dependency, the extra `captum`).

    Parameters are those of `deep_lift_shap`, but that all references of a sequence are drawn by a single call
    f(x, n=n_shuffles, random_state=random_state), and `batch_size` is captum's affair. Captum changes gradients of
    modules it knows and is not exact on others; use it to look for differences.

    Raises:
        ImportError: captum is not installed.
    """
    try:
        from captum.attr import DeepLiftShap
    except ImportError as error:
        raise ImportError("_captum_deep_lift_shap needs captum; install it with: pip install dlshap[captum]") from error
    place = resolve_device(device)
    kind = model_dtype(model)
    attributions, drawn = [], []
    with process_settings(dtype=kind), borrowed(model, place):
        for i in range(X.shape[0]):
            x = X[i : i + 1].to(place, kind)
            given = (
                references[i]
                if isinstance(references, Tensor)
                else references(x, n=n_shuffles, random_state=random_state)[0]
            ).to(place, kind)
            attribution = DeepLiftShap(model).attribute(
                x,
                given,
                target=whole_number(target),
                additional_forward_args=None if args is None else tuple(arg[i : i + 1].to(place) for arg in args),
                custom_attribution_func=hypothetical_attributions,
            )
            attributions.append((attribution if hypothetical else attribution * x).detach().cpu())
            drawn.append(given.cpu())
            if verbose:
                _print_progress(i + 1, X.shape[0], "sequences")
    result = torch.cat(attributions)
    return AttributionReferences(result, torch.stack(drawn)) if return_references else result


class _DrawnReferences:
    """References drawn by a function, one call for each pair, so that nothing but the sequence and k enters."""

    def __init__(self, function: ReferenceFunction, X: Tensor, n: int, random_state: int | None, keeps: bool) -> None:
        self.n = n
        self._keeps = keeps
        self._function = function
        self._X = X
        if random_state is None and function is dinucleotide_shuffle:
            random_state = int(np.random.default_rng().integers(2**31 - n))
        self._random_state = random_state
        self.draws_from_host = random_state is None  # and must not draw the same again with the next call
        self._drawn: dict[tuple[int, int], Tensor] = {}

    def __call__(self, rows: slice, ks: slice) -> Tensor:
        drawn = self._draw(self._X[rows], range(ks.start, ks.stop))
        if self._keeps:
            self._drawn[rows.start, ks.start] = drawn.cpu()
        return drawn

    def all(self) -> Tensor:
        """(N, R, A, L): the references drawn so far, in order."""
        by_row: dict[int, list[Tensor]] = {}
        for row, start in sorted(self._drawn):
            by_row.setdefault(row, []).append(self._drawn[row, start])
        drawn = torch.cat([torch.cat(parts, dim=1) for parts in by_row.values()])
        return drawn if drawn.ndim == 4 else one_hot(drawn, self._X.dtype, n_letters=self._X.shape[1])

    def _draw(self, X: Tensor, ks: range) -> Tensor:
        if self._random_state is None:
            return self._function(X, n=len(ks))
        if self._function is dinucleotide_shuffle:
            seeds = np.arange(ks.start, ks.stop) + self._random_state
            return torch.from_numpy(shuffle_codes(to_codes(X).cpu().numpy(), seeds, n_characters=X.shape[1] + 1))
        pairs = [
            torch.cat([self._function(X[i : i + 1], n=1, random_state=self._random_state + k) for k in ks], dim=1)
            for i in range(X.shape[0])
        ]
        return torch.cat(pairs)


def _size_for(
    asked: str, model: nn.Module, X: Tensor, n_references: int, args: Sequence[Tensor] | None, options: dict[str, Any]
) -> int:
    """Pairs in a batch where these are left to choose; `options` are those of `attribute`."""
    if asked != "auto":
        raise ValueError(f"batch_size must be a number of pairs or 'auto', not {asked!r}")
    device = str(resolve_device(options["device"]))

    def run(n_pairs: int) -> None:
        """The first sequence against itself, shifted: nothing is drawn for it."""
        n_sequences, k = split_evenly(n_pairs, n_references)
        x = X[:1].expand(n_sequences, -1, -1)
        shifted = torch.stack([X[:1].roll(i, -1) for i in range(1, k + 1)], 1).expand(n_sequences, -1, -1, -1)
        given = [arg[:1].expand(n_sequences, *arg.shape[1:]) for arg in args or ()]
        attribute(model, x, shifted, args=given, batch_size=n_sequences * k, **options)

    return auto_batch_size(X.shape[2], n_references, device, pairs_that_fit(run, device))


def _as_list(target: OneTarget | Iterable[OneTarget]) -> tuple[list[Target], bool]:
    """The targets, and whether one alone was asked for: a tensor or array without axes is one."""
    is_list = isinstance(target, Iterable) and not isinstance(target, str | Mapping)
    if is_list and getattr(target, "ndim", 1) > 0:
        return [as_target(each) for each in target], False  # type: ignore[union-attr]
    return [as_target(target)], True


def _reference_source(
    references: ReferenceFunction | Tensor,
    X: Tensor,
    n_shuffles: int,
    random_state: int | None,
    only_warn: bool,
    keeps: bool,
) -> "TensorReferences | _DrawnReferences":
    if isinstance(references, Tensor):
        expected = (X.shape[0], "n", *X.shape[1:])
        if references.ndim != 4 or references.shape[0] != X.shape[0] or references.shape[2:] != X.shape[1:]:
            raise ValueError(f"references have shape {tuple(references.shape)}; expected {expected}")
        validate_one_hot(references, "references", ndim=4, allow_N=True, only_warn=only_warn)
        return TensorReferences(references)
    if n_shuffles < 1:
        raise RuntimeError(f"n_shuffles must be at least 1, not {n_shuffles}")
    return _DrawnReferences(references, X, n_shuffles, random_state, keeps)


class _Watch:
    """Looks at each batch: warns of deltas over the threshold, prints them, shows progress."""

    def __init__(self, n_pairs: int, warning_threshold: float, prints_deltas: bool, verbose: bool) -> None:
        self._n_pairs = n_pairs
        self._warning_threshold = warning_threshold
        self._prints_deltas = prints_deltas
        self._verbose = verbose
        self._n_done = 0

    def __call__(self, n_pairs: int, deltas: Tensor) -> None:
        self._n_done += n_pairs
        largest = deltas.abs().max().item()
        if not largest <= self._warning_threshold:
            warnings.warn(
                f"convergence deltas too high: up to {largest:.2g}, over the threshold of {self._warning_threshold:g}; "
                f"audit(model, X) shows how each operation is treated",
                RuntimeWarning,
                stacklevel=4,
            )
        if self._prints_deltas:
            print(deltas.abs().flatten().cpu())  # noqa: T201  asked for by print_convergence_deltas
        if self._verbose:
            _print_progress(self._n_done, self._n_pairs, "pairs")


def _print_progress(done: int, total: int, what: str) -> None:
    sys.stderr.write(f"\r{done} of {total} {what}" + ("\n" if done == total else ""))
    sys.stderr.flush()
