"""What may happen to the files of a finished store, drawn from a seed."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.schema import ARRAYS

KINDS = ("flip", "truncate", "empty", "delete", "append", "swap shards", "swap arrays", "swap files")


@dataclass(frozen=True)
class Damage:
    """One kind of damage, and the files that are no longer what they were."""

    kind: str
    keys: tuple[str, ...]


def copy_of(store: Path, place: Path, with_run: bool) -> Path:
    """The same store elsewhere, with or without its protocol files."""
    if with_run:
        shutil.copytree(f"{store}.run", f"{place}.run")
    return Path(shutil.copytree(store, place))


def keys_of(store: Path) -> list[str]:
    return sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())


def flip(path: Path, generator: random.Random) -> None:
    """Turn one bit around."""
    data = bytearray(path.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def damage(store: Path, kind: str, generator: random.Random) -> Damage:
    """Do something to a store."""
    if kind.startswith("swap"):
        one, other = _pair(store, kind, generator)
        swap(store / one, store / other)
        return Damage(kind, (one, other))
    key = generator.choice(keys_of(store))
    path, data = store / key, (store / key).read_bytes()
    if kind == "flip":
        flip(path, generator)
    elif kind == "truncate":
        path.write_bytes(data[: generator.randrange(1, len(data))])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "delete":
        path.unlink()
    else:
        path.write_bytes(data + generator.randbytes(generator.randrange(1, 9)))
    return Damage(kind, (key,))


def _pair(store: Path, kind: str, generator: random.Random) -> tuple[str, str]:
    """Two files with different content."""
    shards = [key for key in keys_of(store) if key.partition("/")[0] in ARRAYS and "/c." in key]
    while True:
        one = generator.choice(shards if kind != "swap files" else keys_of(store))
        array = one.partition("/")[0]
        others = {
            "swap shards": [key for key in shards if key.partition("/")[0] == array],
            "swap arrays": [key for key in shards if key.partition("/")[0] != array],
            "swap files": keys_of(store),
        }
        other = generator.choice(others[kind])
        if (store / one).read_bytes() != (store / other).read_bytes():
            return one, other
