"""Files that are damaged, or made to do harm: one line, nothing run, no memory taken."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.config import limits
from pipeline.config.schema import LimitsConfig
from pipeline.messages.errors import UserError
from pipeline.models.keras_files.load import load_keras
from tests.pipeline.models.keras_files.oracle import keras, randomised, save

LAYERS = [
    {"class_name": "InputLayer", "name": "dna", "config": {"name": "dna", "batch_input_shape": [None, 10, 4]}},
    {"class_name": "Conv1D", "name": "conv", "config": {"name": "conv", "filters": 3, "kernel_size": [2]}},
    {"class_name": "Flatten", "name": "flat", "config": {"name": "flat"}},
    {"class_name": "Dense", "name": "dense", "config": {"name": "dense", "units": 1}},
]
WEIGHTS = {
    "conv": {"conv/kernel:0": np.ones((2, 4, 3), "f4"), "conv/bias:0": np.zeros(3, "f4")},
    "dense": {"dense/kernel:0": np.ones((27, 1), "f4"), "dense/bias:0": np.zeros(1, "f4")},
}


def model() -> dict[str, Any]:
    """A chain of Keras 2, as a Functional model."""
    layers = [{**layer, "config": dict(layer["config"]), "inbound_nodes": []} for layer in LAYERS]  # type: ignore[call-overload]
    for before, after in pairwise(layers):
        after["inbound_nodes"] = [[[before["name"], 0, 0, {}]]]
    ends = {"input_layers": [["dna", 0, 0]], "output_layers": [["dense", 0, 0]]}
    return {"class_name": "Functional", "config": {"name": "model", "layers": layers, **ends}}


def write(
    path: Path, config: Any = None, weights: Any = None, change: Callable[[h5py.File], None] | None = None
) -> Path:
    with h5py.File(path, "w") as file:
        text = config if isinstance(config, str) else json.dumps(config or model())
        file.attrs["model_config"] = text
        file.attrs["keras_version"] = "2.8.0"
        group = file.create_group("model_weights")
        weights = weights or WEIGHTS
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for layer, arrays in weights.items():
            own = group.create_group(layer)
            own.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, values in arrays.items():
                own.create_dataset(name, data=values)
        if change is not None:
            change(file)
    return path


def changed(**more: Any) -> dict[str, Any]:
    """The model with other settings of one layer: `conv={"filters": 4}`."""
    found = model()
    for layer in found["config"]["layers"]:
        layer["config"].update(more.get(layer["name"], {}))
    return found


def layer(which: str, /, **more: Any) -> dict[str, Any]:
    """The model with one layer described otherwise."""
    found = model()
    next(one for one in found["config"]["layers"] if one["name"] == which).update(more)
    return found


def test_an_output_that_a_layer_does_not_have(tmp_path: Path) -> None:
    module = load_keras(write(tmp_path / "m.h5", layer("flat", inbound_nodes=[[["conv", 0, 3, {}]]]))).module
    with pytest.raises(ValueError, match="layer 'conv' has 1 outputs, and number 3 is used"):
        module(torch.zeros(1, 4, 10))


def test_the_file_as_it_should_be(tmp_path: Path) -> None:
    module = load_keras(write(tmp_path / "m.h5")).module
    assert module(torch.eye(4)[:, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]].unsqueeze(0)).item() == 2 * 27
    assert module.length == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            changed(conv={"filters": 4}),
            r"layer 'conv' \(Conv1D\): its kernel has the shape \(2, 4, 3\); .* \(2, any, 4\)",
        ),
        (changed(conv={"filters": 1 << 40}), r"layer 'conv' \(Conv1D\): filters is 1099511627776; expected a whole"),
        (changed(conv={"kernel_size": ["2"]}), r"kernel_size is \['2'\]; expected"),
        (changed(conv={"dilation_rate": 0}), r"dilation_rate is 0; expected"),
        (changed(conv={"padding": "full"}), r"padding is 'full'; expected one of valid, same, causal"),
        (changed(conv={"groups": 2}), r"3 filters in 2 groups"),
        (changed(conv={"use_bias": False}), r"it has 2 weights in the file .*; expected 1 \(kernel\)"),
        (
            changed(conv={"activation": "__import__('os')"}),
            r"its activation __import__\('os'\) is not one of Keras's own",
        ),
        (
            changed(conv={"activation": {"class_name": "__lambda__", "config": {}}}),
            r"activation __lambda__ is not one of",
        ),
        (
            layer("flat", class_name="Lambda", config={"function": ["4wEA", None, None]}),
            r"'flat' \(Lambda\): it is code",
        ),
        (layer("flat", class_name="Fancy"), r"'flat' \(Fancy\): its class .*model\.layers\.Fancy=package\.Class"),
        (layer("flat", module="mine.layers"), r"'flat' \(Flatten\): its class is not one of Keras's own"),
        (layer("flat", registered_name="Mine>Flatten"), r"'flat' \(Flatten\): its class is not one of Keras's own"),
        (layer("flat", inbound_nodes=[[["dense", 0, 0, {}]]]), "in a circle: dense, flat"),
        (layer("flat", inbound_nodes=[[["flat", 0, 0, {}]]]), "in a circle: dense, flat"),
        (layer("flat", inbound_nodes=[[["other", 0, 0, {}]]]), "layer 'other' is used, and not described"),
        (layer("flat", inbound_nodes=[[["conv", 0, 0, {}]]] * 10_001), "called 10003 times"),
        (layer("flat", inbound_nodes=[[["conv", -1, 0, {}]]]), r"expected a tensor as \[layer, call, output\]"),
        (layer("flat", inbound_nodes=[[["conv", 0, 0, {"training": True}]]]), "called with training=True"),
        (layer("flat", inbound_nodes=[7]), "'flat'.*called with 7, which is not supported"),
        (layer("flat", inbound_nodes=None), "'flat'.*inbound_nodes are missing"),
        (layer("flat", name="conv"), "two layers have the same name"),
        ({"class_name": "MyModel", "config": {}}, "describes a 'MyModel'; expected a Sequential or Functional model"),
        ({"class_name": "Sequential", "config": {"layers": []}}, "the Sequential has no list of layers"),
        ({"class_name": "Sequential", "config": {"layers": [{"class_name": ["x"]}]}}, "no class_name and config"),
        ("[" * 100_000, "is not JSON"),
        ("{" * 10 + "9" * 10_000, "is not JSON"),
        ('{"class_name": ' * 900 + "1" + "}" * 900, "describes a 'dict'; expected a Sequential|nested too deep"),
        ("[]", "holds a JSON list"),
        ('"' + "x" * (17 << 20) + '"', "its attribute model_config has 17\\.8 MB, more than the limit of 8 MB"),
    ],
)
def test_descriptions(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_keras(write(tmp_path / "m.h5", config))
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "m.h5") in str(raised.value)


def _external_link(file: h5py.File) -> None:
    del file["model_weights/conv/conv/kernel:0"]
    file["model_weights/conv/conv/kernel:0"] = h5py.ExternalLink("/etc/hostname", "/kernel")


def _soft_link(file: h5py.File) -> None:
    del file["model_weights/dense"]
    file["model_weights/dense"] = h5py.SoftLink("/model_weights/conv")


def _external_values(file: h5py.File) -> None:
    del file["model_weights/conv/conv/kernel:0"]
    secret = [("/etc/passwd", 0, 2 * 4 * 3 * 4)]
    file.create_dataset("model_weights/conv/conv/kernel:0", (2, 4, 3), "f4", external=secret)


def _virtual(file: h5py.File) -> None:
    del file["model_weights/conv/conv/kernel:0"]
    layout = h5py.VirtualLayout((2, 4, 3), "f4")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", (2, 4, 3))
    file.create_virtual_dataset("model_weights/conv/conv/kernel:0", layout)


def _without_values(file: h5py.File) -> None:
    del file["model_weights/conv/conv/kernel:0"]
    file.create_dataset("model_weights/conv/conv/kernel:0", (2, 4, 1 << 40), "f4", chunks=(2, 4, 1 << 10))


def _huge_chunk(file: h5py.File) -> None:
    del file["model_weights/dense/dense/bias:0"]
    whole = {"maxshape": (None,), "chunks": (1 << 29,), "compression": "gzip"}
    file.create_dataset("model_weights/dense/dense/bias:0", (1,), "f4", **whole)


def _bomb(file: h5py.File, mask: int = 0) -> None:
    del file["model_weights/dense/dense/bias:0"]
    more = {"chunks": (1,), "shuffle": True, "compression": "gzip", "fletcher32": True}
    bias = file.create_dataset("model_weights/dense/dense/bias:0", (1,), "f4", **more)
    bias.id.write_direct_chunk((0,), zlib.compress(bytes(10**7)) + b"sum.", mask)


def _bomb_behind_a_mask(file: h5py.File) -> None:
    _bomb(file, 1)  # the shuffle is left out


def _compressed_twice(file: h5py.File) -> None:
    del file["model_weights/dense/dense/bias:0"]
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((1,))
    created.set_deflate(1)
    created.set_deflate(1)
    space = h5py.h5s.create_simple((1,))
    h5py.h5d.create(file["model_weights/dense/dense"].id, b"bias:0", h5py.h5t.IEEE_F32LE, space, created)


def _of_text(file: h5py.File) -> None:
    del file["model_weights/dense/dense/bias:0"]
    file.create_dataset("model_weights/dense/dense/bias:0", data=["run this"])


def _missing(file: h5py.File) -> None:
    del file["model_weights/dense/dense/bias:0"]


def _names_that_are_one_text(file: h5py.File, key: str = "weight_names", n: int = 2000) -> None:
    """Texts of any length are references to a heap: here all to the same, which is written once."""
    group, kind = file["model_weights/dense"], h5py.string_dtype()
    group.attrs.pop(key, None)
    group.attrs.create(key, ["a" * 600_000] + ["b"] * (n - 1), dtype=kind)
    file.flush()


def _names_in_pieces(file: h5py.File) -> None:
    del file["model_weights/dense"].attrs["weight_names"]
    for index in range(4):
        _names_that_are_one_text(file, f"weight_names{index}", 250)


def _names_of_lists(file: h5py.File) -> None:
    group = file["model_weights/dense"]
    lists = np.empty(2, dtype=object)
    lists[:] = [np.zeros(3, "u1"), np.zeros(4, "u1")]
    group.attrs.create("weight_names", lists, dtype=h5py.vlen_dtype("u1"))


def _compressed_by_another(file: h5py.File) -> None:
    del file["model_weights/dense/dense/bias:0"]
    file.create_dataset("model_weights/dense/dense/bias:0", data=np.zeros(1, "f4"), chunks=(1,), compression="lzf")


def _large_chunk(file: h5py.File) -> None:
    del file["model_weights/dense/dense/bias:0"]
    bias = file.create_dataset("model_weights/dense/dense/bias:0", (1,), "f4", chunks=(1,), compression="gzip")
    bias.id.write_direct_chunk((0,), zlib.compress(b"1234") + bytes(1 << 25))


def _names_of_numbers(file: h5py.File) -> None:
    file["model_weights/dense"].attrs["weight_names"] = np.zeros((3, 2))


def _a_circle(file: h5py.File) -> None:
    file["model_weights/dense/dense/loop"] = file["model_weights"]
    file["model_weights/dense"].attrs["weight_names"] = [b"dense/kernel:0", b"dense/loop/dense"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external_link, "'kernel:0' is a link to another place or file, which is not followed"),
        (_soft_link, "'dense' is a link to another place or file"),
        (_external_values, "the values of kernel of layer 'conv' .* lie in another file"),
        (_virtual, "the values of kernel of layer 'conv' .* lie in another file"),
        (_without_values, r"conv.*of shape \(2, 4, 1099511627776\), takes 35\.2 TB of memory once it is read"),
        (_huge_chunk, r"bias of layer 'dense' .*takes 2\.15 GB of memory once it is read"),
        (_bomb, r"bias of layer 'dense' .*has a chunk that unpacks to more than its 4 bytes"),
        (_bomb_behind_a_mask, r"bias of layer 'dense' .*has a chunk that unpacks to more than its 4 bytes"),
        (_compressed_twice, r"bias of layer 'dense' .*is compressed in an unusual way \(filters \[1, 1\]\)"),
        (_of_text, "holds values of type object; expected numbers"),
        (_missing, r"it has no values for bias of layer 'dense' \(Dense\); is the file whole"),
        (_names_of_numbers, "its attribute weight_names holds no names"),
        (
            _names_that_are_one_text,
            r"its attribute weight_names, with those before, has 1\.\d+ GB, more than the limit",
        ),
        (_names_in_pieces, r"its attribute weight_names\d, with those before, has \d+ MB, more than the limit of 512"),
        (_names_of_lists, "its attribute weight_names holds no names"),
        (_compressed_by_another, r"bias of layer 'dense' .*is compressed otherwise than by gzip \(filter 32000\)"),
        (_a_circle, "it has no values for bias of layer 'dense'"),
    ],
)
def test_weights(tmp_path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    path = write(tmp_path / "m.h5", change=change)
    with pytest.raises(UserError, match=message) as raised:
        load_keras(path)
    assert "\n" not in str(raised.value)


def test_a_chunk_and_texts_in_a_hole(tmp_path: Path) -> None:
    content = write(tmp_path / "m.h5", change=_large_chunk).read_bytes()
    start = content.index(bytes(1 << 25))
    with (tmp_path / "m.h5").open("wb") as file:
        file.write(content[:start])
        file.seek(start + (1 << 25))
        file.write(content[start + (1 << 25) :])
        file.truncate(len(content))
    with limits.using(LimitsConfig(block_mb=30)), pytest.raises(UserError, match=r"with those before, has \d"):
        load_keras(tmp_path / "m.h5")  # that of the model's description may be as long as the hole
    with pytest.raises(UserError, match=r"has a chunk of \d+ bytes, more than the file"):
        load_keras(tmp_path / "m.h5")


def test_weights_of_another_model(tmp_path: Path) -> None:
    more = WEIGHTS | {"extra": {"extra/kernel:0": np.ones((2, 2), "f4")}}
    with pytest.raises(UserError, match=r"weights for 3 layers \(conv, dense, extra\), the model 2 layers with"):
        load_keras(write(tmp_path / "m.h5", weights=more))


def test_weights_in_order_where_names_differ(tmp_path: Path) -> None:
    """As of a description from one session and weights from another."""
    renamed = {f"{name}_7": arrays for name, arrays in WEIGHTS.items()}
    modules = [load_keras(write(tmp_path / "m.h5", weights=weights)).module for weights in (WEIGHTS, renamed)]
    assert all(map(torch.equal, *(module.state_dict().values() for module in modules)))


def test_weights_by_name_where_their_order_is_another(tmp_path: Path) -> None:
    swapped = WEIGHTS | {"dense": dict(reversed(WEIGHTS["dense"].items()))}
    with pytest.raises(UserError, match=r"it has 2 weights in the file \(dense/bias:0, dense/kernel:0\)"):
        load_keras(write(tmp_path / "m.h5", weights=swapped))


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path / "m.h5")
    for n_bytes in (10, 500, path.stat().st_size - 100):
        (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:n_bytes])
        with pytest.raises(UserError, match=r"cut\.h5.* is a damaged HDF5 file"):
            load_keras(tmp_path / "cut.h5")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"\x80\x02}")
    with pytest.raises(UserError, match="is no file of Keras; expected"):
        load_keras(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match=r"holds weights alone; .* model\.architecture=model\.json"):
        load_keras(tmp_path / "m.h5")
    (tmp_path / "m.json").write_text(json.dumps(model()))
    with pytest.raises(UserError, match="no values for kernel of layer 'conv'"):
        load_keras(tmp_path / "m.h5", tmp_path / "m.json")


def archive(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    k = keras()
    made = randomised(k.Sequential([k.Input((10, 4)), k.layers.Flatten(), k.layers.Dense(1)]))
    whole = {name.replace(".", "_"): (name, content) for name, content in _members(made, path.parent).items()}
    with zipfile.ZipFile(path, "w", compression) as found:
        for key, (name, content) in whole.items():
            found.writestr(name, members.get(key, content))
    return path


def _members(made: Any, folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(save(made, folder, "keras")[0]) as found:
        return {name: found.read(name) for name in found.namelist()}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, r"model\.weights\.h5 is compressed, which Keras does not do"),
        ({"config_json": b"{"}, r"config\.json of .* is not JSON"),
        ({"config_json": b" " * (17 << 20)}, r"config\.json of .* is more than the limit of 8 MB"),
        ({"model_weights_h5": b"\x89HDF\r\n\x1a\n"}, r"model\.weights\.h5 of .* is a damaged HDF5 file"),
    ],
)
def test_archives(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    path = archive(tmp_path / "bad.keras", **more)
    with pytest.raises(UserError, match=message):
        load_keras(path)


def test_archives_of_other_things(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as found:
        found.writestr("data.pkl", b"")
    with pytest.raises(UserError, match=r"has no config\.json \(data\.pkl\); expected a \.keras archive"):
        load_keras(tmp_path / "m.keras")
    path = archive(tmp_path / "whole.keras")
    (tmp_path / "cut.keras").write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"is a damaged \.keras archive"):
        load_keras(tmp_path / "cut.keras")
    with pytest.raises(UserError, match=r"describes its model itself; leave model\.architecture"):
        load_keras(path, tmp_path / "m.json")
    with zipfile.ZipFile(path, "a") as found, pytest.warns(UserWarning, match="Duplicate"):
        found.writestr("config.json", "{}")
    with pytest.raises(UserError, match=r"is a damaged \.keras archive: two of its files have the same name"):
        load_keras(path)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("ZeroPadding1D", {"padding": [0, 1 << 30]}),
        ("UpSampling1D", {"size": 1 << 30}),
        ("Conv1D", {"filters": 3, "kernel_size": 2, "dilation_rate": 1 << 30, "padding": "causal"}),
    ],
)
def test_shapes_that_no_model_has(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    weights = WEIGHTS if kind == "Conv1D" else {"dense": WEIGHTS["dense"]}
    path = write(tmp_path / "m.h5", layer("conv", class_name=kind, config={"name": "conv", **config}), weights)
    with pytest.raises(ValueError, match=r"layer 'conv': it would make [\d,]+ values of one sequence"):
        load_keras(path).module(torch.zeros(1, 4, 10))


def test_doubled_until_no_memory_is_left(tmp_path: Path) -> None:
    names = [f"double_{n}" for n in range(60)]
    layers = [
        {
            "class_name": "Concatenate",
            "name": name,
            "config": {"name": name, "axis": 1},
            "inbound_nodes": [[[before, 0, 0, {}], [before, 0, 0, {}]]],
        }
        for before, name in zip(["dna", *names], names, strict=False)
    ]
    found = model()
    found["config"] |= {"layers": [found["config"]["layers"][0], *layers], "output_layers": [[names[-1], 0, 0]]}
    module = load_keras(write(tmp_path / "m.h5", found, {"none": {}})).module
    with pytest.raises(ValueError, match=r"layer 'double_\d+': it would make [\d,]+ values of one sequence"):
        module(torch.zeros(1, 4, 10))
