"""`dlshap doctor`: what is installed here and what the machine has, for bug reports."""

import argparse

from pipeline.cli.parser import JSON
from pipeline.messages import errors
from pipeline.messages.visible import in_lines, to_json

HELP = "show what is installed and what this machine has, for bug reports"
DESCRIPTION = """Show what is installed and what this machine has: Python, libraries, devices, memory, disks, limits.

Nothing is started, written or sent. Credentials are not shown, only whether they are set. The exit code is 1 if a
library that a run needs is missing, or has a version that dlshap does not accept.
"""
PARENTS = (JSON,)


def run(options: argparse.Namespace) -> int:
    from pipeline.execution.doctor import examine

    found = examine()
    if options.json:
        print(to_json(found))
    else:
        groups = ((name, value if isinstance(value, dict) else {"": value}) for name, value in found.items())
        print(in_lines(f"{name:<12}{_words(key, value)}" for name, group in groups for key, value in group.items()))
    return errors.EXIT_FAILED if found["problems"] else errors.EXIT_DONE


def _words(key: str, value: object) -> str:
    text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
    return f"{key} {text}" if key else text
