"""Making a damaged store unfinished again, so that the command of its run makes what is damaged anew.

Shards are computed again. What `prepare` made (the sequences, the row table, the layout) is read from the input again:
`restore.json` beside the store lists those files.
"""

import json

from pipeline.commits import EVERYTHING, DoneRecord, RunDirectory
from pipeline.deltas import summarise
from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.progress import note
from pipeline.reader import plan_of
from pipeline.store import ARRAYS, MADE_AT_THE_END, ROOT, ShardCodec, file_record, given, layout_of, reopen, shard_key
from pipeline.verdict import Verdict
from pipeline.wording import counted


def repair(directory: RunDirectory, verdict: Verdict) -> str:
    """Do so for what a verdict found; returns what was done, in a line.

    A crash in the middle leaves what the same command can go on from.

    Raises:
        UserError: what the store holds is not known any more.
    """
    keys = {problem.key for problem in verdict.problems}
    if ROOT in keys and not directory.prepared:
        raise UserError(
            f"{directory.url}/{ROOT} is damaged and {directory.run.url} is gone: what the run was is not known any "
            f"more. Remove the store and run again"
        )
    with directory.claim(lambda who: note(f"waiting for {who}, which is at work on {directory.url}")):
        return _give_up(directory, verdict, keys)


def _give_up(directory: RunDirectory, verdict: Verdict, keys: set[str]) -> str:
    shards = sorted({problem.shard for problem in verdict.problems if problem.shard is not None})
    prepared = sorted(key for key in keys if _is_prepared(key))
    root_is_damaged = ROOT in keys
    if not directory.prepared:
        if not verdict.is_recorded:
            return _begin_again(directory)
        _recall(directory, set(shards), keys | {*verdict.strays})
    directory.run.delete("result.json")
    directory.ask_for([*prepared, ROOT] if root_is_damaged else prepared)
    for index in shards:
        directory.revoke(index)
    if root_is_damaged:
        directory.store.delete(ROOT)
    else:
        reopen(directory.store)
    parts = [f"{counted(len(shards), 'shard')} to be computed again"] if shards else []
    parts += [f"{counted(len(prepared), 'file')} to be made from the input again"] if prepared else []
    what = " and ".join(parts) or "the store's records of its files to be written again"
    return f"{what}: run the command that made it, or `dlshap run --config-from {directory.url}`"


def _begin_again(directory: RunDirectory) -> str:
    """Nobody knows what was committed: files may have changed places, so none of them is kept."""
    plan = plan_of(json.loads(directory.store.read(ROOT))["attributes"])
    directory.ask_for([EVERYTHING])  # first: without it, a run that goes on after a crash would believe the files
    for index in directory.done_indices():
        directory.revoke(index)
    directory.recall(plan, {})
    reopen(directory.store)
    return (
        f"the records of what its files were are lost, so all {counted(plan.n_shards, 'shard')} are to be computed "
        f"again: run the command that made it, or `dlshap run --config-from {directory.url}`"
    )


def _is_prepared(key: str) -> bool:
    """Whether a file is made from the input: all but the computed ones and the records."""
    name, _, rest = key.partition("/")
    if key == ROOT or name in (*MADE_AT_THE_END, "done"):
        return False
    return name not in ARRAYS or name == "codes" or rest == ROOT


def _recall(directory: RunDirectory, damaged: set[int], others: set[str]) -> None:
    """Write the protocol files of a complete store that has lost them, from the files that are in order.

    Args:
        directory: of the run.
        damaged: shards.
        others: files that are not in order, or not the store's.
    """
    root = json.loads(directory.store.read(ROOT))
    plan, layout = plan_of(root["attributes"]), root["consolidated_metadata"]["metadata"]
    codec = ShardCodec(directory.store, layout)
    prepared = [entry.key for entry in directory.store.files() if _is_prepared(entry.key)]
    shards = tuple(f"{name}/c." for name in given(plan))
    small = [key for key in prepared if not key.startswith(shards) and key not in others]
    for index in range(plan.n_shards):
        if index not in damaged:
            directory.commit(_record(directory, codec, plan, index))
    directory.recall(plan, {key: file_record(directory.store.read(key)) for key in small})


def _record(directory: RunDirectory, codec: ShardCodec, plan: Plan, index: int) -> DoneRecord:
    """The done record of a shard that is in order."""
    shard = plan.shard(index)
    layout = layout_of(plan)
    data = {name: directory.store.read(shard_key(name, index, layout)) for name in layout}
    deltas = codec.decode("convergence_delta", shard, data["convergence_delta"])
    return DoneRecord(
        shard=index,
        start=shard.start,
        stop=shard.stop,
        files={name: file_record(content) for name, content in data.items()},
        seconds=0.0,
        deltas=summarise(deltas, shard.start, plan.warning_threshold),
        worker="",
    )
