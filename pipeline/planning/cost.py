"""What a run costs, on paper: device time, bytes, objects, time of the driver, of a resume, and from end to end.

Pure functions of a workload and of constants. `scripts/benchmark scale` measures the constants and checks the terms of
driver and store against runs with a stand-in for the model; `dlshap plan` measures what depends on the model.
"""

import math
from dataclasses import dataclass

# What things take, measured on two cores of an AMD EPYC (AVX2) with a local disk; where nothing else is said, by
# scripts/benchmark scale.
START_S = 12.0  # from the command to the first shard, the reading of the input left out (scripts/benchmark pipeline)
READ_S_PER_ROW = 40e-6  # a row of the input checked, hashed and written
READ_S_PER_BASE = 20e-9
SHARD_S = 0.03  # a worker's part of a shard beside the attributions: files, attempt, syncs, record (cluster=none)
ENCODE_S_PER_BYTE = 1 / 64e6  # values compressed, written and read back (scripts/benchmark store)
DRIVER_S_PER_SHARD = 0.009  # the least time between two shards that Ray hands out (cluster=local)
END_S_PER_SHARD = 0.5e-3  # the end of a run, where every done record is read
LOOK_S_PER_SHARD = 0.02e-3  # the begin of a resume, where done records are listed
BYTES_PER_CODE = 0.27  # a base of a sequence, compressed
COMPRESSION = 0.88  # compressed bytes of attributions for each raw one (scripts/benchmark store)
BYTES_PER_TABLE_ROW = 12.0  # name, locus and strand, compressed
RECORD_BYTES = 2000.0  # a done record


@dataclass(frozen=True)
class Workload:
    """What is to be done.

    Attributes:
        n_rows: sequences.
        length: bases in each.
        n_targets, n_references, n_folds: of each.
        rows_per_shard: sequences in a shard.
        n_strands: 2 with engine.reverse_complement=average.
        per_fold: whether the values of each fold are kept beside their mean.
        spread: whether the standard deviation over the references is kept.
        null_difference: of variants, whether both alleles are predicted within each reference too.
        rows_per_group: 2 for the alleles of variants, whose difference is kept too; else 1.
        n_args: extra inputs of the model, which the store holds too.
        actors: that work at the same time.
        on_ray: whether shards are handed out by Ray.
    """

    n_rows: int
    length: int
    n_targets: int = 1
    n_references: int = 20
    n_folds: int = 1
    rows_per_shard: int = 128
    n_strands: int = 1
    per_fold: bool = False
    spread: bool = False
    null_difference: bool = False
    rows_per_group: int = 1
    n_args: int = 0
    actors: int = 1
    on_ray: bool = True

    @property
    def n_shards(self) -> int:
        return -(-self.n_rows // self.rows_per_shard)

    @property
    def n_pairs(self) -> int:
        """Sequence-reference pairs that go through a model; of all targets together."""
        return self.n_rows * self.n_references * self.n_folds * self.n_strands

    @property
    def n_arrays(self) -> int:
        """Arrays with a file in each shard, the sequences' included; see store.ARRAYS."""
        kinds = 2 if self.rows_per_group > 1 else 1  # of rows, and of variants
        more = (5 if self.per_fold else 0) + (kinds if self.spread else 0) + (1 if self.null_difference else 0)
        return 7 + 3 * (kinds - 1) + more + self.n_args

    @property
    def raw_bytes_per_row(self) -> int:
        """Bytes of the computed values of a row, before compression."""
        attributions, predictions = 4 * 5 * self.length, 4 * (1 + 2 * self.n_references)
        copies = 1 + (self.n_folds if self.per_fold else 0)
        spread = 4 * self.length if self.spread else 0
        null = 4 * self.n_references if self.null_difference else 0
        differences = (attributions + 4 + spread + null) / self.rows_per_group if self.rows_per_group > 1 else 0
        return round(self.n_targets * (copies * (attributions + predictions) + spread + differences)) + 4


@dataclass(frozen=True)
class Cost:
    """What it costs; seconds, bytes, numbers.

    Attributes:
        shards, pairs: how many.
        device_s: of all devices together.
        store_bytes, run_bytes: of the store, and of the records beside it.
        objects: files of both.
        read_s: reading the input; by the driver, before the first shard.
        shard_s: one shard on one actor.
        driver_s: handing out shards, while the actors work.
        end_s: completing the store.
        wall_s: from the command to its end.
        pool_s: of all actors together, where each is held, and paid for, from the command to its end.
        resume_s: what an interruption adds: a start, a look at the records, and a shard of each actor done again.
    """

    shards: int
    pairs: int
    device_s: float
    store_bytes: float
    run_bytes: float
    objects: int
    read_s: float
    shard_s: float
    driver_s: float
    end_s: float
    wall_s: float
    pool_s: float
    resume_s: float


def cost(work: Workload, row_s: float, row_bytes: float | None = None) -> Cost:
    """What a workload costs.

    Workers take equal shares; the slowest of them has the most shards. Where shards take less than the driver needs to
    hand them out, they wait for it.

    Args:
        row_s: device seconds of a row: all its references, folds, strands and targets.
        row_bytes: of its arrays in the store, as they were measured; None for an estimate.
    """
    if row_bytes is None:
        row_bytes = BYTES_PER_CODE * work.length + COMPRESSION * work.raw_bytes_per_row
    rows = min(work.rows_per_shard, work.n_rows)
    done_s = row_s + ENCODE_S_PER_BYTE * work.raw_bytes_per_row
    shard_s = rows * done_s + SHARD_S
    driver_s = work.n_shards * DRIVER_S_PER_SHARD if work.on_ray else 0.0
    actors = min(work.actors, work.n_shards)
    busy_s = (work.n_rows * done_s + work.n_shards * SHARD_S) / actors
    last_s = shard_s * (math.ceil(work.n_shards / actors) - work.n_shards / actors)
    read_s = work.n_rows * (READ_S_PER_ROW + READ_S_PER_BASE * work.length)
    end_s = work.n_shards * END_S_PER_SHARD
    wall_s = START_S + read_s + max(busy_s + last_s, driver_s) + end_s
    return Cost(
        shards=work.n_shards,
        pairs=work.n_pairs,
        device_s=work.n_rows * row_s,
        store_bytes=work.n_rows * (row_bytes + BYTES_PER_TABLE_ROW),
        run_bytes=work.n_shards * RECORD_BYTES,
        objects=n_objects(work),
        read_s=read_s,
        shard_s=shard_s,
        driver_s=driver_s,
        end_s=end_s,
        wall_s=wall_s,
        pool_s=actors * wall_s,
        resume_s=START_S + work.n_shards * LOOK_S_PER_SHARD + shard_s,
    )


def n_objects(work: Workload) -> int:
    """Files: a shard's arrays and its record, and few others (a chunk of 8,192 rows of each of six columns)."""
    table = 6 * -(-work.n_rows // 8192)
    return work.n_shards * (work.n_arrays + 1) + table + work.n_arrays + 24
