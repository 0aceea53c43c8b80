"""A bare model as one of one-hot sequences (N, 4, L) and the extra inputs of `dataset.args`, as its settings say."""

import torch
from torch import Tensor, nn

from dlshap_core.one_hot import one_hot
from dlshap_core.sequences import encode
from pipeline.config.model_input import BASES, PADS, InputSettings
from pipeline.messages.errors import UserError
from pipeline.models.forward_arguments import Called, Forward, token_of
from pipeline.models.keras_files.model import KerasModel
from pipeline.models.layouts import InputLayout
from pipeline.models.padding import Padded
from pipeline.models.tokens import Slots, Tokens

ADAPTERS = (Slots, Padded, InputLayout, Tokens, Called)
_UNKNOWN = 4


def adapted(module: nn.Module, given: InputSettings) -> nn.Module:
    """The module within what its input needs; the module itself where that is nothing.

    Raises:
        UserError: settings that this model does not have.
    """
    tokens = _tokens(module, given)
    form = InputLayout(nn.Identity(), given.input_layout, given.bases)
    if given.input is not None or given.forward or _needs_names(module):
        module = Called(module, given.input, given.forward, form, tokens)
    if tokens is not None:
        return _of_tokens(module, given, tokens)
    if given.input_layout != "ncl" or given.bases != BASES or given.channels:
        module = InputLayout(module, given.input_layout, given.bases, given.channels)
    if given.length is None and not given.flanks:
        return module
    left, right = (one_hot(encode(text or ""), torch.float32) for text in given.flanks or ("", ""))
    return Padded(module, left, right, given.length, [PADS[given.pad or "zeros"]] * len(BASES))


def _of_tokens(module: nn.Module, given: InputSettings, tokens: list[int]) -> nn.Module:
    """Flanks and padding may hold tokens that no sequence has: each token has a slot of its own."""
    left, right = (_flank(flank, tokens) for flank in given.flanks or ("", ""))
    fill = _fill(given, tokens)
    around = [*left, *right, *([] if fill is None else [fill])]
    slots = [*tokens, *dict.fromkeys(token for token in around if token not in tokens)]
    module = Tokens(module, slots)
    if around:
        columns = [_columns(some, slots) for some in (left, right, [] if fill is None else [fill])]
        module = Padded(module, columns[0], columns[1], given.length, columns[2].sum(1).tolist())
    return Slots(module, tokens, len(slots) - len(tokens))


def _fill(given: InputSettings, tokens: list[int]) -> int | None:
    """The token of the padding; None where there is none."""
    if given.length is None:
        return None
    if given.pad == "n":
        return token_of(_UNKNOWN, tokens)
    if isinstance(given.pad, int):
        return given.pad
    raise UserError(
        f"model.length={given.length}: the model takes whole numbers; say which it is padded with: model.pad=n with a "
        f"fifth of model.tokens, or a token such as model.pad=0 with model.tokens"
    )


def _flank(flank: str | list[int] | None, tokens: list[int]) -> list[int]:
    if isinstance(flank, list):
        return flank
    return [token_of(int(code), tokens) for code in encode(flank or "")]


def _columns(some: list[int], slots: list[int]) -> Tensor:
    """One-hot (K, len(some)) over the slots."""
    found = torch.zeros(len(slots), len(some))
    for position, token in enumerate(some):
        found[slots.index(token), position] = 1
    return found


def _tokens(module: nn.Module, given: InputSettings) -> list[int] | None:
    """Of the bases, where the model takes whole numbers."""
    tokens = None if given.tokens is None else list(given.tokens)
    if not isinstance(module, KerasModel):
        return tokens
    n = module.n_tokens
    if n is None:
        if tokens is not None:
            raise UserError(f"model.tokens={given.tokens}: the model takes one-hot sequences; leave model.tokens out")
        return None
    if tokens is None and n == len(BASES):
        return list(range(n))
    if tokens is None or max(tokens) >= n:
        given_as = "" if tokens is None else f", and model.tokens is {tokens}"
        raise UserError(
            f"the model takes sequences as whole numbers below {n}{given_as}; say which stand for A, C, G and T, such "
            f"as model.tokens=[1,2,3,4]"
        )
    return tokens


def _needs_names(module: nn.Module) -> bool:
    try:
        return Forward(module).needs_names
    except (ValueError, TypeError):  # not written in Python
        return False
