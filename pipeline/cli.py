"""The command line: `dlshap run [group=choice] [name=value] ...`.

Results go to stdout, everything else to stderr. Errors of the user are one line, `dlshap: error: ...`.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import errors
from pipeline.arguments import Parser
from pipeline.choices import choices, listing
from pipeline.config import Config, explain, from_mapping
from pipeline.errors import RunError, Stopped, UserError
from pipeline.export_command import export_command
from pipeline.report.commands import logo_command, report_command
from pipeline.store_commands import status_command, verify_command

DESCRIPTION = """DeepLIFT/SHAP attributions of DNA sequence models, for many sequences, as a pipeline on Ray.

  dlshap run                                 the packaged example
  dlshap run model=bpnet model.checkpoint=ctcf.torch \\
      dataset=loci dataset.genome=hg38.fa dataset.loci=peaks.narrowPeak store.path=ctcf.zarr
"""
RUN_DESCRIPTION = """Attribute every sequence of an input, and write one Zarr store.

The same command again goes on where it stopped, and does nothing when the store is finished. With no settings it is the
packaged example.

  dlshap run model=bpnet model.checkpoint=ctcf.torch \\
      dataset=loci dataset.genome=hg38.fa dataset.loci=peaks.narrowPeak store.path=ctcf.zarr

Of each group one is chosen, as in dataset=fasta; its own settings come after a dot, as in dataset.path=x.fa.
"""
RUN_EPILOG = """Other settings that are often needed:
  engine.targets=[0,3]|all   engine.device=auto|cpu|cuda   engine.batch_size=auto   engine.reverse_complement=average
  seed=0   store.path=attributions.zarr   store.rows_per_shard=128   store.per_fold=true   run.shards=0-9
  dataset.args=[column,x.npy]: further inputs of the model

`dlshap run --cfg job` prints every setting with its value, and the README and pipeline/config.py describe them.
"""
LISTED = ("model", "dataset")  # groups whose choices the first help names
EXPLAINED = ("model", "dataset", "references", "cluster", "experiment")  # and those of each that `run --help` explains
PLAN_DESCRIPTION = """Say what a run would cost, and spend nothing: rows, shards, device hours, bytes, files, time.

Takes the settings of `dlshap run`, reads its whole input once, times the first rows through its model on the device
here, and works out the rest. No store is made. Errors are those with which the run would end before its first shard.
"""
AUDIT_DESCRIPTION = """List every operation of a model, how each is treated, and how well contributions add up.

Takes the settings of `dlshap run`, and tries the model on the first sequence of its input and a shuffle of it. The exit
code is 1 where an operation is refused: such a model cannot be run.
"""


def compose_config(overrides: Sequence[str], config_dir: str | None = None, store: str | None = None) -> Config:
    """The configuration that a list of Hydra overrides (`name=value`) describes.

    Args:
        overrides: as on the command line.
        config_dir: a folder with further choices for the groups.
        store: one whose run is to be repeated, but for the overrides.

    Raises:
        UserError: one line about the first override that cannot be used, or the store does not say how it was made.
    """
    ConfigStore.instance().store(name="schema", node=Config)
    search = [] if config_dir is None else [f"hydra.searchpath=[file://{_require_folder(config_dir)}]"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("conf", version_base="1.3"):
            composed = compose("config", [*search, *map(_with_new_keys, overrides)])
        if store is not None:
            composed = _repeated(store, composed, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from None
    config = from_mapping(composed)
    if config.cluster.code is not None:
        _search(str(Path(config.cluster.code).absolute()))
    return config


def _repeated(store: str, composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration that a store was made with, under the overrides that `composed` was made with.

    A group that is chosen anew comes from `composed` whole; other settings are replaced one by one.
    """
    from pipeline.places import open_place
    from pipeline.store import read_attributes

    options = OmegaConf.to_container(composed.store.options)
    assert isinstance(options, dict)
    attributes = read_attributes(open_place(store, {str(name): str(value) for name, value in options.items()}))
    if attributes is None or "config" not in attributes:
        raise UserError(f"--config-from {store}: there is no store there that says how it was made")
    repeated = OmegaConf.create(attributes["config"])
    assert isinstance(repeated, DictConfig)
    repeated.store.path, repeated.run.shards = store, None  # the whole of it, in the same place unless it is named
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key == "experiment":
            raise UserError("--config-from and experiment=... contradict each other; give the experiment's settings")
        OmegaConf.update(repeated, key, OmegaConf.select(composed, key), merge=False, force_add=True)
    return repeated


def _with_new_keys(override: str) -> str:
    """Settings that are mappings hold whatever the user's class, object store or cluster takes: their keys are new."""
    return f"++{override}" if re.match(r"(model\.init|store\.options|cluster\.resources)[.=]", override) else override


def _require_folder(path: str) -> Path:
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise UserError(f"--config-dir {path} is not a folder")
    return folder


def _settings_parser(command: str, description: str, epilog: str | None = None) -> Parser:
    """What every command that takes a configuration understands."""
    parser = Parser(
        f"dlshap {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with further choices for the groups")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, in Hydra's syntax")
    return parser


def run_command(arguments: Sequence[str]) -> int:
    """`dlshap run`: returns the exit code."""
    groups = "\n\n".join(f"{group}=\n{listing(group)}" for group in EXPLAINED)
    parser = _settings_parser("run", RUN_DESCRIPTION, f"{groups}\n\n{RUN_EPILOG}")
    parser.add_argument("--cfg", choices=["job"], help="print the whole configuration and stop")
    parser.add_argument("--config-from", metavar="STORE", help="repeat the run that made a store, but for the settings")
    parser.add_argument("--json", action="store_true", help="print the summary, or the error, as a JSON object")
    options = parser.parse_intermixed_args(arguments)
    config = compose_config(options.overrides, options.config_dir, options.config_from)
    if options.cfg:
        print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="")
        return errors.EXIT_DONE

    from pipeline.driver import run_config  # torch, Zarr: seconds that a mistyped setting need not wait for

    with stdout_to_stderr():
        summary = run_config(config)
    print(json.dumps(asdict(summary)) if options.json else summary.text())
    return errors.EXIT_DONE


def audit_command(arguments: Sequence[str]) -> int:
    """`dlshap audit`: returns the exit code."""
    options = _settings_parser("audit", AUDIT_DESCRIPTION).parse_intermixed_args(arguments)
    config = compose_config(options.overrides, options.config_dir)

    from pipeline.driver import audit_config

    with stdout_to_stderr():
        found = audit_config(config)
    print(found)
    return errors.EXIT_FAILED if found.refused else errors.EXIT_DONE


def plan_command(arguments: Sequence[str]) -> int:
    """`dlshap plan`: returns the exit code."""
    parser = _settings_parser("plan", PLAN_DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_intermixed_args(arguments)
    config = compose_config(options.overrides, options.config_dir)

    from pipeline.estimate import estimate_config

    with stdout_to_stderr():
        found = estimate_config(config)
    print(json.dumps(found.to_dict()) if options.json else found.text())
    return errors.EXIT_DONE


STOPPED = {signal.SIGTERM: errors.EXIT_STOPPED, signal.SIGINT: errors.EXIT_INTERRUPTED}
GRACE_S = 20  # for the way out after a signal; what is not finished by then is done again by the same command
END_S = 5  # for the end of the interpreter after that
COMMANDS = {
    "run": (run_command, "attribute every sequence of an input"),
    "plan": (plan_command, "say what a run would cost, and spend nothing"),
    "audit": (audit_command, "list how each operation of a model is treated"),
    "status": (status_command, "say how far a run has come"),
    "verify": (verify_command, "read every byte of a store again, and name what is damaged"),
    "export": (export_command, "write rows of a store in the format of another tool"),
    "report": (report_command, "write one page about a store, with pictures"),
    "logo": (logo_command, "draw a sequence of a store as letters to scale"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process with an exit code (see errors.py)."""
    exit_code = dispatch(sys.argv[1:] if arguments is None else arguments)
    if exit_code in STOPPED.values():
        for number in STOPPED:
            signal.signal(number, signal.SIG_IGN)
        _end_after(END_S, exit_code)
    sys.exit(exit_code)


def dispatch(arguments: Sequence[str]) -> int:
    """Run a command line, and turn errors into a line on stderr and an exit code."""
    commands = "\n".join(f"  {name:8}{summary}" for name, (_, summary) in COMMANDS.items())
    kinds = "\n".join(f"  {group + '=':9}{', '.join(choices(group))}" for group in LISTED)
    parser = Parser(
        "dlshap",
        usage="dlshap [-h] [--version] COMMAND ...",
        description=DESCRIPTION,
        epilog=f"commands:\n{commands}\n\nwhat `run` can be given:\n{kinds}\n\n"
        "`dlshap COMMAND --help` describes a command; that of `run` says what each of these is.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dlshap {importlib.metadata.version('dlshap')}")
    parser.add_argument("command", nargs="?", choices=[*COMMANDS], help=argparse.SUPPRESS)
    as_json = "--json" in arguments
    try:
        options = parser.parse_args(arguments[:1])
        if options.command is None:
            parser.print_help()
            return errors.EXIT_DONE
        _search(os.getcwd())
        with signals_stop():
            return COMMANDS[options.command][0](arguments[1:])
    except UserError as error:
        return complain(error, errors.EXIT_BAD_INPUT, as_json)
    except (RunError, OSError) as error:  # OSError: a disk that is full or gone
        return complain(error, errors.EXIT_FAILED, as_json)
    except Stopped as stop:
        text = "stopped; what is committed is kept, and the same command goes on from there"
        print(f"dlshap: {text}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": text, "exit_code": stop.exit_code}))
        return stop.exit_code


def _search(folder: str) -> None:
    """Look for a user's own classes in a folder too; last, so that no file there shadows an installed module."""
    if folder not in sys.path:
        sys.path.append(folder)


def complain(error: Exception, exit_code: int, as_json: bool = False) -> int:
    """One line on stderr; for programs an object on stdout."""
    text = " ".join(str(error).split())
    print(f"dlshap: error: {text}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": text, "exit_code": exit_code}))
    return exit_code


@contextlib.contextmanager
def signals_stop() -> Iterator[None]:
    """SIGTERM (a time limit, a spot notice) and Ctrl-C raise `Stopped`, with the exit code of each.

    The way out takes no longer than GRACE_S: then the process ends all the same, with that code.
    """
    watchdogs: list[threading.Timer] = []

    def stop(number: int, frame: FrameType | None) -> None:
        for name in STOPPED:
            signal.signal(name, signal.SIG_IGN)  # a second signal must not interrupt the way out
        exit_code = STOPPED[signal.Signals(number)]
        watchdogs.append(_end_after(GRACE_S, exit_code))
        raise Stopped(exit_code)

    before = {number: signal.signal(number, stop) for number in STOPPED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for watchdog in watchdogs:
            watchdog.cancel()


def _end_after(seconds: float, exit_code: int) -> threading.Timer:
    """End this process after a time, whatever it is doing then."""
    watchdog = threading.Timer(seconds, os._exit, [exit_code])
    watchdog.daemon = True
    watchdog.start()
    return watchdog


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Whatever libraries and their child processes print goes to stderr: stdout is for results alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
