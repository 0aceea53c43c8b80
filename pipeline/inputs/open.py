"""Opening the input that a configuration describes."""

from pipeline.config.schema import DatasetConfig
from pipeline.config.settings import settings_of
from pipeline.inputs.base import Source
from pipeline.inputs.extra_inputs import WithExtraInputs
from pipeline.inputs.form import InputForm
from pipeline.inputs.read_timeout import TimedSource


def open_source(dataset: DatasetConfig) -> Source:
    """The source that a dataset configuration describes, read on a thread of its own.

    Raises:
        UserError: a ValueError; a missing or unreadable file, an impossible setting, a file of another form, or an
            input that gives nothing for `timeout_s`.
    """
    assert isinstance(dataset, InputForm)
    given = [f"{each.key}={each.value}" for each in settings_of(dataset, "dataset.") if each.is_file and each.value]
    return TimedSource(
        lambda: WithExtraInputs(dataset.open(), dataset) if dataset.args else dataset.open(),
        dataset.timeout_s,
        " or ".join(given) or f"dataset={dataset.name}",
    )
