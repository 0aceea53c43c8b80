"""Random architectures, each written in a form of its own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.models.keras_files.oracle import FORMS, keras, require_alike
from tests.pipeline.models.keras_files.test_layers import GROUPS

LEFT_OUT = (
    "mask",
    "reshape",
    "reshape_more",
    "named_glu",
)  # of one size alone; and one of which Keras errs in the shape
EVERY = {
    f"{group} {name}": make for group, makers in GROUPS.items() for name, make in makers.items() if name not in LEFT_OUT
}


def grown(generator: random.Random, k: Any, x: Any, n_layers: int) -> Any:
    """Some layers on (N, L, C), of which one in three goes around a residual or is joined to what it takes."""
    L = k.layers
    for name in generator.choices([*EVERY], k=n_layers):
        if len(x.shape) != 3 or min(x.shape[1:]) < 6 or x.shape[1] > 200:
            break
        y = EVERY[name](L)(L.Conv1D(6, 1)(x))
        if y.shape == x.shape:
            y = generator.choice([L.Add(), L.Multiply(), L.Maximum(), L.Concatenate()])([x, y])
        x = y
    return x


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_predictions_are_those_of_keras(tmp_path: Path, seed: int) -> None:
    generator, k = random.Random(seed), keras()
    x = k.Input((40, 4))
    trunk = k.layers.Conv1D(6, 5, activation="relu")(x)
    outputs = [grown(generator, k, trunk, 4) for _ in range(2)]
    flat = [k.layers.Flatten()(y) if len(y.shape) > 2 else y for y in outputs]
    model = k.Model(x, [*outputs, k.layers.Dense(2)(k.layers.Concatenate()(flat))])
    require_alike(model, tmp_path, FORMS[seed % 3], length=40)
