"""A shard of about 5 s of work written with the commit protocol, against plain Zarr writes of the same values."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

import pipeline
from benchmarks.options import Options
from benchmarks.timing import interleaved, quartiles
from pipeline.commits import DoneRecord, RunDirectory, whoami
from pipeline.deltas import summarise
from pipeline.resume import is_done
from pipeline.store import COMPUTED, LAYOUT, ShardCodec, file_record, shapes, shard_key, write_shard

LENGTH, ROWS, N_SHARDS = 2114, 100, 4  # 100 rows x 20 references of a small BPNet are about 5 s on one core
WORK_S = 5.0


def run(options: Options) -> dict[str, Any]:
    """Medians of both. The protocol is all that `Worker.do` does beside computing."""
    generator = np.random.RandomState(0)
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "input.fa"
        letters = np.frombuffer(b"ACGT", np.uint8)
        rows = [letters[generator.randint(0, 4, LENGTH)].tobytes().decode() for _ in range(ROWS * N_SHARDS)]
        fasta.write_text("".join(f">s{i}\n{row}\n" for i, row in enumerate(rows)))
        store = Path(folder) / "a.zarr"
        overrides = ["dataset=fasta", f"dataset.path={fasta}", f"store.path={store}", "cluster=none"]
        pipeline.run([*overrides, f"store.rows_per_shard={ROWS}", "references.n_shuffles=20"])
        directory = RunDirectory(store)
        plan, codec = directory.read_plan(), ShardCodec(directory.store)
        assert plan is not None
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        values = {}
        for name in COMPUTED:
            shape, dtype = (ROWS, *shapes(plan)[name][1:]), LAYOUT[name][1]
            drawn = generator.randn(*shape) if dtype == "float32" else generator.randint(0, 2**31, shape)
            values[name] = drawn.astype(dtype)

        def protocol(number: int) -> None:
            shard = plan.shard(number % N_SHARDS)
            is_done(directory, plan, shard)
            directory.n_attempts(shard)
            attempt = directory.begin(shard)
            data = directory.store.read(shard_key("codes", shard.index))
            codec.decode("codes", shard, data)
            files = {"codes": file_record(data), **write_shard(directory.store, codec, shard, values)}
            deltas = summarise(values["convergence_delta"], shard.start, plan.warning_threshold)
            directory.commit(DoneRecord(shard.index, shard.start, shard.stop, files, 1.0, deltas, whoami()))
            directory.end(attempt)

        def plain(number: int) -> None:
            shard = plan.shard(number % N_SHARDS)
            np.asarray(group["codes"][shard.start : shard.stop])
            for name in COMPUTED:
                group[name].with_config({"write_empty_chunks": True})[shard.start : shard.stop] = values[name]

        contenders = {"protocol": lambda: protocol(next(numbers)), "plain": lambda: plain(next(numbers))}
        for contender in contenders.values():
            contender()  # warm
        samples = interleaved(contenders, torch.device("cpu"), 2.0 if options.quick else 20.0)
    seconds = {name: quartiles(taken.wall_s)[1] for name, taken in samples.items()}
    throughput = (WORK_S + seconds["plain"]) / (WORK_S + seconds["protocol"])
    print(
        f"  protocol {seconds['protocol']:.3f} s, plain writes {seconds['plain']:.3f} s: {throughput:.4f} of the "
        f"throughput at {WORK_S:g} s of work in a shard"
    )
    return {
        "contenders": {name: taken.to_json() for name, taken in samples.items()},
        "throughput_ratio": round(throughput, 4),
    }
