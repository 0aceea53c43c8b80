"""Agreeing on the plan: a new run is prepared; one that exists is gone on with only if it is the same run."""

from dataclasses import dataclass
from typing import Any

from dlshap_core.errors import is_out_of_memory
from pipeline.config.schema import Config
from pipeline.execution.device import Machine
from pipeline.execution.gpu_memory import on_device
from pipeline.execution.prepare import fingerprint_of, resolve_batch_size, stage
from pipeline.execution.probe import ProbeFailed, ValuesDiffer, difference, require_same_values
from pipeline.execution.store_access import attributes_of, claimed, present_attributes
from pipeline.inputs.facts import InputFacts
from pipeline.inputs.ingest import Nowhere, ingest, known_facts
from pipeline.inputs.open import open_source
from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG, RowProgress
from pipeline.models.load import LoadedModel
from pipeline.planning.fingerprint import differences
from pipeline.planning.plan import Plan
from pipeline.references.resolve import load_references, resolve_references
from pipeline.store.attributes import plan_of
from pipeline.store.codec import ShardCodec, read_array
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import POOL, ROOT

CODE = "a hash of dlshap's own source files: dlshap was updated or edited since"


@dataclass(frozen=True)
class Request:
    """A run that is asked for: its configuration, where it will be computed, its model, and where its result goes."""

    config: Config
    machine: Machine
    loaded: LoadedModel
    directory: RunDirectory

    def agree_on_plan(self) -> Plan:
        """The plan of the run: the existing one, if it is the same run, or a new one with a prepared store.

        Raises:
            UserError: the store belongs to another run, or the input is bad.
        """
        attributes = attributes_of(self.directory)
        if attributes is not None and attributes["complete"]:
            plan = plan_of(attributes)
            self._require_same(plan)
            return plan
        if self.directory.prepared:
            return self._resume()
        with claimed(self.directory, "preparing"):
            return self._prepare()

    def _prepare(self) -> Plan:
        """Under the claim: make the store, unless another command just did or stopped right before saying so."""
        directory = self.directory
        if directory.store.size(ROOT) is not None:
            if directory.read_plan() is None:
                directory.discard()
                raise _without_plan(directory)
            directory.mark_prepared()
            return self._resume()
        with directory.staging() as staged:
            try:
                with directory.at_work():
                    plan, files = stage(staged, self.config, self.loaded, self.machine)
            except ValueError:
                directory.discard()
                raise
            with directory.at_work():
                directory.publish(staged, plan, files)
        return plan

    def _resume(self) -> Plan:
        directory = self.directory
        plan = directory.read_plan()
        if plan is None:
            raise _without_plan(directory)
        if directory.files_to_restore():
            with claimed(directory, "restoring"):
                self._restore(plan)
            return plan
        if directory.store.size(ROOT) is None:
            raise UserError(f"{directory.run.url} exists without its store; remove it to begin again")
        self._require_same(plan)
        return plan

    def _restore(self, plan: Plan) -> None:
        """Make the damaged files of the sequences and the layout from the input again."""
        directory = self.directory
        if not directory.files_to_restore():
            return  # another command just did
        LOG.info(f"making {len(directory.files_to_restore())} damaged files of {directory.url} from the input again")
        with directory.staging() as staged:
            again, files = stage(staged, self.config, self.loaded, self.machine)
            self._require_equal(plan.fingerprint, again.fingerprint)
            if (problem := difference(plan.probe, again.probe, plan)) is not None:
                raise UserError(f"{directory.url}: {problem}")
            directory.restore(staged, files)

    def _require_same(self, plan: Plan) -> None:
        """Refuse to go on with a store whose values depend on something else than this run's would."""
        config, machine = self.config, self.machine
        attributes = present_attributes(self.directory)
        facts = self._facts(attributes)
        references = resolve_references(config.references, facts, attributes.get("references"))
        batch_size = resolve_batch_size(config, facts, machine, references, plan.batch_size)
        self._require_equal(
            plan.fingerprint, fingerprint_of(config, self.loaded, facts, machine, references, batch_size)
        )
        self._require_same_values(plan)

    def _require_same_values(self, plan: Plan) -> None:
        """Refuse to go on where the same model, by all that is known of it, gives other values than it did."""
        store = self.directory.store
        draw = load_references(plan, lambda: read_array(store, POOL))
        folds, device = self.loaded.folds, self.machine.device_here
        try:
            with on_device(folds, device):
                require_same_values(ShardCodec(store), plan, folds, draw, device)
        except ProbeFailed as error:
            if error.__cause__ is None or not is_out_of_memory(error.__cause__):
                raise UserError(f"{self.directory.url}: {error}") from error
            LOG.info(f"only the workers compare the model's values with those of the plan: {error}")
        except ValuesDiffer as error:
            raise UserError(f"{self.directory.url}: {error}") from error

    def _facts(self, attributes: dict[str, Any]) -> InputFacts:
        """What the run depends on of its input, which is read again unless its files are those that were read."""
        dataset = self.config.dataset
        if (known := known_facts(attributes["input"], dataset)) is not None:
            return known
        with RowProgress("comparing the input", None) as progress:
            return ingest(open_source(dataset), dataset, lambda *first: Nowhere(), progress.advance).facts

    def _require_equal(self, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
        if "machine.code" not in stored:
            raise UserError(
                f"{self.directory.url} was made by dlshap 0.1, whose values this version does not continue: references "
                f"of seeds other than 0, genomic references and max-pooling differ. Give another store.path, or use "
                f"dlshap 0.1"
            )
        if different := differences(stored, wanted, {**self.loaded.sources, "machine.code": CODE}):
            raise UserError(
                f"{self.directory.url} belongs to another run: {'; '.join(different)}. Give another store.path, or "
                f"remove it"
            )


def _without_plan(directory: RunDirectory) -> UserError:
    return UserError(f"{directory.url} is not complete and its plan is gone; remove it, or give another store.path")
