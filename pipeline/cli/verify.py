"""`dlshap verify`: read every byte of a store again. It needs no cluster, and a model only with --recompute."""

import argparse
from typing import TYPE_CHECKING

from pipeline.cli.parser import JSON, STORE, TRUST, Parser, whole_number
from pipeline.cli.streams import stdout_to_stderr
from pipeline.messages import errors
from pipeline.messages.errors import UserError
from pipeline.messages.visible import to_json

if TYPE_CHECKING:
    from pipeline.store.run_directory import RunDirectory
    from pipeline.store.verify.findings import Findings

HELP = "read every byte of a store again, and name what is damaged"
DESCRIPTION = """Read every byte of a store again, and compare it with what was committed.

Every array, chunk and record is checked, and the references of some rows are drawn again. What is damaged, missing,
cut short or misplaced is named with its array, shard and rows, and the exit code is 1. It is also 1 if something that
was asked for cannot be checked (--sample 0 asks for no references). --repair also discards what is damaged: the command
that made the store then makes that part again, and nothing else.

--recompute N loads the model that the store names, runs it on N of its rows again, and compares the values. Settings of
the model may be given, such as model.checkpoint=elsewhere.pt; those that run code (model._target_) must be, unless
--trust-config says that the store is trusted.
"""
PARENTS = (STORE, JSON)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--repair", action="store_true", help="discard what is damaged, so that the run makes it again")
    help_ = "rows whose references are drawn again (default: 100)"
    parser.add_argument("--sample", metavar="N", type=whole_number(0), help=help_)
    help_ = "rows to run the model on again (default: none)"
    parser.add_argument("--recompute", metavar="N", type=whole_number(1), help=help_)
    help_ = "settings of the model for --recompute"
    parser.add_argument("--trust-config", action="store_true", help=TRUST)
    parser.add_argument("overrides", nargs="*", default=[], metavar="model.name=value", help=help_)


def run(options: argparse.Namespace) -> int:
    if options.overrides and options.recompute is None:
        raise UserError(f"dlshap verify STORE {options.overrides[0]}: settings of a model are for --recompute N")

    from pipeline.execution.verify import N_SAMPLED, verify
    from pipeline.messages.progress import file_progress
    from pipeline.store.run_directory import RunDirectory
    from pipeline.store.verify.repair import repair

    directory = RunDirectory(options.store, dict(options.options))
    with file_progress("reading") as advance:
        findings = verify(directory, N_SAMPLED if options.sample is None else options.sample, advance)
    if options.recompute is not None:
        _recompute(directory, options, findings)
    repaired = repair(directory, findings) if options.repair and not findings.sound else None
    if options.json:
        print(to_json({**findings.to_dict(), "repaired": repaired}))
    else:
        print(findings.text(repaired))
    return errors.EXIT_DONE if findings.sound and not findings.not_checked else errors.EXIT_FAILED


def _recompute(directory: "RunDirectory", options: argparse.Namespace, findings: "Findings") -> None:
    if any(problem.shard is None for problem in findings.problems):
        what = "rows are not computed again: files of the store that are of no single shard are damaged"
        findings.not_checked.append(what)
        return

    from pipeline.cli.settings import config_of
    from pipeline.config.overrides import as_overrides
    from pipeline.execution.recompute import recompute

    n, storage = options.recompute, as_overrides({f"store.options.{name}": value for name, value in options.options})
    given = [text for name, value in options.options for text in ("--option", f"{name}={value}")]
    command = ["verify", options.store, *given, "--recompute", str(n), *options.overrides]
    overrides = ["cluster=none", *storage, *options.overrides]
    config = config_of(overrides, None, options.store, command, options.trust_config)
    with stdout_to_stderr():
        recompute(directory, config.model, n, findings)
