"""Stores as a stranger may make them: what a seed says is changed, and checksums are mended, so that nobody notices."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.store.attributes import plan_of, sealed
from pipeline.store.checksums import seal, unseal
from pipeline.store.schema import ROOT, layout_of, shard_key

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    10**15,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../../etc/passwd",
    "/etc/passwd",
    "\ud800",
    "nul\0byte",
    "${oc.env:HOME}",
    [],
    [[]],
    [None],
    {},
    {"": None},
    {"../x": [1, 2]},
]
TEXTS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"attributes": {"complete": true, "format_version": ' + b"9" * 5000 + b"}}",
    b'{"attributes": {"complete": true, "format_version": 1}, "attributes": {"complete": 1}}',
    b'{"attributes": {"complete": NaN, "format_version": -Infinity}}',
]
ARRAYS: dict[str, list[Any]] = {  # what rows may hold
    "codes": [255, 4, 5],
    "attribution": [np.nan, np.inf, 3e38],
    "hypothetical": [np.nan, -np.inf],
    "prediction": [np.nan, np.inf],
    "reference_prediction": [np.nan, 3e38],
    "convergence_delta": [np.inf],
    "reference_checksum": [0],
    "name": ["", "\x1b[2J", "a\tb\n", "N" * 100_000, "s0"],
    "chrom": ["", "chr1\tx", "/etc"],
    "start": [-(2**63), 2**63 - 1, -1, 10**12],
    "end": [-(2**63), 2**63 - 1, 0],
    "source_row": [2**63 - 1, -1],
    "strand": ["", "-", "?" * 100],
    "target": ["", "../x", "a\nb", "=1+1"],
    "shard_bytes": [0, -1, 2**62],
    "shard_crc32": [0],
    "file_bytes": [-1, 2**62],
    "file": ["", "../../x", "/etc/passwd", "codes/c.0.0"],
}
KINDS = ("array", "value", "key", "text", "pipe", "folder", "link", "zero", "sparse", "cut", "noise", "gone", "stray")


def spoil(store: Path, seed: int) -> str:
    """Do something to a store or to the files beside it; returns what, in words."""
    generator = random.Random(seed)
    kind = generator.choice([*KINDS, "value", "value", "value", "key", "array", "array"])
    run = Path(f"{store}.run")
    files = sorted(path for folder in (store, run) for path in folder.rglob("*") if path.is_file())
    plain = [path for path in files if path.suffix == ".json"]
    if kind in ("value", "key"):
        path = generator.choice([store / ROOT] * len(plain) + plain)
        return f"{path.name}: {_spoil_values(path, kind, generator)}"
    if kind == "array":
        return _spoil_array(store, generator)
    path = generator.choice(plain if kind == "text" else files + [store / ROOT] * 9)
    if kind == "text":
        path.write_bytes(generator.choice(TEXTS))
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[: generator.randrange(1 + path.stat().st_size)])
    elif kind == "noise":
        path.write_bytes(generator.randbytes(generator.randrange(3000)))
    elif kind == "stray":
        name = generator.choice(["c.0.0.0", "c.²", "c.99999999999999999999.0.0", "c.-1", ".x", "zarr.json.1", "c.1.1"])
        (path.parent / name).write_bytes(b"x")
    else:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind in ("link", "zero"):
            path.symlink_to("/dev/zero" if kind == "zero" else generator.choice(["nowhere", "/etc/passwd", "."]))
        elif kind == "sparse":
            path.touch()
            os.truncate(path, 1 << 43)
    return f"{kind} {path}"


def _spoil_values(path: Path, kind: str, generator: random.Random) -> str:
    """Replace or take out one value of a JSON file, and mend its checksum."""
    values = json.loads(path.read_bytes())
    is_root = path.name == ROOT and "attributes" in values and "checksum" in values["attributes"]
    is_sealed = "checksum" in values
    if is_sealed:
        values = unseal(path.read_bytes())
    inner = values["attributes"] if is_root and generator.random() < 0.8 else values
    holder, key, where = values, None, []
    while isinstance(inner, dict | list) and inner:
        holder, key = inner, generator.choice(sorted(inner) if isinstance(inner, dict) else range(len(inner)))
        where.append(str(key))
        inner = holder[key]
        if generator.random() < 0.35:
            break
    new = copy.deepcopy(generator.choice(VALUES))
    if key is not None and kind == "key":
        del holder[key]
    elif key is not None:
        holder[key] = new
    if is_root and isinstance(values.get("attributes"), dict):
        path.write_bytes(sealed(values))
    else:
        path.write_bytes(seal(values) if is_sealed else json.dumps(values).encode())
    return f"{'.'.join(where)} {'is gone' if kind == 'key' else f'= {str(new)[:40]}'}"


def _spoil_array(store: Path, generator: random.Random) -> str:
    """Give one row of an array, or all, another value."""
    name = generator.choice(sorted(ARRAYS))
    value, every = generator.choice(ARRAYS[name]), generator.random() < 0.5
    respell(store, name, slice(None) if every else generator.randrange(4), value)
    return f"{name} is {str(value)[:40]!r} in {'every row' if every else 'a row'}"


def respell(store: Path, name: str, rows: slice | int, value: Any) -> None:
    """Give rows of an array another value, and what the store says of its files other sizes and checksums."""
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    values = np.asarray(group[name][:])  # type: ignore[index]
    values[rows if isinstance(rows, slice) else rows % len(values)] = value
    with zarr.config.set({"array.write_empty_chunks": True}):
        group[name][:] = values  # type: ignore[index]
    mend(store, with_files=name not in ("shard_bytes", "shard_crc32", "file_bytes", "file"))


def mend(store: Path, with_files: bool = True) -> None:
    """Have a store say the sizes and checksums that its files have; of the group's own records alone, or of all."""
    root, group = json.loads((store / ROOT).read_bytes()), zarr.open_group(store, mode="r+", use_consolidated=False)
    if with_files:
        plan = plan_of(root["attributes"])
        layout = layout_of(plan)
        shards = [[_record(store / shard_key(n, i, layout)) for n in layout] for i in range(plan.n_shards)]
        small = [_record(store / key) for key in np.asarray(group["file"][:]).tolist()]  # type: ignore[index]
        for column, (of_shards, of_files) in enumerate([("shard_bytes", "file_bytes"), ("shard_crc32", "file_crc32")]):
            group[of_shards][:] = np.array(shards)[..., column]  # type: ignore[index]
            group[of_files][:] = np.array(small)[..., column]  # type: ignore[index]
    if "files" in root["attributes"]:
        root["attributes"]["files"] = {key: _record(store / key) for key in root["attributes"]["files"]}
    (store / ROOT).write_bytes(sealed(root))


def _record(path: Path) -> list[int]:
    data = path.read_bytes()
    return [len(data), zlib.crc32(data)]


def copied(store: Path, place: Path) -> Path:
    """The same store elsewhere, with files of every kind beside it; what was there before is removed."""
    for path in (place, Path(f"{place}.run")):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(store, place)
    run = Path(shutil.copytree(f"{store}.run", f"{place}.run"))
    command = {"id": "0123456789ab", "host": "h", "process": 1, "machine": "m", "born": "1", "began": 1.0}
    failure = {"shard": 1, "start": 6, "stop": 12, "error": "no", "log": ""}
    for key, values in {"commands/0123456789ab": command, "failures/00000001.json": failure}.items():
        (run / key).parent.mkdir(exist_ok=True)
        (run / key).write_text(json.dumps(values))
    return place
