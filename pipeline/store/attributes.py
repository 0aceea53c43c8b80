"""The group's own file, zarr.json: its attributes, among them whether the store is complete, and its checksum."""

import json
import shlex
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from pipeline.messages.errors import UserError
from pipeline.planning.plain_values import require
from pipeline.planning.plan import Plan
from pipeline.store.backends.base import Backend
from pipeline.store.checksums import NO_CHECKSUM, own_checksum, state_checksum
from pipeline.store.json_files import parse_object
from pipeline.store.schema import FORMAT_VERSION, ROOT


class Operation(TypedDict):
    """One line of the audit."""

    module: str
    operation: str
    treatment: str
    count: int


class Audit(TypedDict, total=False):
    """See dlshap_core/audit.py."""

    operations: list[Operation]


class Chosen(TypedDict, total=False):
    """The configuration of the run."""

    model: dict[str, Any]
    references: dict[str, Any]


class Dataset(TypedDict, total=False):
    """What the input was; each form of input has more to say."""

    kind: str
    n_left_out: int
    left_out: list[str]
    chrom_sizes: dict[str, int]


class Facts(TypedDict):
    """See inputs/facts.py."""

    sha256: str
    n_rows: int
    length: int
    base_counts: list[int]
    args: NotRequired[list[str]]


class Input(TypedDict):
    """See inputs/ingest.py."""

    signature: dict[str, Any] | None
    facts: Facts


class References(TypedDict):
    """See references/base.py."""

    n: int
    plan: dict[str, Any]
    fingerprint: dict[str, Any]
    signature: NotRequired[dict[str, Any] | None]


class Deltas(TypedDict):
    """The convergence deltas of a run; None: not finite."""

    judged: bool
    head: str
    threshold: float
    share_over: float
    relative_threshold: NotRequired[float]
    share_over_relative: NotRequired[float]
    n_not_finite: NotRequired[int]
    median: float | None
    q90: float | None
    q99: float | None
    largest: float | None
    worst: str
    worst_row: NotRequired[int]
    not_judged: NotRequired[list[str]]


class Outcome(TypedDict):
    """Of a complete run."""

    deltas: Deltas
    shard_seconds: NotRequired[float]


class Attributes(TypedDict):
    """What is read of a store's attributes; there are more, for people."""

    format_version: int
    complete: bool
    plan: dict[str, Any]
    fingerprint: dict[str, Any]
    config: NotRequired[Chosen]
    model: NotRequired[dict[str, Any]]
    references: NotRequired[References]
    target_names: NotRequired[list[str]]
    head: NotRequired[str]
    target_heads: NotRequired[list[str]]
    audit: NotRequired[Audit]
    not_exact: NotRequired[list[str]]
    device: NotRequired[str]
    versions: NotRequired[dict[str, Any]]
    hardware: NotRequired[dict[str, Any]]
    input: NotRequired[Input]
    notes: NotRequired[list[str]]
    dataset: NotRequired[Dataset]


class CompleteAttributes(Attributes):
    """Of a complete store."""

    files: dict[str, list[int]]
    run: Outcome
    convergence: str


def read_attributes(backend: Backend, is_known: bool = False) -> dict[str, Any] | None:
    """Attributes of the store of a backend; None where nothing exists at its URL.

    With `is_known` the files of a run name this store, so that one that cannot be read is a damaged one.

    Raises:
        UserError: something else than a dlshap store, one of a newer version, or an unfinished one whose
            own file is damaged.
    """
    try:
        data = backend.read(ROOT)
    except (FileNotFoundError, NotADirectoryError):
        if backend.is_empty():
            return None
        raise _no_store(backend) from None
    attributes = _attributes_in(data)
    if attributes is None and not is_known:
        raise _no_store(backend)
    if attributes is not None and type(version := attributes["format_version"]) is int and version > FORMAT_VERSION:
        raise UserError(f"{backend.url} was written by a newer version (format {version}); update dlshap")
    damage = root_damage(data)
    if attributes is not None and attributes["complete"] is True:
        damage = wrong_attributes(attributes)  # damage to anything else is for `dlshap verify` to find
    if damage is not None:
        raise UserError(
            f"{backend.url}/{ROOT} {damage}; after `dlshap verify --repair {shlex.quote(backend.url)}` the command "
            "that made the store makes it again"
        )
    return attributes


def _attributes_in(data: bytes) -> dict[str, Any] | None:
    """The attributes in the group's own file; None where it is not one of ours."""
    try:
        attributes = dict(parse_object(data)["attributes"])
    except (ValueError, KeyError, TypeError):  # not what Zarr writes
        return None
    return attributes if {"format_version", "complete"} <= attributes.keys() else None


def _no_store(backend: Backend) -> UserError:
    return UserError(f"store.path={backend.url} exists and is not a dlshap store; give another path")


def root_damage(data: bytes) -> str | None:
    """What is wrong with the content of the group's own file, in words.

    Version 0.1.0 gave a store its checksum when it was complete; what it left unfinished has none.
    """
    if (attributes := _attributes_in(data)) is None:
        return "cannot be read" if data else "is empty"
    stated, actual = own_checksum(data)
    is_older = attributes["complete"] is False and not stated and "checksum" not in attributes
    if stated == actual or is_older:
        return wrong_attributes(attributes)
    return f"is damaged: it states {stated or 'no checksum'} and has {actual}"


def wrong_attributes(attributes: Mapping[str, Any]) -> str | None:
    """What of a store's attributes is nothing that dlshap writes, in words; None where all could be its own."""
    try:
        require(attributes, CompleteAttributes if attributes["complete"] is True else Attributes, "it")
        plan_of(attributes)
    except ValueError as error:
        return f"holds what dlshap does not write: {error}"
    return None


def mark_incomplete(backend: Backend) -> None:
    """Mark a store as not complete."""
    root = parse_object(backend.read(ROOT))
    root.pop("consolidated_metadata", None)
    root["attributes"].pop("files", None)
    root["attributes"]["complete"] = False
    backend.write(ROOT, sealed(root))


def sealed(root: Mapping[str, Any]) -> bytes:
    """The group's own file, with its checksum first among the attributes."""
    others = {name: value for name, value in root["attributes"].items() if name != "checksum"}
    sealed = {**root, "attributes": {"checksum": NO_CHECKSUM, **others}}
    return state_checksum(json.dumps(sealed, indent=2))


def plan_of(attributes: Mapping[str, Any]) -> Plan:
    """The plan that a store's attributes hold; ValueError where that is none."""
    return Plan.from_values({**attributes["plan"], "fingerprint": attributes["fingerprint"]})
