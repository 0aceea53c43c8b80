"""References resolved once on the driver, and loaded by the workers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.config.registry import schema
from pipeline.config.schema import ReferencesConfig
from pipeline.inputs.facts import InputFacts
from pipeline.inputs.ingest import settings_and_files
from pipeline.messages.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.references.base import Draw, ResolvedReferences
from pipeline.references.kind import Pool, ReferenceKind


def unused(config: ReferencesConfig) -> str | None:
    """A line about a number of references that the kind does not use."""
    assert isinstance(config, ReferenceKind)
    if config.is_drawn or config.n_shuffles is None:
        return None
    return (
        f"references={config.name} compares with {config.counts}; references.n_shuffles={config.n_shuffles} is not used"
    )


def resolve_references(
    config: ReferencesConfig, facts: InputFacts, stored: Mapping[str, Any] | None = None
) -> ResolvedReferences:
    """References with nothing left to decide.

    Args:
        config, facts: of this command.
        stored: `ResolvedReferences.to_store` of the run before. While settings, input and files are the same, no file
            is read, and the store holds the windows.

    Raises:
        UserError: files that cannot be used with this input.
    """
    assert isinstance(config, ReferenceKind)
    found = settings_and_files(config)
    signature = found and {**found, "input": facts.sha256}
    if stored is not None and signature is not None and stored["signature"] == signature:
        return ResolvedReferences(**stored)
    resolved = config.resolve(facts)
    fingerprint = {"name": config.name, **resolved.fingerprint}
    fingerprint = {f"references.{key}": value for key, value in fingerprint.items()}
    return replace(resolved, fingerprint=fingerprint, signature=signature)


def load_references(plan: Plan, pool: Pool) -> Draw:
    """The references of a run, from its plan and the windows of a genome that the store keeps, if any.

    Raises:
        UserError: a missing file, or references of an older version that this one cannot draw.
    """
    name = plan.references["name"]
    try:
        draw: Draw = schema("references", name).load(plan, pool)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # the plan is someone else's, or of elsewhere
        raise UserError(f"references={name} of the plan cannot be loaded: {type(error).__name__}: {error}") from error
    return draw
