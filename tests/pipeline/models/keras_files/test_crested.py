"""CREsted's own activations and layers, against Keras layers that are written here from their publications."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlshap_core.engine import attribute
from dlshap_core.references import dinucleotide_shuffle
from pipeline.messages.errors import UserError
from tests.pipeline.models.keras_files import oracle

LENGTH = 32


def features(kind: str, length: int, n: int) -> np.ndarray[Any, Any]:
    """(length, length, n): of the distance of each two positions, as Enformer and Borzoi have them."""
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    far = np.abs(distance)[..., None].astype(np.float64)
    if kind == "borzoi":
        each = n // 2
        found = far < np.exp(np.log(length + 1) / each) ** np.arange(1, each + 1) - 1
    else:
        each = n // 6
        decay = np.exp(-np.log(2) * far / 2 ** np.linspace(3, np.log2(length), each))
        near = far < 2.0 ** np.arange(1, each + 1) - 1
        means, deviation = np.linspace(length / each, length, each), length / (2 * each)
        shape, rate = (means / deviation) ** 2, means / deviation**2
        constant = np.array([math.lgamma(one) for one in shape]) - shape * np.log(rate)
        with np.errstate(divide="ignore"):
            density = np.exp((shape - 1) * np.log(far) - rate * far - constant) + 1e-8
        found = np.concatenate([decay, near, density / density.max((0, 1))], -1)
    return np.concatenate([found, np.sign(distance)[..., None] * found], -1).astype(np.float32)


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """Layers and activations under the names that CREsted registers."""
    keras = oracle.keras()
    registered = keras.saving.register_keras_serializable

    @registered("crested", "gelu_approx")
    def gelu_approx(x: Any) -> Any:
        return keras.activations.gelu(x, approximate=True)

    @registered("crested", "gelu_enf")
    def gelu_enf(x: Any) -> Any:
        return x * keras.activations.sigmoid(1.702 * x)

    @registered("crested", "AttentionPool1D")
    class AttentionPool1D(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.w = self.add_weight(shape=(shape[-1], shape[-1]))

        def call(self, x: Any) -> Any:
            x = keras.ops.reshape(x, (-1, x.shape[1] // 2, 2, x.shape[2]))
            weights = keras.ops.exp(keras.ops.matmul(x, self.w))
            return keras.ops.sum(x * weights, 2) / keras.ops.sum(weights, 2)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "pool_size": 2}

    @registered("crested", "MultiheadAttention")
    class MultiheadAttention(keras.layers.Layer):  # type: ignore[misc,name-defined]
        heads, key_size, value_size = 2, 4, 6

        def __init__(self, kind: str = "borzoi", n: int = 12, **more: Any) -> None:
            super().__init__(**more)
            self.kind, self.n = kind, n

        def build(self, shape: Any) -> None:
            keys, values = self.heads * self.key_size, self.heads * self.value_size
            sizes = {"q": keys, "k": keys, "v": values, "embedding": values, "r_k": keys if self.n else 0}
            for name, size in sizes.items():
                if size:
                    setattr(self, f"_{name}_layer", keras.layers.Dense(size, use_bias=name == "embedding"))
            bias = [1, self.heads, 1, self.key_size]
            self._r_w_bias, self._r_r_bias = self.add_weight(shape=bias), self.add_weight(shape=bias)

        def call(self, x: Any) -> Any:
            def split(found: Any) -> Any:
                shape = (-1, found.shape[1], self.heads, found.shape[2] // self.heads)
                return keras.ops.transpose(keras.ops.reshape(found, shape), (0, 2, 1, 3))

            q, k, v = split(self._q_layer(x)) / 2, split(self._k_layer(x)), split(self._v_layer(x))
            scores = keras.ops.einsum("nhik,nhjk->nhij", q + self._r_w_bias, k)
            if self.n:
                of_distance = self._r_k_layer(features(self.kind, x.shape[1], self.n))
                of_distance = keras.ops.reshape(of_distance, (x.shape[1], x.shape[1], self.heads, self.key_size))
                scores = scores + keras.ops.einsum("nhik,ijhk->nhij", q + self._r_r_bias, of_distance)
            mixed = keras.ops.transpose(keras.ops.matmul(keras.ops.softmax(scores), v), (0, 2, 1, 3))
            return self._embedding_layer(keras.ops.reshape(mixed, (-1, x.shape[1], self.heads * self.value_size)))

        def get_config(self) -> dict[str, Any]:
            sizes = {"heads": self.heads, "key_size": self.key_size, "value_size": self.value_size, "scaling": True}
            distances = {"relative_position_functions": self.kind, "num_position_features": self.n}
            return {**super().get_config(), **sizes, **distances, "relative_position_absolute": True}

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return cls(config["relative_position_functions"], config["num_position_features"], name=config["name"])

    return locals()


def model(own: dict[str, Any], kind: str, n: int) -> Any:
    k = oracle.layers()
    keras = oracle.keras()
    x = start = k.Input((LENGTH, 4))
    x = k.Conv1D(6, 5, padding="same", activation=own["gelu_approx"])(x)
    x = k.Activation(own["gelu_enf"])(own["AttentionPool1D"]()(x))
    x = k.Add()([k.Dense(12)(x), own["MultiheadAttention"](kind, n)(x)])
    return oracle.randomised(keras.Model(start, k.Dense(3)(x)))


@pytest.mark.parametrize(("kind", "n"), [("borzoi", 12), ("enformer", 12), ("borzoi", 0)])
def test_they_are_read_exactly(own: dict[str, Any], kind: str, n: int, tmp_path: Path) -> None:
    theirs = model(own, kind, n)
    found = oracle.read(theirs, tmp_path)
    x = oracle.one_hot(LENGTH)
    (expected,) = oracle.predictions(theirs, [x])
    X = torch.from_numpy(x).transpose(1, 2)
    actual = found(X).detach().numpy()
    assert np.abs(actual - expected).max() < 2e-6 * np.abs(expected).max()
    double = found.double()
    result = attribute(
        Flat(double), X.double(), dinucleotide_shuffle(X, n=2, random_state=0).double(), targets="all", device="cpu"
    )
    spread = (result.prediction.unsqueeze(-1) - result.reference_prediction).abs().max()
    assert result.convergence_delta.abs().max() < 1e-12 * spread


class Flat(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)[:, 5]  # type: ignore[no-any-return]


def test_what_they_do_not_say(own: dict[str, Any], tmp_path: Path) -> None:
    theirs = model(own, "borzoi", 12)
    theirs.layers[-3].kind = "other"
    with pytest.raises(UserError, match=r"relative_position_functions is 'other'; expected one of borzoi, enformer"):
        oracle.read(theirs, tmp_path)


def test_an_activation_by_another_name(tmp_path: Path) -> None:
    k, keras = oracle.layers(), oracle.keras()

    @keras.saving.register_keras_serializable("mine", "smooth")
    def smooth(x: Any) -> Any:
        return keras.activations.gelu(x, approximate=True)

    theirs = oracle.randomised(keras.Sequential([k.Input((LENGTH, 4)), k.Dense(3), k.Activation(smooth)]))
    with pytest.raises(UserError, match=r"its activation mine>smooth is not .*: model\.layers\.smooth=gelu$"):
        oracle.read(theirs, tmp_path)
    found = oracle.read(theirs, tmp_path, layers={"smooth": "gelu_approx"})
    x = oracle.one_hot(LENGTH)
    (expected,) = oracle.predictions(theirs, [x])
    assert np.abs(found(torch.from_numpy(x).transpose(1, 2)).detach().numpy() - expected).max() < 1e-5
