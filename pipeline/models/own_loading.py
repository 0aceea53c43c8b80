"""Modules with a way of their own to load a state dict: hooks, `_load_from_state_dict` or `load_state_dict` of a class.

Such a module may rename weights or give them other shapes, which its names and shapes do not tell. Torch's own loading,
in which all names must be used, says whether it takes a file.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.models.hashing import is_library, state_of
from pipeline.models.names import Expected, Match, without_wrappers


def is_own(module: nn.Module) -> bool:
    """Whether a class or a hook that is not torch's takes part in loading a state dict."""
    return any(not is_library(part) for child in module.modules() for part in _parts(child))


def _parts(module: nn.Module) -> list[Any]:
    hooks = [*module._load_state_dict_pre_hooks.values(), *module._load_state_dict_post_hooks.values()]
    own = [getattr(hook, "hook", hook) for hook in hooks]  # torch wraps some
    found = [getattr(hook, "func", hook) for hook in own]  # of a partial
    return [type(module)._load_from_state_dict, type(module).load_state_dict, *found]


def load(module: nn.Module, state: Mapping[str, Any], versions: Mapping[str, Any] | None) -> Match | None:
    """Load a state dict, as it is, or under other names: without wrappers, without a prefix that all names share, with
    one that all names of the module share.

    Args:
        module: to load it into.
        state: of a file.
        versions: of its modules; None: as the module's own.

    Returns:
        How it was taken, or None where the module refuses all, and is as before.
    """
    before = {name: value.clone() for name, value in state_of(module).items() if _has_values(value)}
    for added, removed in product(Expected(state_of(module)).prefixes(), Expected(state).prefixes()):
        own = {added + name.removeprefix(removed): value for name, value in state.items()}
        bare = {without_wrappers(name): value for name, value in own.items()}
        for names in [own, bare] if [*bare] != [*own] else [own]:
            match = Match({}, removed, added, (), names is bare)
            of_file = current_versions(module) if versions is None else match.renamed(versions)
            if _is_loaded(module, with_versions(names, of_file)):
                return match
            _restore(module, before)
    return None


def current_versions(module: nn.Module) -> dict[str, Any]:
    """What torch would write of the versions of a module's parts."""
    return dict(getattr(state_of(module), "_metadata", {}))


def with_versions(state: Mapping[str, Any], versions: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """A state dict as torch writes it: classes may read weights of older versions otherwise."""
    ordered = OrderedDict(state)
    if versions:
        ordered._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return ordered


def _is_loaded(module: nn.Module, state: OrderedDict[str, Any]) -> bool:
    try:
        module.load_state_dict(state)
    except Exception:  # noqa: BLE001  (the user's code; names are compared and told next, as for any other module)
        return False
    return True


def _restore(module: nn.Module, before: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in state_of(module).items():
            if name in before and value.shape == before[name].shape:
                value.copy_(before[name])


def _has_values(value: Any) -> bool:
    return isinstance(value, Tensor) and not is_lazy(value)
