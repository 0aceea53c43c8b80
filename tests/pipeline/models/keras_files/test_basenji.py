"""Basenji's and Baskerville's own layers, which do something while training alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.messages.errors import UserError
from tests.pipeline.models.keras_files.oracle import FORMS, keras, randomised, read, require_alike


def layer(name: str, call: Any, package: str, **config: Any) -> Any:
    """A class of Keras's layers by the name, the package and the settings that files have."""
    base = keras().layers.Layer
    own = {"call": lambda _, x: call(x), "get_config": lambda self: {**base.get_config(self), **config}}
    return type(name, (base,), {**own, "__module__": f"{package}.layers"})


def model(package: str) -> Any:
    k = keras()
    both = layer("StochasticReverseComplement", lambda x: (x, k.ops.zeros((), "bool")), package)
    shift = layer("StochasticShift", lambda x: x, package, shift_max=3, symmetric=True, pad=0.0)
    switch = layer("SwitchReverse", lambda pair: pair[0], package, strand_pair=[0, 1, 2])
    start = k.Input((24, 4))
    x, turned = both()(start)
    x = k.layers.Conv1D(3, 5, padding="same", activation="relu")(shift()(x))
    return k.Model(start, switch()([x, turned]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("package", ["basenji", "baskerville"])
def test_what_is_random_while_training_is_left_out(tmp_path: Path, package: str, form: str) -> None:
    require_alike(model(package), tmp_path, form)


def test_another_package_has_layers_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.layers\.StochasticReverseComplement=package\.Class"):
        read(randomised(model("mine")), tmp_path)
