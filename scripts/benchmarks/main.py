"""The command: which suites, with which options, and what is written."""

import argparse
import dataclasses
import importlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.contenders import is_installed
from benchmarks.models import SUBJECTS
from benchmarks.options import Options

# Modules of this package with a function run(options), in the order in which they run
SUITES = {
    "engine": "the engine against plain autograd (the floor), tangermeme and captum",
    "profiles": "where the time of one batch and of one shard goes",
    "memory": "peak memory per pair",
    "long": "peak memory and time of one pair of a long sequence, by engine.checkpoint",
    "dtypes": "what reduced numbers do to attributions, and the time they save",
    "gpu": "all that is asked of a GPU, within eight minutes",
    "shuffles": "dinucleotide shuffles in a second",
    "store": "writing shards",
    "precision": "what store.precision_bits saves, and what it does to TF-MoDISco's result",
    "references": "what the spread of a few references says of many, against brute force",
    "outputs": "exports, report, comparison and verify of a store of 100,000 rows",
    "shard": "a shard in this process against the engine alone, one thread",
    "pipeline": "whole runs on Ray against the engine in plain processes, one thread each",
    "scale": "input, driver and store by runs with a stand-in for the model, against the model of costs",
}
PEERS = ("tangermeme", "captum")
BEYOND_THE_CORE = ("zarr", "hydra", "obstore")  # packages that dlshap_core does without
CORE_ALONE = ("engine", "memory", "long", "dtypes", "gpu", "shuffles")
NEEDED = {suite: BEYOND_THE_CORE for suite in SUITES if suite not in CORE_ALONE}
NEEDED["precision"] += ("modiscolite", "h5py")


def main() -> None:
    """Run the suites that are asked for, or all."""
    parser = make_parser()
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(SUITES):
        parser.error(f"no suite is called {' or '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    if unknown := set(arguments.models) - set(SUBJECTS):
        parser.error(f"no model is called {' or '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    if "gpu" in arguments.suites and not torch.cuda.is_available():
        parser.error("gpu: torch finds no GPU here")
    torch.set_num_threads(arguments.threads)
    if all(map(is_installed, BEYOND_THE_CORE)):
        from pipeline.execution.host import keep_freed_memory

        keep_freed_memory()  # for all contenders, as a run's workers do
    options = options_of(arguments)
    # Of all contenders, which take what the process has set; torch's own default has convolutions alone in TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.allow_tf32
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "options": {**dataclasses.asdict(options), "device": str(options.device)},
    }
    print(machine.in_words(results["machine"]))
    for peer in PEERS:
        if not is_installed(peer):
            print(f"{peer} is not installed and left out")
    for suite in arguments.suites or SUITES:
        for figures in run_suite(suite, options):
            results[suite] = figures
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def run_suite(suite: str, options: Options) -> Iterator[dict[str, Any]]:
    """Figures of one suite, or why there are none; again and again with more of them where it gives them in parts."""
    print(f"\n== {suite}: {SUITES[suite]}", flush=True)
    missing = [package for package in NEEDED.get(suite, ()) if not is_installed(package)]
    missing += [] if suite != "gpu" or torch.cuda.is_available() else ["a GPU"]
    if missing:
        print(f"  left out, without {' and '.join(missing)}")
        yield {"left_out": missing}
        return
    started = time.monotonic()
    on = torch.device("cuda" if suite == "gpu" else "cpu")
    figures = importlib.import_module(f"benchmarks.{suite}").run(dataclasses.replace(options, device=on))
    if isinstance(figures, Iterator):
        parts: dict[str, Any] = {}
        for name, part in figures:
            parts[name] = part
            yield parts
    else:
        yield figures
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    described = "\n".join(f"  {name:<10} {text}" for name, text in SUITES.items())
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description="What the parts of the project cost: ratios from interleaved runs, with medians and quartiles.",
        epilog=f"suites:\n{described}\n\nResults of some machines: scripts/benchmarks/README.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="all if none is given")
    parser.add_argument("--quick", action="store_true", help="short sequences and few rounds: within three minutes")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads; all cores")
    parser.add_argument("--models", type=names, default=(), metavar="A,B", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--peers", type=names, default=PEERS, metavar="A,B", help="of tangermeme, captum; none")
    parser.add_argument("--targets", type=numbers, default=(), metavar="N,N", help="of 1, 10")
    parser.add_argument("--references", type=numbers, default=(), metavar="N,N", help="of 2, 20")
    parser.add_argument("--batch-size", type=int, default=0, metavar="N", help="instead of the best of each")
    parser.add_argument(
        "--budget",
        dest="budget_s",
        type=float,
        metavar="SECONDS",
        help="for the rounds of a figure (60; quick 4), or for all of gpu (480; quick 120)",
    )
    parser.add_argument(
        "--tf32", dest="allow_tf32", action="store_true", help="of all contenders on a GPU; else float32 in full"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write every sample as JSON")
    return parser


def options_of(arguments: argparse.Namespace) -> Options:
    """The options, with the peers that are installed."""
    given = {item.name: getattr(arguments, item.name, None) for item in dataclasses.fields(Options)}
    given |= {"device": torch.device("cpu"), "total_s": arguments.budget_s or 0.0}
    given["budget_s"] = given["budget_s"] or (4.0 if arguments.quick else 60.0)
    given["peers"] = tuple(peer for peer in arguments.peers if peer in PEERS and is_installed(peer))
    return Options(**given)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    return tuple(int(part) for part in text.split(","))
