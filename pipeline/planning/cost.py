"""What a run costs, on paper: device time, bytes, objects, time of the driver, of a resume, and from end to end.

Pure functions of a workload and of constants. `scripts/benchmark scale` measures the constants and checks the terms of
driver and store against runs with a stand-in for the model; `dlshap plan` measures what depends on the model.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """What things take. Measured on two cores of an AMD EPYC (AVX2) with a local disk, by the command beside each.

    Attributes:
        start_s: from the command to the first shard, the reading of the input left out (scripts/benchmark pipeline).
        read_s_per_row, read_s_per_base: `prepare`: a row checked, hashed and written (scripts/benchmark scale).
        shard_s: a worker's part of a shard beside the attributions: files, attempt, syncs, record (scripts/benchmark
            scale, cluster=none).
        encode_s_per_byte: values compressed, written and read back (scripts/benchmark store).
        driver_s_per_shard: the least time between two shards that Ray hands to all actors together (scripts/benchmark
            scale, cluster=local); hidden while shards take longer.
        end_s_per_shard: the end of a run, where every done record is read (scripts/benchmark scale).
        look_s_per_shard: the begin of a resume, where done records are listed (scripts/benchmark scale).
        bytes_per_code: a base of a sequence, compressed (scripts/benchmark scale).
        compression: compressed bytes of attributions for each raw one (scripts/benchmark store).
        bytes_per_table_row: name, locus and strand, compressed (scripts/benchmark scale).
        record_bytes: a done record (scripts/benchmark scale).
    """

    start_s: float = 12.0
    read_s_per_row: float = 40e-6
    read_s_per_base: float = 20e-9
    shard_s: float = 0.03
    encode_s_per_byte: float = 1 / 64e6
    driver_s_per_shard: float = 0.009
    end_s_per_shard: float = 0.5e-3
    look_s_per_shard: float = 0.02e-3
    bytes_per_code: float = 0.27
    compression: float = 0.88
    bytes_per_table_row: float = 12.0
    record_bytes: float = 2000.0


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
        rows_per_group: 2 for the alleles of variants, whose difference is kept too; else 1.
        n_args: further inputs of the model, which the store holds too.
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
        return 7 + (5 if self.per_fold else 0) + (3 if self.rows_per_group > 1 else 0) + self.n_args

    @property
    def raw_bytes_per_row(self) -> int:
        """Bytes of the computed values of a row, before compression."""
        attributions, predictions = 4 * 5 * self.length, 4 * (1 + 2 * self.n_references)
        copies = 1 + (self.n_folds if self.per_fold else 0)
        differences = (attributions + 4) / self.rows_per_group if self.rows_per_group > 1 else 0
        return round(self.n_targets * (copies * (attributions + predictions) + differences)) + 4


@dataclass(frozen=True)
class Measured:
    """What a trial says of a model on a device, and of what it makes.

    Attributes:
        row_s: device seconds of a row: all its references, folds, strands and targets.
        bytes_per_row: of the store; None for the constants' estimate.
    """

    row_s: float
    bytes_per_row: float | None = None


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
    resume_s: float


def cost(work: Workload, measured: Measured, constants: Constants | None = None) -> Cost:
    """What a workload costs where rows take what was measured.

    Actors take equal shares; the slowest of them has the most shards. Where shards take less than the driver needs to
    hand them out, they wait for it.
    """
    c = constants or Constants()
    rows = min(work.rows_per_shard, work.n_rows)
    encode_s = c.encode_s_per_byte * work.raw_bytes_per_row
    shard_s = rows * (measured.row_s + encode_s) + c.shard_s
    driver_s = work.n_shards * c.driver_s_per_shard if work.on_ray else 0.0
    actors = min(work.actors, work.n_shards)
    busy_s = (work.n_rows * (measured.row_s + encode_s) + work.n_shards * c.shard_s) / actors
    last_s = shard_s * (math.ceil(work.n_shards / actors) - work.n_shards / actors)
    read_s = work.n_rows * (c.read_s_per_row + c.read_s_per_base * work.length)
    end_s = work.n_shards * c.end_s_per_shard
    return Cost(
        shards=work.n_shards,
        pairs=work.n_pairs,
        device_s=work.n_rows * measured.row_s,
        store_bytes=work.n_rows * bytes_per_row(work, measured, c),
        run_bytes=work.n_shards * c.record_bytes,
        objects=n_objects(work),
        read_s=read_s,
        shard_s=shard_s,
        driver_s=driver_s,
        end_s=end_s,
        wall_s=c.start_s + read_s + max(busy_s + last_s, driver_s) + end_s,
        resume_s=c.start_s + work.n_shards * c.look_s_per_shard + shard_s,
    )


def bytes_per_row(work: Workload, measured: Measured, constants: Constants) -> float:
    """Bytes of a row in the store, of all its arrays."""
    if measured.bytes_per_row is not None:
        return measured.bytes_per_row + constants.bytes_per_table_row
    codes = constants.bytes_per_code * work.length
    return codes + constants.compression * work.raw_bytes_per_row + constants.bytes_per_table_row


def n_objects(work: Workload) -> int:
    """Files: a shard's arrays and its record, and few others (a chunk of 8,192 rows of each of six columns)."""
    table = 6 * -(-work.n_rows // 8192)
    return work.n_shards * (work.n_arrays + 1) + table + work.n_arrays + 24
