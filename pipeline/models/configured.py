"""Classes that take one object of settings, `Model(config)`, of the class that they name as `config_class`.

It is transformers' way. The settings are given like arguments, `model.init.dim=96`, or by the `config.json` beside
the weights.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.messages.errors import UserError
from pipeline.messages.secrets import one_line

CONFIG = "config"  # the argument


def config_class(called: Callable[..., Any]) -> type | None:
    """The class of a model's settings, where the model takes such and nothing else that must be given."""
    found = getattr(called, "config_class", None)
    if not (isinstance(called, type) and isinstance(found, type)):
        return None
    needed = [each.name for each in inspect.signature(called).parameters.values() if each.default is each.empty]
    return found if needed[:1] == [CONFIG] else None


def configured(called: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model: its settings as one object, where it takes such.

    Raises:
        UserError: the class of the settings does not take them.
    """
    found = config_class(called)
    if found is None or CONFIG in settings:
        return dict(settings)
    taken = set(inspect.signature(called).parameters) - {CONFIG}
    try:
        config = found(**{name: value for name, value in settings.items() if name not in taken})
    except Exception as error:
        raise UserError(
            f"{found.__name__} does not take model.init={dict(settings)}: {type(error).__name__}: {one_line(error)}"
        ) from error
    return {CONFIG: config} | {name: value for name, value in settings.items() if name in taken}
