"""The audit of a configuration's model."""

from functools import partial

import numpy as np

from dlshap_core.audit import Audit
from pipeline.config import limits
from pipeline.config.schema import Config
from pipeline.execution.executor import executor_of
from pipeline.execution.pair_memory import fit_of_pair
from pipeline.execution.pipes import refuse_pipes
from pipeline.execution.preflight import audit_model, with_model
from pipeline.inputs.ingest import first_good
from pipeline.inputs.open import open_source
from pipeline.messages.progress import LOG, now_and_then
from pipeline.models.load import LoadedModel, load_chosen
from pipeline.planning.extra_inputs import ExtraInputs


def audit_config(config: Config) -> tuple[Audit, str]:
    """A new audit, on the first sequence of the input that can be used, and the device that it is of, in words.

    Raises:
        UserError: bad input or configuration, or the model fails.
    """
    refuse_pipes(config)
    with executor_of(config) as executor:
        machine = executor.machine_to_try()
        with limits.using(config.limits):
            loaded = load_chosen(config)
            codes, name, extra_inputs = first_good(open_source(config.dataset), config.dataset)
        with now_and_then(lambda: LOG.info("trying the model: it takes long")):
            function = partial(audit_first, codes, name, config, machine.device, extra_inputs)
            return with_model(config, loaded, machine, function), str(machine)


def audit_first(
    codes: np.ndarray, name: str, config: Config, device: str, extra_inputs: ExtraInputs, loaded: LoadedModel
) -> Audit:
    """The audit of a model on a sequence; arguments as of `audit_model`."""
    fit = fit_of_pair(loaded, codes, config, device, extra_inputs)
    return audit_model(loaded, codes, name, config, device, extra_inputs, fit)
