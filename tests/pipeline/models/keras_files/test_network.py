"""Models of any graph: shared layers, models within models, several inputs and outputs; and their attributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlshap_core.deep_lift_shap import deep_lift_shap
from pipeline.config.model_input import InputSettings
from pipeline.messages.errors import UserError
from pipeline.models.adapted import adapted
from pipeline.models.keras_files.axes import to_keras, to_torch
from pipeline.models.keras_files.layers.operations import Take
from pipeline.models.keras_files.load import load_keras
from tests.pipeline.models.keras_files.oracle import FORMS, keras, one_hot, randomised, read, require_alike, save


def shared(k: Any) -> Any:
    """One layer called twice, and a residual."""
    L, x = k.layers, k.Input((30, 4))
    conv, dense, pool = L.Conv1D(4, 3, padding="same", activation="relu"), L.Dense(2), L.GlobalAveragePooling1D()
    first = conv(x)
    second = conv(first)
    return k.Model(x, L.Add()([dense(pool(first)), dense(pool(second)), dense(pool(L.Add()([first, second])))]))


def nested(k: Any) -> Any:
    """Models within a model, one of them called twice and with two outputs."""
    L, y = k.layers, k.Input((30, 4))
    outputs = [L.GlobalAveragePooling1D()(L.BatchNormalization()(L.Conv1D(5, 3)(y))), L.Conv1D(2, 3)(y)]
    pair = k.Model(y, outputs, name="pair")
    parts = [L.Conv1D(4, 3, padding="same"), L.BatchNormalization(), L.Conv1D(4, 3, padding="same", activation="relu")]
    trunk = k.Sequential([k.Input((30, 4)), *parts], name="trunk")
    x = k.Input((30, 4))
    a, b = pair(trunk(x))
    c, d = pair(x)
    return k.Model(x, [L.Dense(2, name="first")(L.Concatenate()([a, c])), L.Add(name="second")([b, d])])


def frozen(k: Any) -> Any:
    """Of layers that are not trained, the weights come behind the others in a file of Keras 2."""
    model = nested(k)
    model.get_layer("pair").trainable = False
    model.get_layer("trunk").layers[0].trainable = False
    return model


def reversed_outputs(k: Any) -> Any:
    """Outputs in another order than the layers'."""
    L, x = k.layers, k.Input((30, 4))
    last, first = L.Dense(3, name="z")(x), L.Dense(2, name="a")(x)
    return k.Model(x, [L.Flatten(name="one")(first), L.Flatten(name="two")(last)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [shared, nested, frozen, reversed_outputs])
def test_graphs(tmp_path: Path, make: Any, form: str) -> None:
    module = require_alike(make(keras()), tmp_path, form, length=30)
    assert module.length == 30


@pytest.mark.parametrize("form", FORMS)
def test_operations_among_the_layers(tmp_path: Path, form: str) -> None:
    k = keras()
    L, ops, x = k.layers, k.ops, k.Input((20, 4))
    y = L.Conv1D(4, 3, padding="same")(x)
    mean = ops.mean(ops.exp(ops.gelu(1 - (y + x) * 2.0 / 3.0)), axis=1, keepdims=True)
    turned = ops.transpose(y, (0, 2, 1))
    outputs = [
        mean,
        ops.squeeze(mean, axis=1),
        ops.expand_dims(ops.max(y, axis=1), 1),
        ops.logsumexp(y, axis=-1),
        ops.maximum(y, 0.1),
        ops.relu(y[:, 2:-2]) / 2,
        y[:, 3],
        ops.softmax(ops.concatenate([x, y], axis=-1), axis=-1),
        ops.matmul(y, turned),
        ops.reshape(turned, (-1, 80)),
        ops.tanh(ops.abs(-y)),
        y[..., 1],
        y[:, None, 3],
        ops.clip(y, -0.1, 0.2) ** 2,
        ops.flip(y, axis=(1, -1)),
    ]
    require_alike(k.Model(x, outputs), tmp_path, form, length=20)


@pytest.mark.parametrize(
    "key",
    [
        ((None, None, None), (None, None, -1), (None, None, -1)),
        ((None, None, None), (5, 1, -2), None, 3),
        ((None, None, None), 2, (1, 9, -3)),
        ((None, None, None), ..., None, (-9, 99, 3)),
        (..., -1),
        (..., (-2, None, -1)),
    ],
)
def test_parts_of_a_tensor_are_numpys(key: tuple[Any, ...]) -> None:
    """Also backwards, as models of TensorFlow have it, which Keras on torch cannot."""
    x = np.random.rand(2, 7, 5)
    wanted = x[tuple(slice(*one) if isinstance(one, tuple) else one for one in key)]
    np.testing.assert_array_equal(to_keras(Take()(to_torch(torch.from_numpy(x)), key)).numpy(), wanted)


@pytest.mark.parametrize("axis", [0, (0, 1)])
def test_operations_over_the_batch_are_refused(tmp_path: Path, axis: Any) -> None:
    k = keras()
    x = k.Input((20, 4))
    module = read(k.Model(x, x - k.ops.mean(x, axis=axis, keepdims=True)), tmp_path)
    with pytest.raises(ValueError, match=r"layer 'mean[_0-9]*': it mixes the sequences of a batch"):
        module(torch.zeros(2, 4, 20))


def test_outputs_have_the_names_of_their_layers(tmp_path: Path) -> None:
    module = read(nested(keras()), tmp_path)
    found = module(torch.zeros(1, 4, 30))
    assert found._fields == ("first", "second")
    assert [tuple(one.shape) for one in found] == [(1, 2), (1, 28, 2)]
    first = read(nested(keras()), tmp_path, channels_first=True)(torch.zeros(1, 4, 30))
    assert [tuple(one.shape) for one in first] == [(1, 2), (1, 2, 28)]


@pytest.mark.parametrize("form", FORMS)
def test_other_inputs(tmp_path: Path, form: str) -> None:
    k = keras()
    L, track, x, dose = k.layers, k.Input((20, 2), name="track"), k.Input((20, 4)), k.Input((3,), name="dose")
    joined = L.Concatenate()([L.Flatten()(L.Conv1D(3, 3)(L.Concatenate()([x, track]))), dose])
    model = k.Model([track, x, dose], L.Dense(2)(joined))
    module = read(randomised(model), tmp_path, form)
    sequences, tracks, doses = one_hot(20), np.random.rand(3, 20, 2).astype("f4"), np.random.rand(3, 3).astype("f4")
    wanted = model([tracks, sequences, doses]).detach()
    ours = torch.from_numpy(sequences).transpose(1, 2)
    for given in (torch.from_numpy(tracks), torch.from_numpy(tracks).transpose(1, 2)):  # as Keras has it, or dlshap
        torch.testing.assert_close(module(ours, given, torch.from_numpy(doses)), wanted, rtol=1e-6, atol=2e-6)
    with pytest.raises(
        ValueError, match=r"2 extra inputs beside the sequence \(track, dose\), and 0 .*=\[track,dose\]"
    ):
        module(ours)


@pytest.mark.parametrize(("shape", "axes"), [((24, 4), None), ((4, 24), (0, 2, 1)), ((1, 4, 24), (0, 2, 1))])
def test_axes_of_the_sequence(tmp_path: Path, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    k = keras()
    model = randomised(k.Sequential([k.Input(shape), k.layers.Flatten(), k.layers.Dense(2)]))
    module, x = read(model, tmp_path), one_hot(24)
    wanted = model((x if axes is None else x.transpose(axes)).reshape(3, *shape)).detach()
    torch.testing.assert_close(module(torch.from_numpy(x).transpose(1, 2)), wanted, rtol=1e-6, atol=2e-6)


def test_tokens_into_an_embedding(tmp_path: Path) -> None:
    k = keras()
    L, x = k.layers, k.Input((20,), name="dna")
    model = randomised(k.Model(x, L.GlobalMaxPooling1D()(L.Conv1D(3, 4)(L.Embedding(6, 5)(x)))))
    module = read(model, tmp_path)
    sequences = one_hot(20)
    wanted = model(np.array([2, 1, 4, 3])[sequences.argmax(-1)]).detach()
    found = adapted(module, InputSettings(tokens=[2, 1, 4, 3]))(torch.from_numpy(sequences).transpose(1, 2))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=2e-6)
    assert module.length == 20
    for tokens in (None, [3, 4, 5, 6]):
        with pytest.raises(UserError, match=r"as whole numbers below 6.*; say which .*model\.tokens=\[1,2,3,4\]"):
            adapted(module, InputSettings(tokens=tokens))
    one_hot_model = read(k.Sequential([k.Input((20, 4)), L.Flatten()]), tmp_path)
    with pytest.raises(UserError, match="takes one-hot sequences; leave"):
        adapted(one_hot_model, InputSettings(tokens=[1, 2, 3, 4]))


def test_further_channels_and_a_second_sequence_that_is_the_same(tmp_path: Path) -> None:
    k = keras()
    L, other, x = k.layers, k.Input((20, 4), name="other"), k.Input((20, 5), name="dna-signal")
    both = L.Concatenate()([L.Conv1D(3, 4)(x), L.Conv1D(2, 4)(other)])
    model = randomised(k.Model([other, x], L.Dense(2)(L.Flatten()(both))))
    module = read(model, tmp_path, sequence="dna-signal", has_channels=True)
    sequences, track = one_hot(16), np.random.rand(3, 16, 1).astype("f4")
    both = np.concatenate([sequences[:, :, [0, 2, 1, 3]], track], 2)
    padded = np.pad(both, ((0, 0), (2, 2), (0, 0)))
    padded[:, [0, 1, 18, 19], :4] = 0.25
    wanted = model([np.full((3, 20, 4), 0.25, "f4"), padded]).detach()
    given = InputSettings(channels=["arg_0"], bases="AGCT", length=20, pad="n", forward={"other": {"sequence": "n"}})
    ours = (torch.from_numpy(one).transpose(1, 2) for one in (sequences, track))
    torch.testing.assert_close(adapted(module, given)(*ours), wanted, rtol=1e-6, atol=2e-6)
    with pytest.raises(ValueError, match=r"6 channels where its file says 5; .* is given by model\.channels"):
        adapted(module, InputSettings(channels=[0, 1], forward={"other": {"sequence": "n"}}))(torch.zeros(1, 4, 20))
    with pytest.raises(UserError, match=r"no argument 'others'; did you mean other\?"):
        adapted(module, InputSettings(channels=[0], forward={"others": 1}))
    for sequence in ("signal", "other"):
        with pytest.raises(UserError, match=r"model\.input=.*there are other: \(N, 20, 4\), dna-signal: \(N, 20, 5\)"):
            read(model, tmp_path, sequence=sequence, has_channels=True)
    with pytest.raises(UserError, match=r"'dataset\.args=\[track\.bw\]' 'model\.channels=\[arg_0\]'"):
        read(model, tmp_path, sequence="dna-signal")


def test_any_length_and_the_one_in_the_file(tmp_path: Path) -> None:
    k = keras()
    L = k.layers
    layers = [L.Conv1D(6, 3), L.GlobalAveragePooling1D(), L.Dense(2)]
    assert require_alike(k.Sequential([k.Input((None, 4)), *layers]), tmp_path, length=41).length is None
    module = read(k.Sequential([k.Input((30, 4)), *layers]), tmp_path)
    with pytest.raises(ValueError, match="41 bases where its file says 30"):
        module(torch.zeros(1, 4, 41))


def test_no_sequence_among_the_inputs(tmp_path: Path) -> None:
    k = keras()
    with pytest.raises(UserError, match=r"no input is a one-hot sequence; there are dna: \(N, 30, 5\), and expected"):
        read(k.Sequential([k.Input((30, 5), name="dna"), k.layers.Flatten(), k.layers.Dense(1)]), tmp_path)


def _everything(k: Any) -> Any:
    L, x = k.layers, k.Input((20, 4))
    y = L.Conv1D(6, 4, padding="same", activation="relu")(x)
    y = L.Add()([y, L.Conv1D(6, 3, padding="same", dilation_rate=2, activation="gelu")(y)])
    y = L.MaxPooling1D(3, 2, padding="same")(L.BatchNormalization()(y))
    y = L.Multiply()([y, L.Reshape((1, 6))(L.Dense(6, activation="sigmoid")(L.GlobalAveragePooling1D()(y)))])
    y = L.LayerNormalization()(L.Add()([y, L.MultiHeadAttention(2, 3)(y, y)]))
    y = L.PReLU()(L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="mul")(y))
    y = L.Concatenate()([L.Flatten()(y), L.GlobalMaxPooling1D()(y)])
    return k.Model(x, L.Dense(2, activation="softplus")(y))


def test_contributions_sum_to_the_difference_of_predictions(tmp_path: Path) -> None:
    module = read(randomised(_everything(keras())), tmp_path).double()
    x = torch.from_numpy(one_hot(20, 2)).transpose(1, 2).double()
    references = x.flip(2).unsqueeze(1)
    found = deep_lift_shap(module, x, target=1, references=references, device="cpu", raw_outputs=True)
    summed = (found * (x.unsqueeze(1) - references)).sum((2, 3))[:, 0]
    with torch.no_grad():
        wanted = (module(x) - module(references[:, 0]))[:, 1]
    torch.testing.assert_close(summed, wanted, rtol=0, atol=1e-12)


def test_attributions_are_those_of_the_model_in_keras(tmp_path: Path) -> None:
    """Of Keras's own module on torch, whose layers are seen into just the same."""
    k = keras()
    L = k.layers
    layers = [L.Conv1D(5, 3, activation="relu"), L.MaxPooling1D(2), L.Flatten(), L.Dense(3, activation="relu")]
    model = randomised(k.Sequential([k.Input((20, 4)), *layers, L.Dense(1)]))
    module = read(model, tmp_path)
    x = torch.from_numpy(one_hot(20, 2)).transpose(1, 2)

    class Original(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return model(x.transpose(1, 2), training=False)

    ours, theirs = (
        deep_lift_shap(each.eval(), x, n_shuffles=3, random_state=0, device="cpu", hypothetical=True)
        for each in (module, Original())
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_folds_have_one_set_of_names(tmp_path: Path) -> None:
    """Keras counts the layers of all models that a process makes."""
    k = keras()
    folds = []
    for fold in ("a", "b"):
        (tmp_path / fold).mkdir()
        k.layers.Dense(1)
        folds.append(save(randomised(nested(k), ord(fold)), tmp_path / fold, "keras")[0])
    first = load_keras(folds[0])
    names = [[*load_keras(path, like=first.architecture).module.state_dict()] for path in folds]
    assert names[0] == names[1] != [*load_keras(folds[1]).module.state_dict()]


@pytest.mark.parametrize("form", ["keras", "h5"])
def test_a_masked_recurrent_layer_is_refused(tmp_path: Path, form: str) -> None:
    k = keras()
    model = k.Sequential([k.Input((20, 4)), k.layers.Masking(name="mask"), k.layers.Dropout(0.1), k.layers.LSTM(3)])
    with pytest.raises(UserError, match=r"layer 'lstm.*leaves out positions that 'mask' masks"):
        read(model, tmp_path, form)
