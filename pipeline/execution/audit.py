"""The audit of a configuration's model."""

from dlshap_core.audit import Audit
from pipeline.config import limits
from pipeline.config.schema import Config
from pipeline.execution.executor import executor_of
from pipeline.execution.pair_memory import fit_of_pair
from pipeline.execution.pipes import refuse_pipes
from pipeline.execution.preflight import audit_model
from pipeline.inputs.ingest import first_good
from pipeline.inputs.open import open_source
from pipeline.messages.progress import LOG, now_and_then
from pipeline.models.load import load_chosen


def audit_config(config: Config) -> Audit:
    """A new audit, on the first sequence of the input that can be used.

    Raises:
        UserError: bad input or configuration, or the model fails.
    """
    refuse_pipes(config)
    with limits.using(config.limits):
        device, loaded = executor_of(config).device_here(), load_chosen(config)
        codes, name, extra_inputs = first_good(open_source(config.dataset), config.dataset)
    with now_and_then(lambda: LOG.info("trying the model: it takes long")):
        fit = fit_of_pair(loaded, codes, config, device, extra_inputs)
        return audit_model(loaded, codes, name, config, device, extra_inputs, fit)
