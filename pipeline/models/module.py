"""Any `torch.nn.Module` by its import path: the only place that instantiates what a configuration names."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from pipeline.errors import UserError
from pipeline.models.checkpoint import read_checkpoint
from pipeline.models.fitting import Fitted, load_weights
from pipeline.models.folder import folder_arguments


@dataclass(frozen=True)
class MadeModule:
    """A module by its target.

    Attributes:
        module: with its weights.
        init: all arguments that it was made with.
        trusted: whether a pickle had to be trusted.
        fitted: how the weights came to fit.
    """

    module: nn.Module
    init: dict[str, Any]
    trusted: bool
    fitted: Fitted


def load_module(
    target: str | None, init: Mapping[str, Any], path: Path | None, trust_pickle: bool, prefix: str | None = None
) -> MadeModule:
    """The module that `target` makes, with the weights of a checkpoint.

    Args:
        target: import path of a class, or of a function that returns a module; None for a trusted pickled module.
        init: its arguments, before those that a folder's config.json gives; nested `_target_`s are instantiated too.
        path: the checkpoint. A class needs one (its weights would be random), a function may load its own.
        trust_pickle: whether a pickled whole module may be read, which runs code from the file.
        prefix: of the names in the checkpoint; None: found, where only one makes them fit.

    Raises:
        UserError: a target that cannot be imported or called, or a checkpoint that does not fit it.
    """
    weights = None if path is None else read_checkpoint(path, trust_pickle)
    trusted = isinstance(weights, nn.Module)
    if target is None:
        if isinstance(weights, nn.Module):
            return MadeModule(weights, {}, trusted, Fitted())
        raise UserError("model._target_ is not set; give the import path of the model's class, package.module.Class")
    init = {**_accepted(_find(target), folder_arguments(path)), **init}
    module, fitted = make(target, init), Fitted()
    if isinstance(weights, nn.Module):
        weights = weights.state_dict()
    if weights is not None and path is not None:
        fitted = load_weights(module, weights, path, prefix)
    elif isinstance(_find(target), type) and any(True for _ in module.parameters()):
        raise UserError(f"model.checkpoint is not set: the weights of {target} would be random; give a file of weights")
    return MadeModule(module, init, trusted, fitted)


def _accepted(target: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that a class or function takes: a config.json may hold more than these."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


def make(target: str, init: Mapping[str, Any]) -> nn.Module:
    """Call the target with its arguments. Raises UserError, one line, when that fails or gives no module."""
    _find(target)
    try:
        made = instantiate({"_target_": target, "_convert_": "all", **init})
    except InstantiationException as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())
        raise UserError(
            f"model._target_={target} with model.init={dict(init)}: {type(cause).__name__}: {reason}"
        ) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"model._target_={target} gives a {type(made).__name__}; expected a torch.nn.Module")
    return made


def _find(target: str) -> Any:
    """The object of an import path. (Hydra's own finder logs several lines before it raises.)"""
    try:
        return _locate(target)
    except Exception as error:  # importing a user's module runs the user's code
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model._target_={target} cannot be imported: {reason}; expected package.module.Class, importable from here"
        ) from error


def _locate(target: str) -> Any:
    parts = target.split(".")
    if len(parts) < 2 or not all(parts):
        raise ImportError(f"{target!r} is not a dotted path")
    for n_modules in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:n_modules])
        try:
            found: Any = import_module(module)
        except ModuleNotFoundError as error:
            if n_modules > 1 and f"{module}.".startswith(f"{error.name}."):  # a class within a class, perhaps
                continue
            raise
        for name in parts[n_modules:]:
            found = getattr(found, name)
        return found
    raise ImportError(f"no module for {target!r}")


def plain_arguments(init: Any) -> dict[str, Any]:
    """`model.init` as plain Python values, whether it is a dict, an OmegaConf mapping or None."""
    if init is None:
        return {}
    if OmegaConf.is_config(init):
        init = OmegaConf.to_container(init, resolve=True)
    return {str(key): value for key, value in init.items()}
