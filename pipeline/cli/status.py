"""`dlshap status`: say how far a run has come. It needs no cluster and no model."""

import argparse

from pipeline.cli.parser import JSON, STORE
from pipeline.messages import errors
from pipeline.messages.visible import to_json

HELP = "say how far a run has come"
DESCRIPTION = """Say how far a run has come: shards and rows, speed, time left, and what failed, by name.

It reads the files beside the store alone (STORE.run/), so it can be asked on any machine that sees them, at any time.
The exit code is 0 however the run stands; --json says it to programs.
"""
PARENTS = (STORE, JSON)


def run(options: argparse.Namespace) -> int:
    from pipeline.store.run_directory import RunDirectory
    from pipeline.store.status import read_status

    status = read_status(RunDirectory(options.store, dict(options.options)))
    print(to_json(status.to_dict()) if options.json else status.text())
    return errors.EXIT_DONE
