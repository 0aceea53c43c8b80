"""Making a damaged store unfinished again, so that the command of its run makes what is damaged again.

Shards are computed again. What `prepare` made (the sequences, the row table, the layout) is read from the input again:
`restore.json` beside the store lists those files.
"""

import json

from omegaconf import DictConfig

from pipeline.config.interpolations import refuse_all
from pipeline.config.overrides import command_line
from pipeline.config.trust import not_given
from pipeline.config.validate import from_mapping
from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG
from pipeline.messages.words import counted
from pipeline.planning.convergence import Thresholds, summarise
from pipeline.planning.plan import Plan
from pipeline.store.attributes import mark_incomplete, plan_of, read_attributes
from pipeline.store.codec import ShardCodec
from pipeline.store.records import DoneRecord, FileRecord
from pipeline.store.run_directory import ALL_FILES, PLAN, RunDirectory
from pipeline.store.schema import ARRAYS, MANIFEST_ARRAYS, ROOT, input_arrays, layout_of, most_bytes, shard_key
from pipeline.store.verify.findings import Findings


def repair(directory: RunDirectory, findings: Findings) -> str:
    """Make the store unfinished where it is damaged; returns what was done, in a line. It can be repeated.

    Raises:
        UserError: the plan of the run is lost.
    """
    keys = {problem.key for problem in findings.problems}
    if ROOT in keys and not directory.prepared:
        raise UserError(
            f"{directory.url}/{ROOT} is damaged and {directory.run.url} is gone: what the run was is not known any "
            f"more. Remove the store and run again"
        )
    with directory.claim(lambda who: LOG.info(f"waiting for {who}, which is at work on {directory.url}")):
        return _mark_damaged(directory, findings, keys)


def _mark_damaged(directory: RunDirectory, findings: Findings, keys: set[str]) -> str:
    shards = sorted({problem.shard for problem in findings.problems if problem.shard is not None})
    prepared = sorted(key for key in keys if _is_prepared(key))
    root_is_damaged = ROOT in keys
    if not directory.prepared:
        if not findings.is_recorded:
            return _redo_everything(directory)
        _write_protocol(directory, set(shards), keys | {*findings.strays})
    if PLAN in keys:
        directory.write_plan(plan_of(json.loads(directory.store.read(ROOT))["attributes"]))
    directory.run.delete("result.json")
    directory.request_restore([*prepared, ROOT] if root_is_damaged else prepared)
    for index in shards:
        directory.revoke(index)
    if root_is_damaged:
        directory.store.delete(ROOT)
    else:
        mark_incomplete(directory.store)
    parts = [f"{counted(len(shards), 'shard')} to be computed again"] if shards else []
    parts += [f"{counted(len(prepared), 'file')} to be made from the input again"] if prepared else []
    what = " and ".join(parts) or "the records of the store to be written again"
    return f"{what}: {_how_to_go_on(directory)}"


def _redo_everything(directory: RunDirectory) -> str:
    """Keep no file: without a record of what was committed, files may have changed places unseen."""
    plan = plan_of(json.loads(directory.store.read(ROOT))["attributes"])
    directory.request_restore([ALL_FILES])  # first: without it, a resumed run would believe the files after a crash
    for index in directory.done_indices():
        directory.revoke(index)
    directory.record_prepared(plan, {})
    mark_incomplete(directory.store)
    return (
        f"the records of what its files were are lost, so all {counted(plan.n_shards, 'shard')} are to be computed "
        f"again: {_how_to_go_on(directory)}"
    )


def _how_to_go_on(directory: RunDirectory) -> str:
    """The commands that make anew what was given up."""
    advice = "run the command that made it"
    try:
        attributes = read_attributes(directory.store, is_known=True)
        if not isinstance(settings := (attributes or {}).get("config"), dict):
            return advice
        refuse_all(settings, directory.url)
        config = from_mapping({**settings, "store": {"path": directory.url, "options": directory.options}})
    except UserError:  # the store does not say how it was made, or not any more
        return advice
    return f"{advice}, or `{command_line(['run', '--config-from', directory.url], not_given(config, DictConfig({})))}`"


def _is_prepared(key: str) -> bool:
    """Whether a file is made from the input: all but the computed ones and the records."""
    name, _, rest = key.partition("/")
    if key in (ROOT, PLAN) or name in (*MANIFEST_ARRAYS, "done"):
        return False
    return name not in ARRAYS or name == "codes" or rest == ROOT


def _write_protocol(directory: RunDirectory, damaged: set[int], others: set[str]) -> None:
    """Write the protocol files of a complete store that has lost them, from the files that are in order.

    `damaged` are shards, `others` files that are damaged or not the store's.
    """
    root = json.loads(directory.store.read(ROOT))
    plan, layout = plan_of(root["attributes"]), root["consolidated_metadata"]["metadata"]
    codec = ShardCodec(directory.store, layout)
    prepared = [entry.key for entry in directory.store.files() if _is_prepared(entry.key)]
    shards = tuple(f"{name}/c." for name in input_arrays(plan))
    small = [key for key in prepared if not key.startswith(shards) and key not in others]
    for index in range(plan.n_shards):
        if index not in damaged:
            directory.commit(_record(directory, codec, plan, index))
    directory.record_prepared(plan, {key: FileRecord.of(directory.store.read(key)) for key in small})


def _record(directory: RunDirectory, codec: ShardCodec, plan: Plan, index: int) -> DoneRecord:
    """The done record of a shard that is in order."""
    shard, layout = plan.shard(index), layout_of(plan)
    most = most_bytes(plan)
    data = {name: directory.store.read(shard_key(name, index, layout), most) for name in layout}
    names = ("convergence_delta", "prediction", "reference_prediction")
    deltas, predictions, of_references = (codec.decode(name, shard, data[name]) for name in names)
    return DoneRecord(
        shard=index,
        start=shard.start,
        stop=shard.stop,
        files={name: FileRecord.of(content) for name, content in data.items()},
        seconds=0.0,
        deltas=summarise(deltas, predictions, of_references, shard.start, Thresholds.of(plan)),
        worker="",
    )
