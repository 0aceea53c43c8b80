"""What an error of a model says of its input: which setting gives the channels, numbers, types or arguments."""

import re

from pipeline.config.model_input import InputSettings

_CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels")
_NEEDS_TOKENS = re.compile(
    r"argument #\d 'indices'.*scalar types: Long|only applicable to index tensor|operation '(embedding|one_hot)'"
)
_MIXED = re.compile(
    r"\bfloat(tensor)?\b.*\bdouble(tensor)?\b|\bdouble(tensor)?\b.*\bfloat(tensor)?\b|mixed dtype", re.IGNORECASE
)
_NEEDS_TENSOR = re.compile(r"must be Tensor, not (int|float|bool|list)|'(int|float|bool|list)' object")


def form_hint(error: str, given: InputSettings, dtype: str) -> str | None:
    """The setting to add or to change; None where the error says nothing of it. `dtype`: of the computation."""
    if match := _CHANNELS.search(error):
        return _of_channels(int(match[1]), int(match[2]), given)
    if _MIXED.search(error):
        other = "float64" if dtype == "float32" else "float32"
        return f"parts of the model are fixed to another number type: engine.dtype={other} computes it as it is"
    if _NEEDS_TOKENS.search(error) and given.tokens is None:
        return "the model takes whole numbers: model.tokens=[1,2,3,4] says which are A, C, G and T"
    plain = [name for name, value in given.forward.items() if isinstance(value, bool | int | float | list)]
    if plain and _NEEDS_TENSOR.search(error):
        name, value = plain[0], str(given.forward[plain[0]]).replace(" ", "")
        return (
            f"model.forward.{name}={value} is no tensor; model.forward.{name}.rows={value} is one with that for each "
            f"sequence, model.forward.{name}.tensor={value} one as it is"
        )
    return None


def _of_channels(wanted: int, got: int, given: InputSettings) -> str | None:
    """Where the first convolution takes another number of channels than there are."""
    if given.channels:
        names = ", ".join(map(str, given.channels))
        return (
            f"model.channels={given.channels} makes {got} channels of the bases and {names}, the model takes {wanted}"
        )
    if got != 4 or wanted <= got:
        return None
    return (
        f"the model takes {wanted - got} more than the 4 channels of the bases: 'dataset.args=[track.bw]' "
        f"'model.channels=[arg_0]' gives a track, 'model.channels=[0]' a number, 'model.channels=[n]' where a base is "
        f"not known"
    )
