"""Finding the storage backend of a path or a URL: each module of this package with SCHEMES and `open_url` is one."""

import pkgutil
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from pipeline.messages.errors import UserError
from pipeline.messages.secrets import refuse_values
from pipeline.messages.words import one_of
from pipeline.store import backends
from pipeline.store.backends.base import Backend
from pipeline.store.backends.local import LocalBackend

Open = Callable[[str, Mapping[str, str], Path | None], Backend]


def open_backend(url: str | Path, options: Mapping[str, str] | None = None, scratch: Path | None = None) -> Backend:
    """The backend of a path or a URL; nothing is read, written or made yet.

    Args:
        url: a path, or file:///folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.
        options, scratch: see ObjectStoreBackend and LocalBackend.

    Raises:
        UserError: another scheme, a URL without a bucket, or an option that the kind of store does not have.
    """
    refuse_values(url, "the path of the store")
    scheme, found, _ = str(url).partition("://")
    if isinstance(url, Path) or not found or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return LocalBackend(Path(url), scratch)
    known = _schemes()
    if scheme.lower() not in known:
        expected = one_of([f"{each}://" for each in known])
        raise UserError(f"{url}: expected a path, or a URL that starts with {expected}, not with {scheme}://")
    return known[scheme.lower()](str(url), options or {}, scratch)


@cache
def _schemes() -> dict[str, Open]:
    """What opens a URL of each scheme."""
    names = [f"{backends.__name__}.{module.name}" for module in pkgutil.iter_modules(backends.__path__)]
    modules = map(import_module, names)
    return {scheme: module.open_url for module in modules for scheme in getattr(module, "SCHEMES", ())}
