"""One tree of parsers: the command line, its commands, and the arguments that several commands take."""

import argparse
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from pipeline.config.registry import choices
from pipeline.messages.errors import EXIT_CODES, UserError
from pipeline.messages.secrets import refuse_options

DESCRIPTION = """DeepLIFT/SHAP attributions of DNA sequence models, for many sequences, as a pipeline on Ray.

  dlshap run                                 the packaged example
  dlshap run model=bpnet model.checkpoint=ctcf.torch \\
      dataset=loci dataset.genome=hg38.fa dataset.loci=peaks.narrowPeak store.path=ctcf.zarr
"""
LISTED = ("model", "dataset")  # groups whose choices the first help names


class _NoOption(str):
    """An argument behind `--`."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is an error like any other of the user's: one line, or JSON where that is asked for.

    Attributes:
        commands: the parsers of its subcommands, if it has any.
    """

    def __init__(self, prog: str | None = None, **kwargs: Any) -> None:
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.commands: argparse._SubParsersAction[Parser] | None = None
        self.register("type", None, str)  # none of the class above

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; `{self.prog} --help` lists what it takes")

    def _parse_optional(self, arg_string: str) -> Any:
        """Argparse reads what is positional twice, and `--` only once."""
        return None if isinstance(arg_string, _NoOption) else super()._parse_optional(arg_string)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line whose options may stand anywhere after the names of its subcommands.

        argparse intermixes options and positional arguments only in a parser without subparsers, so these are chosen
        first.
        """
        if self.commands is None:
            end = arguments.index("--") if "--" in arguments else len(arguments)
            return self.parse_intermixed_args([*arguments[:end], *map(_NoOption, arguments[end + 1 :])])
        if arguments and arguments[0] in self.commands.choices:
            return self.commands.choices[arguments[0]].parse(arguments[1:])
        return self.parse_args(arguments)


def build(commands: Mapping[str, ModuleType], chosen: str | None) -> Parser:
    """The parser of the whole command line.

    Args:
        commands: by name, modules with HELP, DESCRIPTION, PARENTS (parsers of shared arguments), `run(options)`, which
            returns the exit code; if they have own arguments, `add_arguments(parser)`; and FOLDER_FILES, if a library
            of theirs takes settings from such files of the working folder. The options have `run` and `commands`.
        chosen: the only one whose arguments are added: some come from libraries that take a second to load.
    """
    groups = "\n".join(f"  {group + '=':9}{', '.join(choices(group))}" for group in LISTED)
    codes = "\n".join(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items())
    root = Parser(
        "dlshap",
        usage="dlshap [-h] [--version] COMMAND ...",
        description=DESCRIPTION,
        epilog=f"what `run` can be given:\n{groups}\n\nexit codes:\n{codes}\n\n"
        "`dlshap COMMAND --help` describes a command; that of `run` says what each of these is.",
    )
    root.add_argument("--version", action="version", version=f"dlshap {importlib.metadata.version('dlshap')}")
    root.commands = root.add_subparsers(title="commands", prog="dlshap", metavar="command")
    for name, command in commands.items():
        parser = root.commands.add_parser(
            name, help=command.HELP, description=command.DESCRIPTION, parents=command.PARENTS
        )
        parser.set_defaults(run=command.run, commands=commands)
        if name == chosen and hasattr(command, "add_arguments"):
            command.add_arguments(parser)
    return root


def whole_number(least: int) -> Callable[[str], int]:
    """A type of argparse's: whole numbers from `least` on."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least} on")
        return int(text)

    return number


def amount(text: str) -> float:
    """A type of argparse's: numbers from 0 on, such as money."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 on, such as 1.20")
    return number


def path_on_disk(*suffixes: str) -> Callable[[str], Path]:
    """A type of argparse's: paths of what a command writes, which end with one of the suffixes if any are given."""

    def path(text: str) -> Path:
        if "://" in text:
            raise argparse.ArgumentTypeError(f"{text} is written to a disk; give a path")
        if suffixes and Path(text).suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{text}: expected a name that ends with {', '.join(suffixes)}")
        return Path(text)

    return path


def _name_and_value(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:  # it is not repeated: it may be a secret
        raise argparse.ArgumentTypeError("expected name=value, such as region=eu-central-1")
    refuse_options([name], "--option ")
    return name, value


SETTINGS = Parser(add_help=False)
SETTINGS.add_argument("--config-dir", metavar="DIR", help="a folder with further choices for the groups")
SETTINGS.add_argument("overrides", nargs="*", metavar="name=value", help="settings, in Hydra's syntax")

STORE = Parser(add_help=False)
STORE.add_argument("store", metavar="STORE", help="path or URL of the store")
_HELP = "option of an object store, such as endpoint=...; may be repeated"
STORE.add_argument(
    "--option", dest="options", metavar="NAME=VALUE", type=_name_and_value, action="append", default=[], help=_HELP
)

TRUST = "also take the settings of the store that run code or connect to something; they are printed first"

INCOMPLETE = Parser(add_help=False)
INCOMPLETE.add_argument(
    "--allow-incomplete", action="store_true", help="take the finished rows of a store that is not complete"
)

JSON = Parser(add_help=False)
JSON.add_argument("--json", action="store_true", help="print the answer, or the error, as a JSON object")
