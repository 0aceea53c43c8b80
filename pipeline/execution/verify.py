"""Verifying a store: every byte is read again, and the references of some rows are drawn again."""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.messages.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.planning.shards import Shard
from pipeline.references.base import Draw
from pipeline.references.resolve import load_references
from pipeline.store.backends.base import Backend
from pipeline.store.codec import ShardCodec, names_of_rows, read_array
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import POOL, ROOT, shard_key
from pipeline.store.verify.files import check_files
from pipeline.store.verify.findings import Findings, Problem
from pipeline.store.verify.manifest import Manifest

N_SAMPLED = 100  # rows whose references are drawn again
SAMPLED = ("codes", "reference_checksum")
ROWS_OF_A_SHARD = 10  # of them, where there are shards enough


def verify(
    directory: RunDirectory, n_sampled: int = N_SAMPLED, progress: Callable[[int], None] = lambda n_files: None
) -> Findings:
    """Read every byte of a store.

    Args:
        directory: of the run that fills or filled the store.
        n_sampled: rows whose references are drawn again and compared with their checksums.
        progress: told of every so many files.

    Raises:
        UserError: no store lies there, or one that is not complete and whose protocol files are gone.
    """
    findings = Findings(directory.url)
    manifest = check_files(directory, findings, progress)
    if manifest is not None:
        _check_references(directory, manifest, n_sampled, findings)
    return findings


def _check_references(directory: RunDirectory, manifest: Manifest, n_sampled: int, findings: Findings) -> None:
    """Draw the references of some rows again, and compare their checksums."""
    damaged = {problem.key for problem in findings.problems}
    plan, backend = manifest.plan, directory.store
    usable = [
        index
        for index in np.flatnonzero(manifest.is_done).tolist()
        if not {shard_key(name, index) for name in SAMPLED} & damaged
    ]
    layouts = {f"{name}/{ROOT}" for name in (*SAMPLED, POOL)} & damaged
    if not n_sampled or not manifest.is_done.any():
        return  # nothing is asked for, or there yet
    if layouts or not usable or any(key.startswith(f"{POOL}/") for key in damaged):
        findings.not_checked.append("references are not drawn again: what they are drawn from is damaged")
        return
    try:
        draw = load_references(plan, lambda: read_array(backend, POOL))
    except UserError as error:
        findings.not_checked.append(f"references are not drawn again: {error}")
        return
    codec = ShardCodec(backend)
    for index, rows in sample_rows(plan, usable, n_sampled):
        shard = plan.shard(index)
        try:
            _check_shard(backend, codec, plan, shard, rows, draw, findings)
        except Exception as error:  # of arrays that agree with their checksums, and are not those of a run
            what = f"holds what no references can be drawn for: {type(error).__name__}: {error}"
            findings.problems.append(Problem(shard_key("codes", index), what, index, (shard.start, shard.stop)))


def _check_shard(
    backend: Backend, codec: ShardCodec, plan: Plan, shard: Shard, rows: list[int], draw: Draw, findings: Findings
) -> None:
    codes, checksums = (codec.read(name, shard) for name in SAMPLED)
    for row in rows:
        first = row - row % plan.rows_per_group
        drawn = draw(codes[first : first + plan.rows_per_group], shard.start + first)
        findings.n_sampled += 1
        if drawn.checksums()[row - first] != checksums[row]:
            name = names_of_rows(backend, [shard.start + row])[0]
            what = f"is not that of the references drawn now for row {shard.start + row}, {name!r}"
            key = shard_key("reference_checksum", shard.index)
            findings.problems.append(Problem(key, what, shard.index, (shard.start, shard.stop)))


def sample_rows(plan: Plan, shards: Sequence[int], n: int) -> list[tuple[int, list[int]]]:
    """n rows, about ten of a shard: shards and the numbers of the rows within each; the same ones every time."""
    generator, chosen = np.random.default_rng(0), []
    left, shuffled = n, generator.permutation(np.array(shards)).tolist()
    for i, index in enumerate(shuffled):
        size, others = len(plan.shard(index)), len(shuffled) - i - 1
        wanted = max(ROWS_OF_A_SHARD, left - others * plan.rows_per_shard)
        rows = sorted(generator.choice(size, min(size, left, wanted), replace=False).tolist())
        left -= len(rows)
        if not rows:
            break
        chosen.append((index, rows))
    return sorted(chosen)
