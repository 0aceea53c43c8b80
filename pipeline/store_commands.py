"""Commands about a store that is there: `dlshap verify` and `dlshap status`. Neither needs a cluster or a model."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline import errors
from pipeline.arguments import Parser
from pipeline.errors import UserError
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.reader import Store

VERIFY_DESCRIPTION = """Read every byte of a store again, and compare it with what was committed.

Every array, chunk and record is looked at, and the references of some rows are drawn again. What is damaged, missing,
cut short or in another's place is named with its array, shard and rows, and the exit code is 1. With --repair it is
given up as well: the command that made the store then makes that anew, and nothing else.
"""
STATUS_DESCRIPTION = """Say how far a run has come: shards and rows, speed, time left, and what failed, by name.

It reads the files beside the store alone (STORE.run/), so it can be asked on any machine that sees them, at any time.
The exit code is 0 however the run stands; --json says it to programs.
"""


def verify_command(arguments: Sequence[str]) -> int:
    """`dlshap verify`: returns the exit code."""
    parser = _store_parser("verify", VERIFY_DESCRIPTION)
    parser.add_argument("--repair", action="store_true", help="give up what is damaged, so that the run makes it anew")
    parser.add_argument(
        "--sample", metavar="N", type=whole_number(0), help="rows whose references are drawn again (default: 100)"
    )
    options = parser.parse_args(arguments)

    from pipeline.commits import RunDirectory
    from pipeline.progress import FileProgress
    from pipeline.repair import repair
    from pipeline.verify import N_SAMPLED, verify

    directory = RunDirectory(options.store, place_options(options.option))
    with FileProgress("reading") as progress:
        verdict = verify(directory, N_SAMPLED if options.sample is None else options.sample, progress.advance)
    repaired = repair(directory, verdict) if options.repair and not verdict.sound else None
    if options.json:
        print(json.dumps({**verdict.to_dict(), "repaired": repaired}))
    else:
        print(verdict.text(repaired))
    return errors.EXIT_DONE if verdict.sound else errors.EXIT_FAILED


def status_command(arguments: Sequence[str]) -> int:
    """`dlshap status`: returns the exit code."""
    options = _store_parser("status", STATUS_DESCRIPTION).parse_args(arguments)

    from pipeline.commits import RunDirectory
    from pipeline.status import look

    status = look(RunDirectory(options.store, place_options(options.option)))
    print(json.dumps(status.to_dict()) if options.json else status.text())
    return errors.EXIT_DONE


def _store_parser(command: str, description: str) -> Parser:
    """What every command about a store understands."""
    parser = Parser(f"dlshap {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", metavar="STORE", help="path or URL of the store")
    parser.add_argument("--json", action="store_true", help="print the answer as a JSON object")
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="of an object store, such as endpoint=...; may be repeated",
    )
    return parser


def open_whole(url: str, allow_incomplete: bool, given: Sequence[str]) -> "Store":
    """A store to read from its beginning to its end: none of its files may be gone or cut short.

    Args:
        url, allow_incomplete: as `open_store` takes them.
        given: options of an object store, name=value.

    Raises:
        UserError: it cannot be opened, is not complete, or lacks files, whose values would read as if they were not
            computed yet.
    """
    from pipeline.commits import RunDirectory
    from pipeline.reader import open_store
    from pipeline.verify import wrong_sizes

    options = place_options(given)
    store = open_store(url, allow_incomplete, options)
    if store.complete and (wrong := wrong_sizes(RunDirectory(url, options).store, store.plan)):
        raise UserError(
            f"{store.url}: {counted(len(wrong), 'file')} gone or of another size than when it was completed, "
            f"{wrong[0]} first; `dlshap verify {store.url}` names what is, with --repair its run makes that anew"
        )
    return store


def whole_number(least: int) -> Callable[[str], int]:
    """A type of argparse's: whole numbers from `least` on."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least} on")
        return int(text)

    return number


def place_options(given: Sequence[str]) -> Mapping[str, str]:
    """The options of an object store, from name=value.

    Raises:
        UserError: one of them has no =.
    """
    pairs = [text.partition("=") for text in given]
    for text, (_, sign, _) in zip(given, pairs, strict=True):
        if not sign:
            raise UserError(f"--option {text}; expected name=value, such as region=eu-central-1")
    return {name: value for name, _, value in pairs}
