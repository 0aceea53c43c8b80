"""Places: where a store and its protocol files lie, a folder of a disk or a prefix of an object store.

    place.py     what a place is
    local.py     a folder
    objects.py   a prefix of an object store (S3, Google Cloud Storage, Azure)
    failures.py  what an object store answers, as an error for a person
    lease.py     the lock of an object store

All input and output goes through these few methods, whole files as bytes. Errors are of OSError's family, one line,
with the place and the key in them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import UserError
from pipeline.places.local import LocalPlace
from pipeline.places.objects import ObjectPlace
from pipeline.places.place import Entry, Place

__all__ = ["Entry", "LocalPlace", "ObjectPlace", "Place", "open_place"]

OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss")


def open_place(url: str | Path, options: Mapping[str, str] | None = None, scratch: Path | None = None) -> Place:
    """The place that a path or a URL names; nothing is read, written or made yet.

    Args:
        url: a path, or file:///folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.
        options: of an object store: endpoint, region, ... by obstore's names; credentials come from the environment.
        scratch: of a folder: where unfinished files lie; see LocalPlace.

    Raises:
        UserError: another scheme, a URL without a bucket, or an option that the kind of store does not have.
    """
    scheme, found, _ = str(url).partition("://")
    if isinstance(url, Path) or not found or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return LocalPlace(Path(url), scratch)
    if scheme.lower() == "file":
        return LocalPlace(_file_path(str(url)), scratch)
    if scheme.lower() not in OBJECT_SCHEMES:
        raise UserError(
            f"{url}: a place is a path, or starts with file://, s3://, gs:// or az://, not with {scheme}://"
        )
    if not urlsplit(str(url)).netloc:
        raise UserError(f"{url}: there is no bucket in it; expected {scheme}://bucket/prefix")
    return ObjectPlace(str(url), options)


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{url}: a file of another host; write file:///{parts.netloc}{parts.path} if it is of this one")
    return Path(unquote(parts.path))
