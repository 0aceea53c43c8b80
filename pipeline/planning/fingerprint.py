"""What the values of a run depend on. Two runs with equal fingerprints write the same bits.

The number of workers, the order of the shards, stops and resumes, and the form of the input are not here: they cannot
change a value.
"""

from collections.abc import Mapping
from typing import Any


def make_fingerprint(
    *, model: Mapping[str, Any], data: Mapping[str, Any], settings: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """One flat mapping of field to plain value.

    Args:
        model: `LoadedModel.identity`.
        data: hash of the canonical input, rows, length, and hashes of the model's extra inputs.
        settings: every setting that says nothing else (see config/settings.py), and what the others resolve to.
        machine: versions and code of dlshap and torch, kind of device.
    """
    parts = {"model": model, "input": data, "settings": settings, "machine": machine}
    return {f"{part}.{key}": value for part, values in parts.items() for key, value in sorted(values.items())}


def differences(
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    where: Mapping[str, str] | None = None,
    sides: tuple[str, str] = ("there", "here"),
) -> list[str]:
    """A phrase for each field in which two fingerprints differ, with both values, and `where` a field comes from;
    `sides` is what the two are called.

    The attributes of a model's modules (`model.settings.`) are named where nothing else differs: of another model there
    are dozens, which say no more than its class, its weights or its head.
    """
    differing = [
        field
        for field in sorted({*stored, *wanted})
        if stored.get(field) != wanted.get(field) and repr(stored.get(field)) != repr(wanted.get(field))  # NaN is NaN
    ]
    telling = [field for field in differing if not field.startswith("model.settings.")]
    return [
        f"{field} is {_short(stored.get(field))} {sides[0]} and {_short(wanted.get(field))} {sides[1]}"
        + (f" ({where[field]})" if where and field in where else "")
        for field in telling or differing
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
