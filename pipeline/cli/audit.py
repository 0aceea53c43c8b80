"""`dlshap audit`: list how each operation of a model is treated."""

import argparse

from pipeline.cli.parser import SETTINGS
from pipeline.cli.streams import stdout_to_stderr
from pipeline.messages import errors

HELP = "list how each operation of a model is treated"
DESCRIPTION = """List every operation of a model, how each is treated, and how well contributions add up.

Takes the settings of `dlshap run`, and tries the model on the first sequence of its input and a shuffle of it. It uses
the device of this machine or, if the nodes of cluster.address have GPUs, one of these; the last line says which. The
exit code is 1 if an operation is refused: such a model cannot be run.
"""
PARENTS = (SETTINGS,)


def run(options: argparse.Namespace) -> int:
    from pipeline.cli.settings import config_of

    config = config_of(options.overrides, options.config_dir)

    from pipeline.execution.audit import audit_config

    with stdout_to_stderr():
        found, device = audit_config(config)
    print(found)
    print(f"tried on {device}")
    return errors.EXIT_FAILED if found.refused else errors.EXIT_DONE
