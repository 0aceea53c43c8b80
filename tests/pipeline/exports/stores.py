"""Small stores with values of choice, laid out and written by the pipeline's own code but computed by nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.planning.plan import Plan
from pipeline.store.backends.registry import open_backend
from pipeline.store.codec import ShardCodec, shard_sizes, write_shard
from pipeline.store.reader import Store, open_store
from pipeline.store.records import FileRecord
from pipeline.store.template import StagedStore, complete_store

N_REFERENCES = 3


def make_store(
    path: Path,
    codes: np.ndarray,
    loci: Sequence[tuple[str, int]] | None = None,
    names: Sequence[str] | None = None,
    strands: Sequence[str] | None = None,
    targets: Sequence[int] = (0,),
    hypothetical: np.ndarray | None = None,
    rows_per_shard: int = 6,
    done: Sequence[int] | None = None,
    head: str = "none",
    dataset: dict[str, str] | None = None,
    source: dict[str, Any] | None = None,
    seed: int = 0,
    folds: Sequence[str] = ("0",),
    alleles: bool = False,
    spread: bool = False,
) -> Store:
    """A store at `path`, opened.

    Args:
        path: where.
        codes: (N, L) uint8.
        loci: chromosome and start of each row, if there are any.
        names: of the rows; row0, row1, ... if not given.
        strands: of the rows.
        targets: which outputs of the model.
        hypothetical: (N, T, 4, L); random if not given.
        rows_per_shard: as in a run.
        done: the shards that are there; all, and the store complete, if not given.
        head: of the model.
        dataset: settings of the input.
        source: what the input says of itself.
        seed: of the random values.
        folds: of the model; with several, each one's values are kept.
        alleles: whether the rows are alleles of variants, in turn.
        spread: whether the spread over references is kept.
    """
    n, length = codes.shape
    references = {"name": "dinucleotide_shuffle"}
    counts = (n, length, list(targets), references, N_REFERENCES, 0, 8, rows_per_shard)
    more = {"folds": list(folds), "per_fold": len(folds) > 1, "rows_per_group": 2 if alleles else 1}
    more["spread"] = spread
    plan = Plan(*counts, "float32", 1, True, "cpu", "cpu", True, 1e-3, {}, **more)
    staged = StagedStore(path, length, rows_per_shard)
    for row in range(n):
        chrom, start = ("", -1) if loci is None else loci[row]
        staged.append(
            codes=codes[row],
            source_row=row,
            name=f"row{row}" if names is None else names[row],
            chrom=chrom,
            start=start,
            end=-1 if loci is None else start + length,
            strand="." if strands is None else strands[row],
        )
    config = {"dataset": dataset or {}}
    plain = {key: value for key, value in plan.to_values().items() if key != "fingerprint"}
    attributes = {"plan": plain, "fingerprint": {}, "head": head, "config": config, "dataset": source or {}}
    files = staged.finish(plan, attributes, None)
    values = _values(plan, codes, hypothetical, np.random.default_rng(seed))
    for index in range(plan.n_shards) if done is None else done:
        _write(path, plan, index, values)
    if done is None:
        complete(path, plan, files, {"judged": False, "head": head, "threshold": 1e-3, "largest": 0.0, "worst": "row0"})
    return open_store(path, allow_incomplete=True)


def _values(
    plan: Plan, codes: np.ndarray, hypothetical: np.ndarray | None, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """What shards hold, of all rows."""
    n, length = codes.shape
    n_targets = len(plan.targets)
    if hypothetical is None:
        hypothetical = generator.normal(size=(n, n_targets, 4, length))
    hypothetical = hypothetical.astype(np.float32)
    one_hot = codes[:, None, None, :] == np.arange(4)[:, None]
    values = {
        "attribution": (hypothetical * one_hot).sum(axis=2, dtype=np.float32),
        "hypothetical": hypothetical,
        "prediction": generator.normal(size=(n, n_targets)).astype(np.float32),
        "reference_prediction": generator.normal(size=(n, n_targets, N_REFERENCES)),
        "convergence_delta": generator.normal(size=(n, n_targets, N_REFERENCES)) * 1e-6,
        "reference_checksum": generator.integers(0, 2**32, n, dtype=np.uint32),
    }
    if plan.spread:
        values["attribution_sd"] = generator.random((n, n_targets, length))
    if plan.per_fold:
        for name in ("attribution", "prediction"):
            values[f"{name}_by_fold"] = generator.normal(size=(n, len(plan.folds), *np.shape(values[name])[1:]))
    return values


def _write(path: Path, plan: Plan, index: int, values: dict[str, np.ndarray]) -> None:
    """A shard of the values, and a record that it is done."""
    shard, backend = plan.shard(index), open_backend(path)
    there = {name: array[shard.start : shard.stop] for name, array in values.items()}
    if plan.rows_per_group == 2:
        of_alleles = ("attribution", "hypothetical", "prediction")
        there |= {f"{name}_difference": there[name][1::2] - there[name][::2] for name in of_alleles}
        if plan.spread:
            there["attribution_difference_sd"] = there["attribution_sd"][::2] + there["attribution_sd"][1::2]
    write_shard(backend, ShardCodec(backend), shard, there)
    record = path.parent / f"{path.name}.run" / "done" / f"{index:08d}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("{}")


def complete(
    path: Path, plan: Plan, files: Mapping[str, FileRecord], deltas: Mapping[str, Any], convergence: str = "passed"
) -> None:
    """Complete a store as a run does, with these convergence deltas; files of shards may be missing."""
    sizes = shard_sizes(open_backend(path), plan)
    quantiles = {"share_over": 0.0, "median": 0.0, "q90": 0.0, "q99": 0.0}
    outcome = {"run": {"deltas": quantiles | {**deltas}, "shard_seconds": 1234.5}, "convergence": convergence}
    complete_store(open_backend(path), plan, sizes, np.zeros(sizes.shape, np.uint32), files, outcome)


def relabel(path: Path, labels: Sequence[str]) -> None:
    """Give the targets of a complete store other labels, and what it says of its files other sizes."""
    group = zarr.open_group(path, mode="r+")
    group["target"][:] = np.array(labels, dtype=object)  # type: ignore[index]
    keys = np.asarray(group["file"][:]).tolist()  # type: ignore[index]
    group["file_bytes"][:] = np.array([(path / key).stat().st_size for key in keys])  # type: ignore[index]
    files = {key: [(path / key).stat().st_size, crc32] for key, (_, crc32) in group.attrs["files"].items()}  # type: ignore[union-attr]
    group.attrs["files"] = files


def random_codes(n: int, length: int, seed: int = 0, unknown: float = 0.02) -> np.ndarray:
    """(n, length) uint8 with some unknown bases."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 4, (n, length), dtype=np.uint8)
    codes[generator.random((n, length)) < unknown] = 4
    return codes
