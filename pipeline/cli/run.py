"""`dlshap run`: attribute every sequence of an input."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.cli.parser import JSON, SETTINGS, TRUST, Parser
from pipeline.cli.streams import stdout_to_stderr
from pipeline.messages import errors
from pipeline.messages.visible import to_json

if TYPE_CHECKING:
    from pipeline.config.schema import Config

HELP = "attribute every sequence of an input"
DESCRIPTION = """Attribute every sequence of an input, and write one Zarr store.

The same command again goes on where it stopped, and does nothing when the store is finished. With no settings it is the
packaged example.

  dlshap run model=bpnet model.checkpoint=ctcf.torch \\
      dataset=loci dataset.genome=hg38.fa dataset.loci=peaks.narrowPeak store.path=ctcf.zarr

Choose one of each group, as in dataset=fasta. The settings of a group follow a dot, as in dataset.path=x.fa.
"""
EPILOG = """Other settings that are often needed:
  engine.targets=[0,3]|all|["[5] - mean(others)"]   'model.head=[counts,profile_midpoint]'
  engine.device=auto|cpu|cuda   engine.batch_size=auto   engine.reverse_complement=average
  seed=0   store.path=attributions.zarr   store.rows_per_shard=128   store.per_fold=true   run.shards=0-9
  dataset.args=[column,x.npy]: extra inputs of the model

`dlshap run --cfg job` prints every setting with its value, and docs/reference/settings.md describes them.
"""
EXPLAINED = ("model", "dataset", "references", "cluster", "experiment")  # groups whose choices the help explains
MULTIRUN = "a run of each value, as in seed=0,1,2 or model.checkpoint=choice(a.pt,b.pt), each with a store of its own"
PARENTS = (SETTINGS, JSON)


def add_arguments(parser: Parser) -> None:
    from pipeline.config.registry import listing

    groups = "\n\n".join(f"{group}=\n{listing(group)}" for group in EXPLAINED)
    parser.epilog = f"{groups}\n\n{EPILOG}"
    parser.add_argument("--cfg", choices=["job"], help="print the whole configuration and stop")
    parser.add_argument(
        "--config-from", metavar="STORE", help="repeat the run that made a store, except for the settings given here"
    )
    parser.add_argument("-m", "--multirun", action="store_true", help=MULTIRUN)
    parser.add_argument("--trust-config", action="store_true", help=TRUST)


def run(options: argparse.Namespace) -> int:
    from omegaconf import OmegaConf

    from pipeline.cli import multirun
    from pipeline.cli.settings import config_of

    given = ["--config-dir", options.config_dir] if options.config_dir else []
    command = ["run", "--config-from", str(options.config_from), *given, *options.overrides]

    def configured(overrides: Sequence[str]) -> "Config":
        return config_of(overrides, options.config_dir, options.config_from, command, options.trust_config)

    if options.multirun:
        return multirun.run(options, configured)
    config = configured(options.overrides)
    if options.cfg:
        print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="")
        return errors.EXIT_DONE

    from pipeline.execution.host import keep_freed_memory
    from pipeline.execution.run import run_config  # torch, Zarr: seconds that a mistyped setting need not wait for

    keep_freed_memory()  # this process computes: the first sequences, or all of them
    with stdout_to_stderr():
        summary = run_config(config)
    print(to_json(asdict(summary)) if options.json else summary.text())
    return errors.EXIT_DONE
