"""What a model's input is beside one-hot sequences (N, 4, L): the settings, as they are written.

model.channels=[arg_0]                  extra input 0 lies behind the bases, as further channels; also numbers (the same
                                        everywhere), n (1 where the base is unknown), and bases, to put them elsewhere
model.tokens=[1,2,3,4]                  whole numbers for A, C, G and T, and for N if there is a fifth
model.length=600 model.pad=n            padded to 600 bases, the sequence in the middle
model.flanks=[ACGT,TTGC]                bases, or [[1],[2]] tokens, before and after every sequence
model.input=dna                         which argument of forward the sequence is
model.forward.head=human                an argument that is the same for all sequences; .rows=0 a tensor of one row each
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.settings import setting
from pipeline.messages.visible import brief
from pipeline.messages.words import one_of

BASES = "ACGT"
LAYOUTS = ("ncl", "nc1l", "ncl1", "n1cl", "nlc")
PADS = {"zeros": 0.0, "n": 0.25}  # of each base
TENSORS = ("rows", "tensor", "sequence")  # kinds of constants of forward that are tensors
_EXTRA = re.compile(r"arg_(\d{1,9})")
_PLAIN = (bool, int, float, str, type(None))
_EXAMPLE_TOKENS = "expected the whole numbers of A, C, G and T, and perhaps of N, such as [1,2,3,4] or [1,2,3,4,0]"


@dataclass
class InputSettings:
    """How one-hot sequences and extra inputs become what `forward` takes."""

    input_layout: str = setting(
        "axes that the model takes: ncl is (N, 4, L); nc1l, ncl1, n1cl, nlc", "ncl", choices=LAYOUTS, is_plain=True
    )
    bases: str = setting("the base of each of its channels; AGCT for models of DeepSEA's family", BASES, is_plain=True)
    channels: list[Any] = setting(
        "channels after the bases: arg_0 (of dataset.args), a number, or n (1 where the base is unknown)",
        list,
        is_plain=True,
    )
    tokens: Any = setting(
        "whole numbers for A, C, G, T (and N), for a model that takes tokens, such as [1,2,3,4]",
        None,
        is_plain=True,
    )
    input: str | None = setting("the argument of forward that takes the sequence; null: the first", None, is_plain=True)
    forward: dict[str, Any] = setting(
        "arguments of forward that are the same for all sequences, as in model.forward.head=human",
        dict,
        is_plain=True,
    )
    length: int | None = setting(
        "bases that the model takes: shorter sequences are padded", None, least=1, is_plain=True
    )
    pad: Any = setting(
        "what shorter sequences are padded with: zeros, n (0.25 for each base), or a token", None, is_plain=True
    )
    flanks: list[Any] = setting(
        "what lies before and after each sequence: two texts of bases, or lists of tokens", list, is_plain=True
    )

    def input_problems(self) -> Iterator[str]:
        """What is wrong with these settings, each with the fix."""
        if sorted(self.bases) != sorted(BASES):
            yield f"model.bases={self.bases}; expected A, C, G and T in the order of the model's channels, such as AGCT"
        yield from self._of_channels()
        yield from self._of_tokens()
        yield from self._of_padding()
        yield from self._of_flanks()
        yield from self._of_forward()

    def _of_channels(self) -> Iterator[str]:
        for item in self.channels:
            is_name = item in ("bases", "n") or extra_input_of(item) is not None
            if not is_name and (isinstance(item, bool) or not isinstance(item, int | float)):
                yield (
                    f"model.channels has {brief(str(item))}; expected arg_0 for the first entry of dataset.args "
                    f"(arg_1, ...), a number, n or bases, such as model.channels=[arg_0]"
                )
        if self.channels.count("bases") > 1:
            yield "model.channels has bases twice; leave one out"

    def _of_tokens(self) -> Iterator[str]:
        if self.tokens is None:
            return
        tokens = self.tokens
        if not _are_tokens(tokens) or len(tokens) not in (4, 5) or len(set(tokens[:4])) < 4:
            yield f"model.tokens={tokens}; {_EXAMPLE_TOKENS}"
        for key, usual in (("input_layout", "ncl"), ("bases", BASES), ("channels", [])):
            if (value := getattr(self, key)) != usual:
                yield (
                    f"model.tokens and model.{key}={_shown(value)} contradict each other: whole numbers (N, L) have no "
                    f"channels; leave one of them out"
                )

    def _of_padding(self) -> Iterator[str]:
        if self.pad is None:
            if self.length is not None and self.tokens is not None:
                yield (
                    f"model.length={self.length} and model.tokens need model.pad: n, or the token that the model is "
                    f"padded with, such as model.pad=0"
                )
            return
        if self.length is None:
            yield f"model.pad={self.pad} needs model.length, the bases that the model takes; add model.length=..."
        if self.tokens is None and self.pad not in (*PADS,):
            yield f"model.pad={self.pad}; expected {one_of(list(PADS))}"
        if self.tokens is not None and self.pad != "n" and not _are_tokens([self.pad]):
            yield f"model.pad={self.pad}; expected n or a token, such as model.pad=0, as model.tokens is given"
        if self.tokens is not None and self.pad == "n" and _are_tokens(self.tokens) and len(self.tokens) == 4:
            yield f"model.pad=n and model.tokens={_shown(self.tokens)}: no token for N; {_EXAMPLE_TOKENS}"

    def _of_flanks(self) -> Iterator[str]:
        flanks = self.flanks
        if flanks and len(flanks) != 2:
            yield f"model.flanks={_shown(flanks)}; expected two, before and after sequences: model.flanks=[ACGT,TTGC]"
        for flank in flanks:
            is_text = flank is None or (isinstance(flank, str) and re.fullmatch("[ACGTNacgtn]*", flank))
            if not is_text and (self.tokens is None or not _are_tokens(flank)):
                yield (
                    f"model.flanks has {_shown(flank)}; expected texts of A, C, G, T and N such as [ACGT,TTGC], '' for "
                    f"none, or with model.tokens lists of tokens such as [[1],[2]]"
                )

    def _of_forward(self) -> Iterator[str]:
        for name, value in self.forward.items():
            if name == self.input:
                yield f"model.input={name} and model.forward.{name} contradict each other; leave one of them out"
            if (problem := constant_problem(value, self.tokens is not None)) is not None:
                yield f"model.forward.{name}={_shown(value)}; {problem}"

    @property
    def channels_from(self) -> list[int]:
        """The entries of `dataset.args` that are channels, by their numbers from 0."""
        return [index for item in self.channels if (index := extra_input_of(item)) is not None]

    def length_of(self, length: int) -> int:
        """Of what the model gets for sequences of `length` bases."""
        return self.length or length + self.n_flanks

    @property
    def n_flanks(self) -> int:
        """Positions that flanks add to each sequence."""
        return sum(len(flank or "") for flank in self.flanks)

    def described_input(self) -> dict[str, Any]:
        """Those that are given, but for the layout and the bases."""
        names = ("channels", "tokens", "input", "forward", "length", "pad", "flanks")
        return {name: value for name in names if (value := getattr(self, name)) not in (None, [], {})}


def extra_input_of(channel: Any) -> int | None:
    """Which extra input an item of `model.channels` is, from 0; None where it is none."""
    match = _EXTRA.fullmatch(channel) if isinstance(channel, str) else None
    return int(match[1]) if match else None


def constant_problem(value: Any, has_tokens: bool) -> str | None:
    """What is wrong with an argument of forward that is the same for all sequences; None where nothing is."""
    if not isinstance(value, dict):
        return None if _is_plain(value) else "expected numbers, texts, true or false, or lists of these"
    if len(value) != 1 or (kind := next(iter(value))) not in TENSORS:
        return (
            f"expected one of {one_of(TENSORS)}: rows=0 is a tensor with that for each sequence, tensor=[1,2] one "
            f"as it is, sequence=ACGT, zeros or n one-hot"
        )
    given = value[kind]
    if kind != "sequence":
        return None if _is_numeric(given) else f"expected numbers for {kind}, all of one kind, in lists of one length"
    if given in (*PADS,):
        needs = given == "zeros" and has_tokens
        return "there is no such token; write n or the bases" if needs else None
    is_text = isinstance(given, str) and re.fullmatch("[ACGTNacgtn]+", given)
    return None if is_text else "expected a text of A, C, G, T and N, or zeros or n"


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, _PLAIN)


def _is_numeric(value: Any) -> bool:
    """Whether a tensor can be made of it."""
    import numpy as np  # here, as no other part of the command line needs it

    try:
        return np.array(value).dtype.kind in "bif" and np.array(value).size > 0
    except ValueError:  # lists of different lengths
        return False


def _are_tokens(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _shown(value: Any) -> str:
    return brief(str(value).replace(" ", "").replace("'", "") if isinstance(value, list) else str(value))


def missing_channels(channels_from: Sequence[int], n_args: int) -> str | None:
    """What is wrong where channels come from more extra inputs than there are."""
    missing = [index for index in channels_from if index >= n_args]
    if not missing:
        return None
    entries = "1 entry" if n_args == 1 else f"{n_args or 'no'} entries"
    return (
        f"model.channels has arg_{missing[0]}, and dataset.args has {entries} (the first is arg_0); add "
        f"where its values are, such as 'dataset.args=[track.bw]'"
    )
