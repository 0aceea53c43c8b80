"""`dlshap status`: show how far a run has come. It needs no cluster and no model."""

import argparse
import time

from pipeline.cli.parser import JSON, STORE, Parser
from pipeline.messages import errors
from pipeline.messages.visible import to_json

WATCHED_EVERY_S = 5
HELP = "show how far a run has come"
DESCRIPTION = """Show how far a run has come: shards and rows, speed, time left, and what failed, by name.

It reads only the files beside the store (STORE.run/), so it works at any time, on any machine that sees them. The exit
code is 0 whatever the state of the run; --json is for programs. --watch prints it every 5 s until no command works on
the run any more; with --json, one object per line.
"""
PARENTS = (STORE, JSON)


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--watch",
        action="store_true",
        help=f"print it every {WATCHED_EVERY_S} s until no command works on the run",
    )


def run(options: argparse.Namespace) -> int:
    from pipeline.store.run_directory import RunDirectory
    from pipeline.store.status import read_status

    while True:
        status = read_status(RunDirectory(options.store, dict(options.options)))
        print(to_json(status.to_dict()) if options.json else status.text(), flush=options.watch)
        if not options.watch or not status.is_going_on:
            return errors.EXIT_DONE
        time.sleep(WATCHED_EVERY_S)
