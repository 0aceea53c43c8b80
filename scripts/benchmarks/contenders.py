"""What is timed against each other: the floor, the engine, and the peers that are installed.

Every contender does the same work: attributions of N sequences against R given references for some targets. The floor
is the least that any exact method of this kind can do: the model forward on N + N R rows and back to the input of N R
rows for each target, by plain autograd, with no rule at all.

Shape legend: N sequences, R references of each, T targets, A alphabet, L length.
"""

import collections
import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import dlshap_core
from dlshap_core import attribute

# (batch_size in pairs) -> attributions (N, T, A, L), on the CPU; the floor makes none
Run = Callable[[int], Tensor | None]
TANGERMEME_DEFAULT = 32  # pairs in a batch: the default of its deep_lift_shap


def is_installed(package: str) -> bool:
    """Whether a peer can be imported."""
    return importlib.util.find_spec(package) is not None


def floor_gradients(
    model: nn.Module, X: Tensor, references: Tensor, targets: list[int], batch_size: int
) -> Iterator[list[Tensor]]:
    """Plain autograd; yields for each batch of references the gradient (B, A, L) of each target, on the device."""
    device = next(model.parameters()).device
    with torch.no_grad():
        for block in X.split(batch_size):
            model(block.to(device))
    for block in references.flatten(0, 1).split(batch_size):
        leaf = block.detach().to(device).requires_grad_()
        y = model(leaf)
        yield [
            torch.autograd.grad(y[:, target].sum(), leaf, retain_graph=target != targets[-1])[0] for target in targets
        ]


def floor(model: nn.Module, X: Tensor, references: Tensor, targets: list[int]) -> Run:
    """The gradients, of which nothing is made."""
    frozen = copy.deepcopy(model).requires_grad_(False)

    def run(batch_size: int) -> None:
        collections.deque(floor_gradients(frozen, X, references, targets, batch_size), maxlen=0)

    return run


def engine(model: nn.Module, X: Tensor, references: Tensor, targets: list[int]) -> Run:
    """dlshap_core's engine, as the pipeline calls it; with TF32 where floor and peers have it."""
    device, allow_tf32 = next(model.parameters()).device, torch.backends.cuda.matmul.allow_tf32
    of_engine = partial(attribute, model, X, references, targets=targets, device=device, allow_tf32=allow_tf32)
    return lambda batch_size: of_engine(batch_size=batch_size).hypothetical


def engine_drawing(model: nn.Module, X: Tensor, n_references: int, targets: list[int]) -> Run:
    """dlshap_core.deep_lift_shap as people call it: it draws the references itself."""
    device = next(model.parameters()).device
    dtype = "tf32" if torch.backends.cuda.matmul.allow_tf32 else None

    def run(batch_size: int) -> Tensor:
        attributions = dlshap_core.deep_lift_shap(
            model,
            X,
            target=targets,
            batch_size=batch_size,
            n_shuffles=n_references,
            hypothetical=True,
            warning_threshold=float("inf"),
            device=device,
            dtype=dtype,
            random_state=0,
        )
        assert isinstance(attributions, Tensor)
        return attributions

    return run


def tangermeme(model: nn.Module, X: Tensor, references: Tensor | int, targets: list[int]) -> Run:
    """tangermeme's function, once for each target; with a number of references it draws them itself."""
    from tangermeme.deep_lift_shap import deep_lift_shap
    from tangermeme.ersatz import dinucleotide_shuffle

    model = copy.deepcopy(model)  # the engine looks again at a model that others change
    device = next(model.parameters()).device
    drawn = isinstance(references, int)
    given = {"references": dinucleotide_shuffle, "n_shuffles": references} if drawn else {"references": references}

    def run(batch_size: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of models that it is not exact on; how far it is off is reported
            kept = [
                deep_lift_shap(
                    model,
                    X,
                    target=target,
                    batch_size=batch_size,
                    hypothetical=True,
                    device=str(device),
                    random_state=0,
                    **given,
                )
                for target in targets
            ]
        return torch.stack(kept, 1).cpu()

    return run


def captum(model: nn.Module, X: Tensor, references: Tensor, targets: list[int]) -> Run:
    """captum's DeepLiftShap, once for each sequence and target; its batch is a sequence with all its references."""
    model = copy.deepcopy(model)
    device = next(model.parameters()).device
    twin = dlshap_core._captum_deep_lift_shap

    def run(batch_size: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces its hooks at each call
            kept = [
                twin(model, X, target=target, references=references, hypothetical=True, device=device)
                for target in targets
            ]
        return torch.stack(kept, 1)

    return run
