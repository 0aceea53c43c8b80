"""The store that a command reads from its beginning to its end."""

import argparse
import shlex
from typing import TYPE_CHECKING

from pipeline.messages.errors import UserError
from pipeline.messages.words import counted

if TYPE_CHECKING:
    from pipeline.store.reader import Store


def open_whole(options: argparse.Namespace) -> "Store":
    """The store that STORE, --option and --allow-incomplete name.

    UserError where a file is missing or cut short: its values would read as if they were not computed yet.
    """
    from pipeline.store.done_shards import wrong_sizes
    from pipeline.store.reader import open_store
    from pipeline.store.run_directory import RunDirectory

    given = dict(options.options)
    store = open_store(options.store, options.allow_incomplete, given)
    if store.complete and (wrong := wrong_sizes(RunDirectory(options.store, given).store, store.attrs)):
        raise UserError(
            f"{store.url}: {counted(len(wrong), 'file')} gone or of another size than when it was completed, "
            f"{wrong[0]} first; `dlshap verify {shlex.quote(store.url)}` names all of them; with --repair it removes "
            "them, and the command that made the store makes them again"
        )
    return store


def open_with_rows(options: argparse.Namespace) -> "Store":
    """As `open_whole`, of a store with a finished row at least."""
    store = open_whole(options)
    if not store.present.any():
        raise UserError(f"{store.url} is not complete, and none of its {counted(len(store), 'row')} is finished yet")
    return store
