"""A model that some sequences do not agree with, as the environment says."""

import os

import numpy as np
import torch
from torch import Tensor

from dlshap_core.sequences import encode
from pipeline.models.example import ExampleNet
from tests.pipeline.conftest import random_sequences


class Choosy(ExampleNet):
    """Refuses one sequence, or gives NaN for it, or has no memory for many rows, as the environment says."""

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            is_hit, room = _judge(x)
        if room is not None and x.shape[0] > room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {x.shape[0]} GiB.\nOf the allocated")
        out = super().forward(x)
        if is_hit and os.environ["CHOOSY_WAY"] == "raise":
            raise IndexError("index 7 is out of\nrange")
        return out * float("nan") if is_hit and os.environ["CHOOSY_WAY"] == "nan" else out


def _judge(x: Tensor) -> tuple[bool, int | None]:
    room = os.environ.get("CHOOSY_ROOM")
    sequence = os.environ.get("CHOOSY_SEQUENCE")
    if sequence is None:
        return False, None if room is None else int(room)
    return _is_there(x, sequence), None if room is None else int(room)


class ChoosyAlways(ExampleNet):
    """Refuses sequence s9 of the tests' input, whatever the environment says."""

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            is_hit = _is_there(x, random_sequences()[9])
        if is_hit:
            raise IndexError("index 7 is out of\nrange")
        return super().forward(x)


def _is_there(x: Tensor, sequence: str) -> bool:
    return bool((x.detach().argmax(1).numpy() == np.asarray(encode(sequence))).all(1).any())
