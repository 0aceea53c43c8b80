"""Keras's files: what they say of a model, and their weights.

.h5             whole, of Keras 1 to 3: JSON in an attribute, weights in groups
.keras          a zip archive of config.json, metadata.json and model.weights.h5
.json           what the model is, for a file of weights alone
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.config import limits
from pipeline.messages.errors import UserError
from pipeline.models.keras_files.hdf5 import Hdf5, open_hdf5
from pipeline.models.zip_archive import members_of

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


@dataclass(frozen=True)
class KerasFile:
    """An open file: the model's description, the major version of Keras that wrote it, and the weights."""

    config: Any
    major: int
    weights: Hdf5


def is_keras(path: Path) -> bool:
    """Whether a file is HDF5, or a .keras archive."""
    with path.open("rb") as file:
        if file.read(4) == b"\x89HDF":
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


@contextmanager
def open_keras(path: Path, description: Path | None = None) -> Iterator[KerasFile]:
    """A file of Keras, `description` being the JSON for one of weights alone. Raises UserError where it is none."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"PK"):
        with _open_archive(path, description) as found:
            yield found
    elif head.startswith(b"\x89HDF"):
        with open_hdf5(path, str(path), limits.bytes_on_disk(path)) as weights:
            own, version = weights.text(weights.root, "model_config"), weights.text(weights.root, "keras_version")
            if own is None and description is None:
                raise UserError(
                    f"{path} holds weights alone; add the model's description, which model.to_json() writes: "
                    f"model.architecture=model.json"
                )
            text = _text(description) if description is not None else own or ""
            config = _json(text, str(description or path))
            yield KerasFile(config, _major(config.get("keras_version", version), config), weights)
    else:
        raise UserError(f"{path} is no file of Keras; expected .h5 (HDF5) or .keras")


@contextmanager
def _open_archive(path: Path, description: Path | None) -> Iterator[KerasFile]:
    if description is not None:
        raise UserError(f"{path} describes its model itself; leave model.architecture={description} out")
    try:
        members_of(path)  # no two of one name
        with zipfile.ZipFile(path) as archive:
            config = _json(_member_text(archive, _CONFIG, path), f"{_CONFIG} of {path}")
            metadata = _json(_member_text(archive, _METADATA, path), f"{_METADATA} of {path}")
            info = _member(archive, _WEIGHTS, path)
            if info.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path}: {_WEIGHTS} is compressed, which Keras does not do; save the model again")
            size = min(info.file_size, limits.bytes_on_disk(path))
            with archive.open(info) as stored, open_hdf5(stored, f"{_WEIGHTS} of {path}", size) as weights:
                yield KerasFile(config, _major(metadata.get("keras_version"), config), weights)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise UserError(f"{path} is a damaged .keras archive: {error}") from None


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(name)
    except KeyError:
        listed = ", ".join(archive.namelist()[:5])
        raise UserError(
            f"{path} has no {name} ({listed}); expected a .keras archive as model.save() writes it"
        ) from None


def _member_text(archive: zipfile.ZipFile, name: str, path: Path) -> str:
    with archive.open(_member(archive, name, path)) as file:
        return _decoded(file, f"{name} of {path}")


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return _decoded(file, str(path))


def _decoded(file: IO[bytes], what: str) -> str:
    most = limits.current().header_mb * limits.MB
    if len(content := file.read(most + 1)) > most:
        raise limits.too_long(what, "header_mb")
    return content.decode("utf-8", errors="replace")


def _json(text: str, what: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not JSON: {error}") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{what} holds a JSON {type(found).__name__}; expected an object")
    return found


def _major(version: Any, config: Mapping[str, Any]) -> int:
    """Of a version such as 2.2.4-tf; JSON alone says none from Keras 3 on."""
    head = str(version).partition(".")[0]
    return int(head) if head.isdecimal() and len(head) < 3 else 3 if "module" in config else 2
