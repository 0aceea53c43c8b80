"""Lazy modules of torch (LazyLinear, LazyConv1d, LazyBatchNorm1d), which take their sizes from what they are given.

With the weights of a file they have their sizes, and become the modules that they stand for before anything looks at
what the model is; torch does that when they are first called.
"""

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from pipeline.messages.errors import UserError
from pipeline.models.hashing import is_library


def finish(module: nn.Module) -> None:
    """Make lazy modules that have their weights what they stand for."""
    for child in module.modules():
        if not isinstance(child, LazyModuleMixin) or not is_library(type(child)) or child.cls_to_become is None:
            continue
        if not child.has_uninitialized_params():
            _set_sizes(child)
            child._infer_parameters(child, (torch.empty(0),))


def require_finished(module: nn.Module, target: str) -> None:
    """Raises UserError where a module without a file of weights is still to take its sizes from its first input."""
    finish(module)
    if unknown := next((name for name, value in module.named_parameters() if is_lazy(value)), None):
        raise UserError(
            f"model._target_={target} gives a module whose {unknown!r} has no values yet (a lazy module); give "
            f"model.checkpoint, or load its weights in that function"
        )


def _set_sizes(child: nn.Module) -> None:
    """What torch would read off the first input."""
    weight = getattr(child, "weight", None)
    if isinstance(child, nn.Linear):
        child.in_features = child.weight.shape[1]
    elif isinstance(child, nn.modules.conv._ConvNd):
        child.in_channels = child.weight.shape[0] if child.transposed else child.weight.shape[1] * child.groups
    elif isinstance(child, nn.modules.batchnorm._NormBase):
        values = weight if weight is not None else child.running_mean
        child.num_features = 0 if values is None else values.shape[0]
