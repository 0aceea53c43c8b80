"""How large a configuration becomes: a short one may say the same thing ten times, of what says another ten times, ...

YAML does so with aliases, OmegaConf with interpolations. Both are measured without being carried out.
"""

import math
import os
import re
from typing import Any

from pipeline.messages.errors import UserError

MOST = 1_000_000  # characters and values
COST = 200  # of an interpolation, which takes as long as so many characters
MOST_NESTED = 4  # interpolations within others, whose keys are known only when they are carried out
_REFERENCE = re.compile(r"\$\{([^${}]*)\}")


def require_bounded_file(stream: Any, name: str) -> None:
    """Raises UserError for a file that is too large."""
    if hasattr(stream, "fileno") and (size := os.fstat(stream.fileno()).st_size) > MOST:
        raise UserError(f"{name} has {size} bytes; expected a configuration of at most {MOST}")


def require_bounded_yaml(root: Any, name: str) -> None:
    """Raises UserError where a node of YAML, from a file of this name, becomes too large by its aliases."""
    if _size_of_node(root, {}) > MOST:
        raise UserError(f"{name} has more than {MOST} values once its aliases (*) are replaced; write them out")


def _size_of_node(node: Any, known: dict[int, float]) -> float:
    """Characters and values of a node of YAML; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is measured
        inner = {
            "scalar": list,
            "sequence": lambda: node.value,
            "mapping": lambda: [part for pair in node.value for part in pair],
        }[node.id]()
        own = len(node.value) if node.id == "scalar" else 0
        known[id(node)] = 1 + own + sum(_size_of_node(part, known) for part in inner)
    return known[id(node)]


def require_bounded(settings: Any) -> None:
    """Raises UserError where the interpolations of a configuration, plain values, make it too large."""
    values: dict[str, Any] = {}
    _collect(settings, "", values)
    texts = [value for value in values.values() if isinstance(value, str) and "${" in value]
    nested = sum(text.count("${") - len(_REFERENCE.findall(text)) for text in texts)
    if nested > MOST_NESTED or _size_of_value("", values, {}) > MOST:
        raise UserError(
            f"the configuration has more than {MOST} values once its interpolations are replaced; write them out"
        )


def _collect(value: Any, key: str, values: dict[str, Any]) -> None:
    """Every value and mapping by its dotted key; lists have numbers."""
    values[key] = value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        _collect(inner, f"{key}.{name}" if key else str(name), values)


def _size_of_value(key: str, values: dict[str, Any], known: dict[str, float]) -> float:
    """Characters and values of what lies at a key. Of one that refers to itself nothing: OmegaConf refuses it."""
    if key not in known:
        known[key], value = 0, values.get(key)
        size = 1.0
        if isinstance(value, dict | list):
            names = value if isinstance(value, dict) else range(len(value))
            size += sum(_size_of_value(f"{key}.{name}" if key else str(name), values, known) for name in names)
        elif isinstance(value, str):
            size += len(value)
            for reference in _REFERENCE.findall(value):
                size += COST + _size_of_value(_target(reference, key), values, known)
        known[key] = size
    return known[key]


def _target(reference: str, key: str) -> str:
    """The key that an interpolation at a key refers to; dots before it lead upwards."""
    path = re.sub(r"\[([^\]]*)\]", r".\1", reference.strip())
    below = path.lstrip(".")
    above = key.split(".")[: len(below) - len(path)] if below != path else []
    return ".".join([*above, below])
