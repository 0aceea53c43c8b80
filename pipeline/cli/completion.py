"""`dlshap completion`: what a shell completes commands, options and settings from."""

import argparse

from pipeline.cli.parser import Parser, build
from pipeline.messages import errors

HELP = "print the code that completes the command line in bash and zsh"
DESCRIPTION = """Print the code for bash and zsh that completes commands, options, settings and their choices.

  eval "$(dlshap completion)"        # in ~/.bashrc; in ~/.zshrc after: autoload -U bashcompinit && bashcompinit

File names are completed as usual, also after the = of a setting.
"""
PARENTS = ()
SCRIPT = """_dlshap() {
    local line=${COMP_LINE:0:COMP_POINT} words
    local word=${line##* }
    case $line in
%s
        *) words='%s' ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ $word == *=* ]]; then COMPREPLY=("${COMPREPLY[@]#"${word%%%%=*}="}"); fi # a shell's word ends at =
    if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2> /dev/null; fi
}
complete -o default -F _dlshap dlshap"""


def run(options: argparse.Namespace) -> int:
    words: dict[str, list[str]] = {}
    for name in options.commands:
        root = build(options.commands, name)
        assert root.commands is not None
        words |= _words(name, root.commands.choices[name])
    cases = [f"        *' {command} '*) words='{' '.join(found)}' ;;" for command, found in reversed(words.items())]
    print(SCRIPT % ("\n".join(cases), " ".join(options.commands)))
    return errors.EXIT_DONE


def _words(name: str, parser: Parser) -> dict[str, list[str]]:
    """The words behind a command, and behind each of its subcommands."""
    inner = parser.commands.choices if parser.commands else {}
    found = [*inner, *(option for action in parser._actions for option in action.option_strings)]
    if any(action.dest == "overrides" for action in parser._actions):
        found += _settings()
    words = {name: found}
    for kind, each in inner.items():
        words |= _words(f"{name} {kind}", each)
    return words


def _settings() -> list[str]:
    """Every setting as `name=`, and every choice of a group as `group=choice`."""
    from pipeline.config.registry import GROUPS, names, schema
    from pipeline.config.schema import Config
    from pipeline.config.settings import settings_of

    chosen = [f"{group}={name}" for group in GROUPS for name in names(group)]
    configs = [Config(), *(Config(**{group: schema(group, name)()}) for group in GROUPS for name in names(group))]
    keys = {each.key for config in configs for each in settings_of(config)} - {f"{group}.name" for group in GROUPS}
    return chosen + sorted(f"{key}=" for key in keys)
