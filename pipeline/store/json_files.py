"""Reading JSON that someone else may have written: what is none, or more than a reader can hold, is a ValueError."""

import json
import re
from typing import Any

MOST_BYTES = 64 << 20
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(data: bytes | str) -> Any:
    """The values; ValueError for text that is no JSON, too long, nested too deeply, or holds what no text can."""
    data = data.encode() if isinstance(data, str) else data
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is {len(data)} bytes long; expected at most {MOST_BYTES}")
    try:
        values = json.loads(data)
        if _HALF_CHARACTER.search(data):
            json.dumps(values, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return values


def parse_object(data: bytes | str) -> dict[str, Any]:
    """The same of an object, the only thing that dlshap writes."""
    values = parse(data)
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__} where an object is expected")
    return values
