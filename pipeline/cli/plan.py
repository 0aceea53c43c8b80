"""`dlshap plan`: estimate what a run would cost."""

import argparse

from pipeline.cli.parser import JSON, SETTINGS, Parser, amount
from pipeline.cli.streams import stdout_to_stderr
from pipeline.messages import errors
from pipeline.messages.visible import to_json

HELP = "estimate what a run would cost"
DESCRIPTION = """Estimate what a run would cost: rows, shards, device hours, bytes, files, time, money.

Takes the settings of `dlshap run`, reads its whole input once, times the first rows through its model, and works out
the rest. It times them on the device of this machine or, if the nodes of cluster.address have GPUs, on one of these;
the line `device` says which. The pool need not exist yet: cluster=address cluster.address=auto cluster.max_actors=40
plans for it, and --price-per-hour adds what it costs. No store is made. The errors are those that would stop the run
before its first shard.
"""
PARENTS = (SETTINGS, JSON)
PRICE = "price of what one actor runs on, a GPU with its share of the machine, in any currency, such as 1.20"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--price-per-hour", type=amount, metavar="PRICE", help=PRICE)


def run(options: argparse.Namespace) -> int:
    from pipeline.cli.settings import config_of

    config = config_of(options.overrides, options.config_dir)

    from pipeline.execution.cost_estimate import estimate_config

    with stdout_to_stderr():
        found = estimate_config(config, options.price_per_hour)
    print(to_json(found.to_dict()) if options.json else found.text())
    return errors.EXIT_DONE
