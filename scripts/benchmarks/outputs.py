"""What a store of many rows costs to read: time and memory of exports, the report, a comparison and verify.

The store is laid out by the pipeline's own code and computed by nothing: attributions are noise with a site or two in
each row, in a few shards that take turns. Each command is a process of its own; its processor seconds are those of all
its processes, its memory the largest of any.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.options import Options
from benchmarks.store import make_plan
from pipeline.planning.bit_rounding import round_bits
from pipeline.planning.plan import Plan
from pipeline.references.resolve import load_references
from pipeline.store.backends.local import LocalBackend
from pipeline.store.codec import ShardCodec
from pipeline.store.records import FileRecord
from pipeline.store.schema import SPREAD_BITS, arrays_of, computed_arrays, shard_key
from pipeline.store.template import StagedStore, complete_store

FULL, QUICK = (100_000, 2114), (512, 300)
ROWS_PER_SHARD, N_REFERENCES, N_DISTINCT = 128, 20, 8
SITE = 15  # bases of a site
COMMANDS = {  # {0} and {1} are two stores, {2} a folder
    "export modisco": ["export", "modisco", "{0}", "{2}/modisco"],
    "export seqlets": ["export", "seqlets", "{0}", "{2}/seqlets.bed"],
    "export bigwig": ["export", "bigwig", "{0}", "{2}/a.bw"],
    "export hub": ["export", "hub", "{0}", "{2}/hub"],
    "report": ["report", "{0}", "-o", "{2}/report.html"],
    "compare": ["compare", "{0}", "{1}", "-o", "{2}/compared.html"],
    "verify": ["verify", "{0}"],
}

# A small process that waits for the command: a child's memory counts from that of the process that it was forked from.
LAUNCHER = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "pipeline", *sys.argv[1:]], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def run(options: Options) -> dict[str, Any]:
    """Wall and processor seconds and the peak of the memory of each command; printed."""
    n_rows, length = QUICK if options.quick else FULL
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        stores = [str(make_store(Path(folder) / f"{seed}.zarr", n_rows, length, seed)) for seed in (0, 1)]
        print(f"  two stores of {n_rows:,} rows of {length} bases", flush=True)
        for name, words in COMMANDS.items():
            results[name] = measured([word.format(*stores, folder) for word in words])
            print(f"  {name:<15} {in_words(results[name])}", flush=True)
    return results


def in_words(found: dict[str, Any]) -> str:
    """One line."""
    seconds = f"{found['cpu_s']:7.0f} s of processor, {found['wall_s']:7.0f} s"
    return f"{seconds}, {found['mib']:6.0f} MiB, exit code {found['code']}"


def measured(words: list[str]) -> dict[str, Any]:
    """One command of dlshap; `mib` is the largest resident set of it and of any process it waits for."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *words], capture_output=True, text=True, check=True)
    code, cpu_s, mib = done.stdout.split()[-3:]
    wall_s = time.monotonic() - started
    return {"wall_s": wall_s, "cpu_s": float(cpu_s), "mib": float(mib), "code": int(code)}


def make_store(path: Path, n_rows: int, length: int, seed: int) -> Path:
    """A complete store; rows lie 3,000 bases apart on chromosomes of 5,000 rows. Stores of two seeds have the same
    sequences and other values."""
    plan = replace(make_plan(n_rows, length, ROWS_PER_SHARD, N_REFERENCES), spread=True)
    codes = np.random.default_rng(0).integers(0, 4, (ROWS_PER_SHARD, length), dtype=np.uint8)
    staged = StagedStore(path, length, ROWS_PER_SHARD)
    for row in range(n_rows):
        chrom, start = f"chr{1 + row // 5000}", 10_000 + 3000 * (row % 5000)
        locus = {"chrom": chrom, "start": start, "end": start + length, "strand": "+"}
        staged.append(codes=codes[row % ROWS_PER_SHARD], source_row=row, name=f"peak{row}", **locus)
    plain = {name: value for name, value in plan.to_values().items() if name != "fingerprint"}
    files = staged.finish(plan, {"plan": plain, "fingerprint": {}, "head": "counts", "config": {}, "dataset": {}}, None)
    backend, generator = LocalBackend(path), np.random.default_rng(seed)
    distinct = [encoded(backend, plan, generator, codes) for _ in range(N_DISTINCT)]
    names = arrays_of(plan)
    n_bytes, crc32 = np.zeros((plan.n_shards, len(names)), np.int64), np.zeros((plan.n_shards, len(names)), np.uint32)
    for index in range(plan.n_shards):
        for column, name in enumerate(names):
            key = shard_key(name, index)
            if name != "codes":
                (path / key).parent.mkdir(exist_ok=True)
                (path / key).write_bytes(distinct[index % N_DISTINCT][name])
            record = FileRecord.of((path / key).read_bytes())
            n_bytes[index, column], crc32[index, column] = record.n_bytes, record.crc32
    nothing = {"share_over": 0.0, "median": 0.0, "q90": 0.0, "q99": 0.0, "largest": 0.0, "worst": "peak0"}
    deltas = {"judged": True, "head": "counts", "threshold": plan.warning_threshold, **nothing}
    complete_store(backend, plan, n_bytes, crc32, files, {"run": {"deltas": deltas}, "convergence": "passed"})
    return path


def encoded(backend: LocalBackend, plan: Plan, generator: np.random.Generator, codes: np.ndarray) -> dict[str, bytes]:
    """The files of one shard, but for its codes; its references are those of a run, as verify draws them again."""
    n, codec, shard = ROWS_PER_SHARD, ShardCodec(backend), plan.shard(0)
    hypothetical = generator.normal(0, 1e-3, (n, 1, 4, plan.length)).astype(np.float32)
    for row, at in enumerate(generator.integers(0, plan.length - SITE, n)):
        hypothetical[row, 0, :, at : at + SITE] += generator.gamma(2, 0.02)
    values = {
        "attribution": hypothetical[:, :, 0],
        "attribution_sd": round_bits(generator.gamma(2, 1e-3, (n, 1, plan.length)).astype(np.float32), SPREAD_BITS),
        "hypothetical": hypothetical,
        "prediction": generator.normal(size=(n, 1)),
        "reference_prediction": generator.normal(size=(n, 1, N_REFERENCES)),
        "convergence_delta": generator.normal(0, 1e-7, (n, 1, N_REFERENCES)),
        "reference_checksum": load_references(plan, lambda: codes)(codes, 0).checksums(),
    }
    return {name: codec.encode(name, shard, values[name]) for name in computed_arrays(plan)}
