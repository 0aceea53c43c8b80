"""Writing shards by the pipeline's own writer: encoded, written, read back; megabytes in a second and bytes of a row.

The attributions are made to look like real ones: small everywhere, large in a few motifs, hypothetical values that
sum to nearly nothing over the bases.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.options import Options
from benchmarks.timing import interleaved, quartiles
from pipeline.planning.plan import Plan
from pipeline.store.backends.local import LocalBackend
from pipeline.store.codec import ShardCodec, write_shard
from pipeline.store.schema import TABLE, array_shapes, computed_arrays
from pipeline.store.template import StagedStore

LENGTH, ROWS, N_SHARDS, N_REFERENCES = 2114, 128, 2, 20


def run(options: Options) -> dict[str, Any]:
    """Seconds of a shard, its bytes raw and written; printed."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(ROWS * N_SHARDS, LENGTH, ROWS, N_REFERENCES)
        backend = make_store(Path(folder) / "a.zarr", plan)
        codec, values = ShardCodec(backend), realistic(plan, ROWS)
        files = write_shard(backend, codec, plan.shard(0), values)

        def write() -> None:
            write_shard(backend, codec, plan.shard(next(numbers) % N_SHARDS), values)

        samples = interleaved({"write": write}, torch.device("cpu"), 2.0 if options.quick else 15.0)["write"]
    raw, written = sum(array.nbytes for array in values.values()), sum(file.n_bytes for file in files.values())
    seconds = quartiles(samples.wall_s)[1]
    print(
        f"  {ROWS} rows of {LENGTH} bases: {raw / 1e6 / seconds:.0f} MB/s of values, {written / ROWS:,.0f} bytes a row "
        f"({written / raw:.2f} of the values' {raw / ROWS:,.0f}), {1e3 * seconds / ROWS:.2f} ms a row"
    )
    return {
        "contenders": {"write": samples.to_json()},
        "mb_per_s": round(raw / 1e6 / seconds, 1),
        "raw_bytes_per_row": raw / ROWS,
        "bytes_per_row": written / ROWS,
        "bytes_per_row_by_array": {name: file.n_bytes / ROWS for name, file in files.items()},
    }


def make_plan(n_rows: int, length: int, rows_per_shard: int, n_references: int) -> Plan:
    """A plan of one target for which no model is needed."""
    return Plan(
        n_rows=n_rows,
        length=length,
        targets=[0],
        references={"name": "dinucleotide_shuffle"},
        n_references=n_references,
        seed=0,
        batch_size=n_references,
        rows_per_shard=rows_per_shard,
        dtype="float32",
        threads=1,
        deterministic=True,
        device="cpu",
        device_kind="cpu",
        completeness=True,
        warning_threshold=0.001,
        fingerprint={},
    )


def make_store(path: Path, plan: Plan) -> LocalBackend:
    """A laid-out store of random sequences."""
    staged = StagedStore(path, plan.length, plan.rows_per_shard)
    generator = np.random.RandomState(0)
    for row in range(plan.n_rows):
        table = {name: str(row) if kind is str else row for name, kind in TABLE.items()}
        staged.append(codes=generator.randint(0, 4, plan.length).astype(np.uint8), **table)
    staged.finish(plan, {}, None)
    return LocalBackend(path)


def realistic(plan: Plan, n_rows: int) -> dict[str, np.ndarray]:
    """Values of every computed array for n rows."""
    generator = np.random.RandomState(0)
    scale = np.full((n_rows, 1, 1, plan.length), 1e-3)
    for row in range(n_rows):
        for start in generator.randint(0, max(1, plan.length - 12), 6):
            scale[row, ..., start : start + 12] = 0.1
    hypothetical = generator.standard_normal((n_rows, len(plan.targets), 4, plan.length)) * scale
    hypothetical -= hypothetical.mean(2, keepdims=True)
    values = {}
    for name in computed_arrays(plan):
        shape = (n_rows, *array_shapes(plan)[name][1:])
        if name == "reference_checksum":
            values[name] = generator.randint(0, 2**32, shape, dtype=np.uint32)
        else:
            size = 1e-6 if name == "convergence_delta" else 1.0
            values[name] = (generator.standard_normal(shape) * size).astype(np.float32)
    attributions = {"hypothetical": hypothetical, "attribution": hypothetical[:, :, 0]}
    return values | {name: drawn.astype(np.float32) for name, drawn in attributions.items()}
