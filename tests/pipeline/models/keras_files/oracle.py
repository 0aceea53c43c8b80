"""Keras itself, on torch: it makes the models, writes the files, and predicts what is compared."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.models.keras_files.load import load_keras
from pipeline.models.keras_files.model import KerasModel

FORMS = ("h5", "keras", "json")


def keras() -> Any:
    """The library, imported late: it takes seconds."""
    os.environ["KERAS_BACKEND"] = "torch"
    logging.getLogger("absl").setLevel(logging.ERROR)  # that h5 is a legacy form
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras

    return keras


def layers() -> Any:
    return keras().layers


def randomised(model: Any, seed: int = 0) -> Any:
    """With weights of which none is like another."""
    generator = np.random.RandomState(seed)
    for weight in model.weights:
        values = 0.4 * generator.normal(size=weight.shape)
        weight.assign((abs(values) + 0.3 if "variance" in weight.path else values).astype("float32"))
    return model


def one_hot(length: int, n: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    """(N, L, 4)."""
    return np.eye(4, dtype="float32")[np.random.RandomState(seed).randint(0, 4, (n, length))]


def save(model: Any, folder: Path, form: str) -> tuple[Path, Path | None]:
    """The file of a model, and of its description where it holds weights alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form != "json":
            model.save(folder / f"model.{form}")
            return folder / f"model.{form}", None
        (folder / "model.json").write_text(model.to_json())
        model.save_weights(folder / "model.weights.h5")
    return folder / "model.weights.h5", folder / "model.json"


def read(model: Any, folder: Path, form: str = "keras", **more: Any) -> KerasModel:
    path, description = save(model, folder, form)
    return load_keras(path, description, **more).module


def predictions(model: Any, inputs: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    with warnings.catch_warnings():  # masks that end at a layer
        warnings.simplefilter("ignore")
        found = model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
    return [one.detach().numpy() for one in (found if isinstance(found, list | tuple) else [found])]


def require_alike(
    model: Any, folder: Path, form: str = "keras", length: int = 24, others: Sequence[Any] = (), shape: Any = None
) -> KerasModel:
    """The model as dlshap reads it, whose predictions are Keras's. `shape`: of the one-hot input, without the batch."""
    module = read(randomised(model), folder, form)
    x = one_hot(length)
    wanted = predictions(model, [x.reshape(3, *shape) if shape else x, *others])
    with torch.no_grad():
        found = module(torch.from_numpy(x).transpose(1, 2), *map(torch.from_numpy, others))
    found = found if isinstance(found, tuple) else (found,)
    names = module.output_names
    assert len(found) == len(wanted) == len(names)
    for name, ours, theirs in zip(names, found, wanted, strict=True):
        assert ours.shape == theirs.shape, name
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=2e-6 * max(1, abs(theirs).max()), err_msg=name)
    return module


def each_applied(makers: dict[str, Callable[[Any], Any]], length: int = 24, n_features: int = 6) -> Any:
    """One model with each layer applied to the same features: an output of its own, called like it."""
    k = keras()
    x = k.Input((length, 4))
    features = k.layers.Conv1D(n_features, 3)(x)
    outputs = {}
    for name, make in makers.items():
        found = make(k.layers)(features)
        outputs[name] = k.layers.Activation("linear", name=f"out_{name}")(found)
    return k.Model(x, list(outputs.values()))
