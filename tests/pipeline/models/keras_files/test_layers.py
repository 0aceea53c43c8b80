"""Every layer, in each of its modes, predicts what Keras does, whichever form the file has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlshap_core.rules.names import words
from pipeline.models.keras_files.layer import Layer, LayerError
from pipeline.models.keras_files.layers.activations import HardSigmoid, activation
from pipeline.models.keras_files.layers.normalizations import LayerNorm
from pipeline.models.keras_files.layers.pooling import PaddedMean
from pipeline.models.keras_files.layers.table import TABLE
from tests.pipeline.models.keras_files.oracle import FORMS, each_applied, keras, require_alike

Make = Callable[[Any], Any]


def _conv(**more: Any) -> Make:
    return lambda L: L.Conv1D(4, **more)


def _max(**more: Any) -> Make:
    return lambda L: L.MaxPooling1D(**more)


def _mean(**more: Any) -> Make:
    return lambda L: L.AveragePooling1D(**more)


CONVOLUTIONS: dict[str, Make] = {
    **{
        f"conv_{padding}_{width}_{stride}_{dilation}": _conv(
            kernel_size=width, strides=stride, dilation_rate=dilation, padding=padding, activation="relu"
        )
        for padding in ("valid", "same", "causal")
        for width, stride, dilation in ((3, 1, 1), (4, 1, 1), (4, 2, 1), (5, 3, 1), (3, 1, 3), (4, 1, 2))
    },
    "grouped": lambda L: L.Conv1D(4, 3, groups=2),
    "no_bias": lambda L: L.Conv1D(4, 3, use_bias=False),
    "channels_first": lambda L: L.Conv1D(5, 3, data_format="channels_first"),
    "separable": lambda L: L.SeparableConv1D(5, 3, padding="same", depth_multiplier=2, activation="tanh"),
    "separable_strided": lambda L: L.SeparableConv1D(5, 4, strides=2, padding="same"),
    "depthwise": lambda L: L.DepthwiseConv1D(3, depth_multiplier=2, activation="relu"),
    "transposed": lambda L: L.Conv1DTranspose(5, 3, strides=2),
    "transposed_same": lambda L: L.Conv1DTranspose(5, 5, strides=3, padding="same"),
    "transposed_even": lambda L: L.Conv1DTranspose(5, 4, strides=2, padding="same"),
    "transposed_apart": lambda L: L.Conv1DTranspose(3, 2, strides=3),
    "dense": lambda L: L.Dense(3, activation="relu"),
    "dense_each": lambda L: L.TimeDistributed(L.Dense(3, activation="tanh")),
}
POOLING: dict[str, Make] = {
    **{
        f"max_{padding}_{width}_{strides}": _max(pool_size=width, strides=strides, padding=padding)
        for padding in ("valid", "same")
        for width, strides in ((2, 2), (3, 2), (2, 3), (5, None), (4, 3), (3, 1), (4, 1))
    },
    **{
        f"mean_{width}_{strides}": _mean(pool_size=width, strides=strides)
        for width, strides in ((2, 2), (3, 2), (2, 3), (5, None), (3, 1))
    },
    "max_first": lambda L: L.MaxPooling1D(2, data_format="channels_first"),
    "global_max": lambda L: L.GlobalMaxPooling1D(),
    "global_mean": lambda L: L.GlobalAveragePooling1D(),
    "global_kept": lambda L: L.GlobalAveragePooling1D(keepdims=True),
    "global_first": lambda L: L.GlobalAveragePooling1D(data_format="channels_first"),
    "crop": lambda L: L.Cropping1D((2, 3)),
    "crop_both": lambda L: L.Cropping1D(2),
    "zeros": lambda L: L.ZeroPadding1D((1, 4)),
    "up": lambda L: L.UpSampling1D(3),
}
NAMED = """
    linear relu relu6 sigmoid hard_sigmoid tanh softmax softplus softsign exponential elu selu gelu swish silu mish
    leaky_relu log_softmax hard_silu hard_tanh hard_shrink soft_shrink tanh_shrink squareplus log_sigmoid celu glu
"""
ACTIVATIONS: dict[str, Make] = {
    **{f"named_{name}": lambda L, name=name: L.Activation(name) for name in words(NAMED)},
    **{f"within_{name}": lambda L, name=name: L.Dense(4, activation=name) for name in ("gelu", "softmax")},
    "relu": lambda L: L.ReLU(),
    "relu_capped": lambda L: L.ReLU(max_value=1.0),
    "relu_in_full": lambda L: L.ReLU(negative_slope=0.2, max_value=0.7, threshold=0.1),
    "relu_threshold": lambda L: L.ReLU(threshold=0.3),
    "leaky": lambda L: L.LeakyReLU(),
    "leaky_slope": lambda L: L.LeakyReLU(negative_slope=0.05),
    "elu": lambda L: L.ELU(alpha=0.5),
    "prelu": lambda L: L.PReLU(),
    "prelu_shared": lambda L: L.PReLU(shared_axes=[1]),
    "softmax": lambda L: L.Softmax(),
    "softmax_positions": lambda L: L.Softmax(axis=1),
    "a_layer_within": lambda L: L.Dense(3, activation=L.LeakyReLU(negative_slope=0.4)),
}
NORMALIZATIONS: dict[str, Make] = {
    "batch": lambda L: L.BatchNormalization(),
    "batch_bare": lambda L: L.BatchNormalization(scale=False, center=False, epsilon=0.1),
    "batch_scale": lambda L: L.BatchNormalization(center=False),
    "batch_positions": lambda L: L.BatchNormalization(axis=1),
    "layer": lambda L: L.LayerNormalization(),
    "layer_both": lambda L: L.LayerNormalization(axis=[1, 2], epsilon=0.01),
    "layer_center": lambda L: L.LayerNormalization(scale=False),
    "layer_scale": lambda L: L.LayerNormalization(center=False),
    "group": lambda L: L.GroupNormalization(groups=3),
    "instance": lambda L: L.GroupNormalization(groups=-1),
    "group_bare": lambda L: L.GroupNormalization(groups=2, scale=False, center=False),
    "rms": lambda L: L.RMSNormalization(),
}
SHAPES: dict[str, Make] = {
    "flatten": lambda L: L.Flatten(),
    "flatten_first": lambda L: L.Flatten(data_format="channels_first"),
    "reshape": lambda L: L.Reshape((11, 12)),
    "reshape_more": lambda L: L.Reshape((-1, 4, 3)),
    "permute": lambda L: L.Permute((2, 1)),
    "rescale": lambda L: L.Rescaling(2.0, offset=1.0),
    "identity": lambda L: L.Identity(),
    "dropout": lambda L: L.Dropout(0.5),
    "spatial": lambda L: L.SpatialDropout1D(0.5),
    "noise": lambda L: L.GaussianNoise(0.5),
    "mask": lambda L: L.Masking(),
}
RECURRENT: dict[str, Make] = {
    "lstm": lambda L: L.LSTM(5),
    "lstm_backwards": lambda L: L.LSTM(5, return_sequences=True, go_backwards=True),
    "lstm_other": lambda L: L.LSTM(
        5, activation="relu", recurrent_activation="hard_sigmoid", return_sequences=True, go_backwards=True
    ),
    "lstm_no_bias": lambda L: L.LSTM(5, use_bias=False),
    "gru": lambda L: L.GRU(5, return_sequences=True, go_backwards=True),
    "gru_before": lambda L: L.GRU(5, reset_after=False),
    "gru_other": lambda L: L.GRU(4, activation="softsign", recurrent_activation="hard_sigmoid"),
    "gru_bare": lambda L: L.GRU(4, reset_after=False, use_bias=False, return_sequences=True),
    "gru_no_bias": lambda L: L.GRU(4, use_bias=False),
    "rnn": lambda L: L.SimpleRNN(4),
    "rnn_other": lambda L: L.SimpleRNN(4, activation="sigmoid", return_sequences=True),
    "both_ways": lambda L: L.Bidirectional(L.LSTM(4)),
    "both_sum": lambda L: L.Bidirectional(L.GRU(4, return_sequences=True), merge_mode="sum"),
    "both_mul": lambda L: L.Bidirectional(
        L.LSTM(4, return_sequences=True),
        merge_mode="mul",
        backward_layer=L.LSTM(4, go_backwards=True, return_sequences=True, activation="sigmoid"),
    ),
    "both_mean": lambda L: L.Bidirectional(L.SimpleRNN(4, return_sequences=True), merge_mode="ave"),
}
GROUPS = {
    "convolutions": CONVOLUTIONS,
    "pooling": POOLING,
    "activations": ACTIVATIONS,
    "normalizations": NORMALIZATIONS,
    "shapes": SHAPES,
    "recurrent": RECURRENT,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", GROUPS)
def test_predictions_are_those_of_keras(tmp_path: Path, group: str, form: str) -> None:
    require_alike(each_applied(GROUPS[group]), tmp_path, form)


@pytest.mark.parametrize("form", FORMS)
def test_layers_of_several_tensors(tmp_path: Path, form: str) -> None:
    k = keras()
    L, x = k.layers, k.Input((16, 4))
    a, b = L.Conv1D(6, 3)(x), L.Conv1D(6, 3, activation="relu")(x)
    pooled = L.GlobalMaxPooling1D()(a)
    attended = L.MultiHeadAttention(2, 3, value_dim=5)(a, b)
    sequences, hidden, cell = L.LSTM(4, return_state=True, return_sequences=True)(a)
    outputs = [
        *(make()([a, b]) for make in (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)),
        L.Multiply()([a, L.Reshape((1, 6))(L.Dense(6, activation="sigmoid")(pooled))]),
        L.Concatenate()([a, b]),
        L.Concatenate(axis=1)([a, b]),
        *(L.Dot(axes=axes)([a, b]) for axes in (1, 2)),
        L.Dot(axes=2, normalize=True)([a, b]),
        L.Dot(axes=1)([pooled, L.Dense(6)(pooled)]),
        L.Conv1D(2, 3)(L.RepeatVector(5)(pooled)),
        attended,
        L.MultiHeadAttention(2, 4, use_bias=False)(a, b, key=attended),
        L.MultiHeadAttention(2, 3)(a, a, use_causal_mask=True),
        *L.MultiHeadAttention(2, 3, value_dim=2, output_shape=4)(a, b, return_attention_scores=True),
        L.Attention(use_scale=True)([a, b]),
        L.AdditiveAttention()([a, b, attended]),
        sequences,
        hidden,
        cell,
        *L.Bidirectional(L.GRU(3, return_state=True))(a),
    ]
    require_alike(k.Model(x, outputs), tmp_path, form, length=16)


@pytest.mark.parametrize(("shape", "length"), [((30, 4, 1), 30), ((1, 30, 4), 30)])
def test_layers_over_two_axes(tmp_path: Path, shape: tuple[int, ...], length: int) -> None:
    k = keras()
    L, x = k.layers, k.Input(shape)
    width = (lambda n: (n, 1)) if shape[2] == 1 else (lambda n: (1, n))
    y = L.Conv2D(6, (5, 4) if shape[2] == 1 else (1, 5), activation="relu")(x)
    y = L.MaxPooling2D(width(2))(L.BatchNormalization()(y))
    outputs = [
        L.Conv2D(4, width(3), padding="same", strides=width(2))(y),
        L.SeparableConv2D(5, width(3), padding="same")(y),
        L.DepthwiseConv2D(width(3))(y),
        L.Conv2DTranspose(3, width(4), strides=width(2), padding="same")(y),
        L.ZeroPadding2D((1, 2))(y),
        L.Cropping2D(((1, 0), (0, 0)) if shape[2] == 1 else ((0, 0), (2, 1)))(y),
        L.UpSampling2D((2, 3))(y),
        L.AveragePooling2D(width(3), padding="same")(y),
        L.GlobalAveragePooling2D()(y),
        L.Flatten()(y),
        L.Dense(2)(y),
    ]
    require_alike(k.Model(x, outputs), tmp_path, length=length, shape=shape)


def test_hard_sigmoid_is_another_in_keras_2() -> None:
    old, new = (activation(Layer("a", "Activation", {"activation": "hard_sigmoid"}, major)) for major in (2, 3))
    x = torch.tensor([-2.8, -2.6, 0.0, 1.0, 2.6])
    assert isinstance(old, HardSigmoid)
    torch.testing.assert_close(old(x), torch.tensor([0, 0, 0.5, 0.7, 1.0]))
    torch.testing.assert_close(new(x), torch.tensor([0.2 / 6, 0.4 / 6, 0.5, 4 / 6, 5.6 / 6]))


@pytest.mark.parametrize(("kind", "n_gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_layers_of_cudnn(kind: str, n_gates: int) -> None:
    """Also where the file says the plain layer, whose biases tell."""
    kernel, own, bias = torch.rand(6, n_gates * 5), torch.rand(5, n_gates * 5), torch.rand(2, n_gates * 5)
    plain = {"kernel": kernel, "recurrent_kernel": own, "bias": bias.sum(0) if kind == "LSTM" else bias}
    turned = {
        "kernel": torch.cat([gate.T.reshape(6, 5) for gate in kernel.chunk(n_gates, 1)], 1),
        "recurrent_kernel": torch.cat([gate.T for gate in own.chunk(n_gates, 1)], 1),
        "bias": bias.flatten(),
    }
    settings = {"units": 5, "return_sequences": True}
    named = {**settings, "activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True}
    x = torch.rand(2, 6, 9)
    wanted = TABLE[kind].make(Layer("a", kind, named, 2), plain)(x)
    for layer in (Layer("a", f"CuDNN{kind}", settings, 2), Layer("a", kind, named, 2)):
        assert torch.equal(TABLE[layer.kind].make(layer, turned)(x), wanted)
    assert [one.name for one in TABLE[f"CuDNN{kind}"].variables(layer)] == [*turned]


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("LSTM", {"units": 1, "stateful": True}, "stateful=True goes on from the batch before.*save the model with"),
        ("GRU", {"units": 1, "reset_after": False}, r"its bias has the shape \(2, 3\); its settings say \(3\)"),
        ("Softmax", {"axis": [1, 2]}, "axis is .*; expected one axis"),
        ("MultiHeadAttention", {"num_heads": 1, "key_dim": 1, "sliding_window": 4}, "sliding_window=4 is not"),
        ("MultiHeadAttention", {"num_heads": 1, "key_dim": 1, "output_shape": [2, 3]}, "expected one size"),
    ],
)
def test_settings_that_are_refused(kind: str, config: dict[str, Any], message: str) -> None:
    weights = {"kernel": torch.zeros(2, 3), "recurrent_kernel": torch.zeros(1, 3), "bias": torch.zeros(2, 3)}
    with pytest.raises(LayerError, match=message):
        TABLE[kind].make(Layer("a", kind, config, 2), weights)


def test_slopes_of_keras_2() -> None:
    """It calls them `alpha`, and writes some as arrays; ThresholdedReLU is gone since."""

    def made(kind: str, **config: Any) -> torch.nn.Module:
        return TABLE[kind].make(Layer("a", kind, config, 2), {})

    x = torch.tensor([-2.0, 0.5, 3.0])
    assert made("LeakyReLU", alpha={"type": "ndarray", "value": 0.25})(x).tolist() == [-0.5, 0.5, 3]
    assert made("LeakyReLU", alpha=0.5)(x).tolist() == [-1, 0.5, 3]
    assert made("ThresholdedReLU", theta=1.0)(x).tolist() == [0, 0, 3]


# Where Keras on torch is not what Keras is on TensorFlow: by hand.


@pytest.mark.parametrize(("width", "stride"), [(4, 1), (5, 2), (6, 4)])
def test_mean_of_windows_that_reach_over_the_ends(width: int, stride: int) -> None:
    x = torch.rand(2, 3, 22, dtype=torch.float64)
    n_out = -(-22 // stride)
    left = max((n_out - 1) * stride + width - 22, 0) // 2
    windows = [x[:, :, max(0, i * stride - left) : i * stride - left + width] for i in range(n_out)]
    wanted = torch.stack([window.mean(-1) for window in windows], -1)
    torch.testing.assert_close(PaddedMean([width], [stride])(x), wanted, rtol=0, atol=1e-15)


def test_layer_norm_over_positions() -> None:
    weight, bias, x = (torch.rand(*shape, dtype=torch.float64) for shape in ((22,), (22,), (2, 3, 22)))
    centred = x - x.mean(2, keepdim=True)
    wanted = centred / (centred.square().mean(2, keepdim=True) + 1e-3).sqrt() * weight + bias
    torch.testing.assert_close(LayerNorm([1], 1e-3, weight, bias)(x), wanted, rtol=0, atol=1e-14)
