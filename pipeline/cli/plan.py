"""`dlshap plan`: say what a run would cost."""

import argparse

from pipeline.cli.parser import JSON, SETTINGS
from pipeline.cli.settings import config_of
from pipeline.cli.streams import stdout_to_stderr
from pipeline.messages import errors
from pipeline.messages.visible import to_json

HELP = "say what a run would cost, and spend nothing"
DESCRIPTION = """Say what a run would cost, and spend nothing: rows, shards, device hours, bytes, files, time.

Takes the settings of `dlshap run`, reads its whole input once, times the first rows through its model on the device
here, and works out the rest. No store is made. Errors are those with which the run would end before its first shard.
"""
PARENTS = (SETTINGS, JSON)


def run(options: argparse.Namespace) -> int:
    config = config_of(options.overrides, options.config_dir)

    from pipeline.execution.cost_estimate import estimate_config

    with stdout_to_stderr():
        found = estimate_config(config)
    print(to_json(found.to_dict()) if options.json else found.text())
    return errors.EXIT_DONE
