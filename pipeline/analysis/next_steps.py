"""What can be done with a finished store, as command lines."""

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class Step:
    """What for, the command line, and the files that it writes, relative to the folder that it is run in."""

    purpose: str
    command: str
    files: tuple[str, ...] = ()


def named_like(url: str, suffix: str) -> str:
    """A name for what is made of a store, in the working folder; no tool takes it for an option."""
    name = (PurePath(url).stem or "out") + suffix
    return f"./{name}" if name.startswith("-") else name
