"""Small checkpoints that would become large: refused before they fill the memory, with the setting to raise."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.config import limits
from pipeline.config.schema import LimitsConfig
from pipeline.messages.errors import UserError
from pipeline.models.allocations import is_to_be_tried, try_first
from pipeline.models.bpnet import load_bpnet
from pipeline.models.checkpoint import read_checkpoint
from pipeline.models.folder import folder_arguments
from pipeline.models.load import load_model
from tests.pipeline.conftest import chosen

MB = 10**6
SMALL = LimitsConfig(header_mb=1, held_mb=1)


def refusal(path: Path, **settings: Any) -> str:
    with limits.using(SMALL), pytest.raises(UserError) as caught:
        read_checkpoint(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def repacked(path: Path, name: str, data: bytes) -> Path:
    """A checkpoint of two numbers with another file of such a name in its archive, compressed."""
    torch.save({"w": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, content in files.items():
            archive.writestr(each, data if each.endswith(name) else content)
    return path


@pytest.mark.parametrize("trust_pickle", [False, True])
def test_an_archive_that_unpacks_to_far_more_than_it_is(tmp_path: Path, trust_pickle: bool) -> None:
    message = refusal(repacked(tmp_path / "x.pt", "data/0", bytes(2 * MB)), trust_pickle=trust_pickle)
    assert "x.pt takes 2 MB of memory once it is read, and " in message
    assert message.endswith("more than the limit of 1 MB; if you trust the file, set limits.held_mb=3")


def test_an_archive_whose_pickle_is_long(tmp_path: Path) -> None:
    path = repacked(tmp_path / "x.pt", "data.pkl", b"\x80\x02" + b"]" * 1_100_000 + b".")
    with limits.using(LimitsConfig(header_mb=1)), pytest.raises(UserError, match=r"data\.pkl has 1\.1 MB, more than"):
        read_checkpoint(path)


def test_a_pickle_without_an_archive_that_is_long(tmp_path: Path) -> None:
    head = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch's, before 1.6
    text = b"\x80\x02X" + struct.pack("<I", 1_100_000) + b"x" * 1_100_000 + b"."
    (tmp_path / "x.pt").write_bytes(head + text)
    assert "x.pt: its pickle is more than the limit of 1 MB" in refusal(tmp_path / "x.pt")


def test_weights_that_are_large_are_no_part_of_the_pickle(tmp_path: Path) -> None:
    state = {"w": torch.arange(3 * MB, dtype=torch.uint8), "v": torch.ones(2)}
    for is_zip in (True, False):
        torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
        with limits.using(SMALL):
            read = read_checkpoint(tmp_path / "x.pt")
        assert isinstance(read, dict)
        assert all(torch.equal(read[name], values) for name, values in state.items())


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_that_share_their_values(tmp_path: Path, is_zip: bool) -> None:
    one = torch.zeros(1)
    for state in ({"w": one.expand(10**10)}, {str(i): one.expand(10**5) for i in range(20)}):
        torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
        assert "x.pt: the state dict takes " in refusal(tmp_path / "x.pt")
    torch.save({"model_ema": state, "model": {"w": one}}, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    assert "x.pt: the state dict takes 8 MB" in refusal(tmp_path / "x.pt", prefix="model_ema.")


class Array:
    """A bytearray of any size, which torch makes when it reads weights alone."""

    def __reduce__(self) -> Any:
        return bytearray, (10**12,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_byte_array_of_any_size_is_not_made(tmp_path: Path, is_zip: bool) -> None:
    torch.save(OrderedDict(w=torch.zeros(1), x=Array()), tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    assert "x.pt holds Python objects beside tensors" in refusal(tmp_path / "x.pt")


def test_a_trusted_module_may_hold_a_byte_array(tmp_path: Path) -> None:
    module = torch.nn.Linear(1, 1)
    module.extra = bytearray(b"abc")  # type: ignore[assignment]
    torch.save(module, tmp_path / "x.pt")
    read = read_checkpoint(tmp_path / "x.pt", trust_pickle=True, whole=True)
    assert isinstance(read, torch.nn.Linear)


def test_members_that_lie_about_their_size(tmp_path: Path) -> None:
    path = repacked(tmp_path / "x.pt", "data/0", bytes(5 * MB))
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 5 * MB), struct.pack("<I", 8)))
    with limits.using(SMALL):
        read = read_checkpoint(path)
    assert isinstance(read, dict)
    assert read["w"].tolist() == [0, 0]


def test_a_damaged_archive(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data.replace(b"PK\x01\x02", b"PK\x01\x03"))
    assert "x.pt" in refusal(tmp_path / "x.pt")


def test_a_header_of_safetensors_that_is_long(tmp_path: Path) -> None:
    head = b'{"a":' + b" " * 1_100_000 + b"1}"
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    assert "x.safetensors: its header has 1.1 MB, more than the limit of 1 MB" in refusal(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").rename(tmp_path / "model.safetensors")
    assert "model.safetensors: its header has 1.1 MB" in refusal(tmp_path)


def test_safetensors_of_holes(tmp_path: Path) -> None:
    head = json.dumps({"a": {"dtype": "U8", "shape": [10**9], "data_offsets": [0, 10**9]}}).encode()
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + 10**9)
    assert "x.safetensors takes 1 GB of memory once it is read" in refusal(tmp_path / "x.safetensors")


def test_settings_of_a_folder_that_are_long(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": "x" * MB}))
    with limits.using(SMALL), pytest.raises(UserError, match=r"config\.json has 1 MB, more than the limit of 1 MB"):
        folder_arguments(tmp_path)


def test_a_bpnet_whose_first_layer_says_that_it_is_wide(tmp_path: Path) -> None:
    state = {
        "iconv.weight": torch.zeros(1000, 4, 3),
        "rconvs.0.weight": torch.zeros(1),
        "fconv.weight": torch.zeros(1, 1000, 1),
        "linear.weight": torch.zeros(1),
    }
    save_file(state, tmp_path / "x.safetensors")
    with limits.using(SMALL), pytest.raises(UserError, match=r"the BPNet of these sizes takes 12\.\d MB of memory"):
        load_bpnet(tmp_path / "x.safetensors", {"trimming": 1})


def test_a_pickle_reads_no_more_than_it_may(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pickle.dump("x", buffer, protocol=2)
    (tmp_path / "x.pt").write_bytes(b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x" * 100)
    assert "x.pt" in refusal(tmp_path / "x.pt")


class Sized(nn.Module):
    def __init__(self, n: int, how: str) -> None:
        super().__init__()
        values = {
            "layer": lambda: nn.Linear(n, n, bias=False).weight,
            "zeros": lambda: torch.zeros(n, n),
            "ones": lambda: torch.ones((n, n), dtype=torch.float32),
            "size": lambda: torch.empty(size=(n, n)),
            "eye": lambda: torch.eye(n),
            "range": lambda: torch.arange(n * n),
            "new": lambda: torch.zeros(1).new_zeros((n, n)),
            "distances": lambda: (torch.arange(n)[:, None] - torch.arange(n)).abs(),
        }[how]()
        self.register_buffer("values", values)


@pytest.mark.parametrize("how", ["layer", "zeros", "ones", "size", "eye", "range", "new", "distances"])
def test_a_folder_that_says_how_large_a_layer_is(tmp_path: Path, how: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n": 1000, "how": how}))
    save_file({"values": torch.zeros(1)}, tmp_path / "model.safetensors")
    given = {"_target_": f"{__name__}.Sized", "checkpoint": str(tmp_path)}
    with (
        limits.using(SMALL),
        pytest.raises(UserError, match=r"^[\w.]+\.Sized with the sizes in .*config\.json takes 4(\.01)? MB of mem"),
    ):
        load_model(chosen("model", "module", **given))
    with limits.using(SMALL), pytest.raises(UserError, match="does not fit Sized"):  # what a person says is made
        load_model(chosen("model", "module", **given, init={"n": 1000, "how": how}))


class Wide(nn.Module):
    """Small weights that make much of a sequence: `how` says by what."""

    def __init__(self, n: int, how: str) -> None:
        super().__init__()
        self.n, self.how = n, how
        self.conv = nn.Conv1d(4, 80_000, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match self.how:
            case "convolution":
                return self.conv(x).mean(2)
            case "transposed":
                return nn.functional.conv_transpose1d(x, self.conv.weight[:4].expand(4, 4, 200_000)).mean(2)
            case "product":
                return (self.conv.weight[:, :, 0] @ x).mean(2)
            case "repeated":
                return sum(x.repeat_interleave(8000, 2).mean(2) for _ in range(self.n))  # type: ignore[return-value]
            case "views":
                for _ in range(self.n):
                    x = x.expand(10**6, -1, -1)[-1:].transpose(1, 2).transpose(2, 1)
                return x.mean(2)
            case _:
                x = x.clone()
                for _ in range(self.n):
                    x.add_(1)
                return x.mean(2)


def tried(tmp_path: Path, how: str, n: int = 10, length: int = 10) -> tuple[nn.Module, torch.Tensor]:
    """A model whose file may make 2 MB of a sequence."""
    module, path = Wide(n, how).eval(), tmp_path / "x.pt"
    path.write_bytes(bytes(100))
    with limits.using(LimitsConfig(computed_mb=2)):
        is_to_be_tried(module, path)
    return module, torch.ones(1, 4, length, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("how", "size"),
    [("convolution", "3.2 MB"), ("transposed", "12.8 MB"), ("product", "3.2 MB"), ("repeated", "2.56 MB")],
)
def test_a_small_file_whose_layers_make_much_of_a_sequence(tmp_path: Path, how: str, size: str) -> None:
    module, x = tried(tmp_path, how)
    message = (
        rf"x\.pt: its layers make {size}.* or more of one sequence of 10 bases, and it has 100 bytes on disk, more"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=message) as caught:
            try_first(module, x)
    assert "if you trust the file, set limits.computed_mb=" in str(caught.value)


@pytest.mark.parametrize("how", ["views", "in place"])
def test_what_takes_no_memory_is_not_counted(tmp_path: Path, how: str) -> None:
    try_first(*tried(tmp_path, how, 2000))


def test_a_model_is_tried_once_and_fails_elsewhere(tmp_path: Path) -> None:
    calls: list[int] = []
    module, x = tried(tmp_path, "in place", 1)
    module.register_forward_hook(lambda *_: calls.append(1))
    try_first(module, torch.ones(1, 3, 10).to_sparse())  # does not fit: the engine says what to do
    for _ in range(3):
        try_first(module, x)
    assert len(calls) == 1
    assert list(module.state_dict()) == ["conv.weight"]


def test_long_sequences_may_make_more() -> None:
    with limits.using(LimitsConfig(computed_mb=1)):
        limits.require_computed(24_100_000_000, 10**9, 196_608, "Enformer")
        limits.require_computed(53_100_000_000, 740_000_000, 524_288, "Borzoi")
        with pytest.raises(UserError, match=r"it: its layers make 41\.3 GB or more of one sequence of 196608 bases"):
            limits.require_computed(210_000 * 196_608, 100, 196_608, "it")


def test_a_small_file_of_keras_whose_layers_are_bounded_each(tmp_path: Path) -> None:
    """Five branches of UpSampling1D, each as large as a tensor may be, whose sum lives at once."""
    inputs = {"class_name": "InputLayer", "name": "dna", "config": {"batch_input_shape": [None, 10, 4]}}
    layers: list[dict[str, Any]] = [{**inputs, "inbound_nodes": []}]

    def add(kind: str, name: str, before: list[str], **config: Any) -> str:
        inbound = [[[each, 0, 0, {}] for each in before]]
        config |= {"name": name}
        layers.append({"class_name": kind, "name": name, "config": config, "inbound_nodes": inbound})
        return name

    branches = [add("UpSampling1D", f"up_{i}", ["dna"], size=10_000) for i in range(5)]
    add("GlobalAveragePooling1D", "mean", [add("Add", "sum", branches)])
    add("Dense", "dense", ["mean"], units=1)
    layers[0]["config"]["name"] = "dna"
    ends = {"input_layers": [["dna", 0, 0]], "output_layers": [["dense", 0, 0]]}
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": layers, **ends}})
        group = file.create_group("model_weights/dense")
        file["model_weights"].attrs["layer_names"] = [b"dense"]
        group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
        group["kernel:0"], group["bias:0"] = np.ones((4, 1), "f4"), np.zeros(1, "f4")
    given = chosen("model", "keras", checkpoint=str(tmp_path / "m.h5"))
    x = torch.zeros(1, 4, 10)
    with limits.using(LimitsConfig(computed_mb=6)):
        loaded = load_model(given)
    with pytest.raises(UserError, match=r"m\.h5: its layers make \d.* MB or more of one sequence of 10 bases"):
        try_first(loaded.module, x)  # whoever calls it, the limits are those of when it was read
    with limits.using(LimitsConfig(computed_mb=20)):
        loaded = load_model(given)
    try_first(loaded.module, x)
    assert loaded.module(x).shape == (1, 1)


def test_an_expanded_tensor_counts_as_large_as_it_looks(tmp_path: Path) -> None:
    class Repeats(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(2, keepdim=True).expand(-1, -1, 1_000_000).amax(2)

    (tmp_path / "w.pt").write_bytes(b"weights")
    module = Repeats()
    with limits.using(LimitsConfig(computed_mb=10)):
        is_to_be_tried(module, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt: its layers make 16 MB or more of one sequence of 10 bases"):
        try_first(module, torch.zeros(1, 4, 10))


@pytest.mark.slow
def test_memory_of_a_command_that_is_given_a_large_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for each, content in files.items():
            with archive.open(each, "w", force_zip64=True) as file:
                for _ in range(3000 if each.endswith("data/0") else 0):
                    file.write(bytes(MB))
                file.write(content)
    command = [sys.executable, "-m", "pipeline", "audit", "cluster=none", "model=bpnet", f"model.checkpoint={path}"]
    process = subprocess.Popen([*command, "model.init.trimming=1"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr as errors:
        message = errors.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 2
    assert "takes 3 GB of memory once it is read" in message
    assert used.ru_maxrss * 1024 < 10**9


def _two_lists(honest: bytes, bomb: bytes) -> bytes:
    """An archive whose end has the list of one behind that of another, and points to the other's."""
    end = bomb.rfind(b"PK\x05\x06")
    n, n_bytes, start = struct.unpack("<8x2xHLL2x", bomb[end:])
    first = bomb[:end] + struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, n_bytes, start)
    end = honest.rfind(b"PK\x05\x06")
    n, n_bytes, start = struct.unpack("<8x2xHLL2x", honest[end:])
    listed, at = bytearray(honest[start : start + n_bytes]), 0
    while at < len(listed):
        sizes = struct.unpack_from("<3H", listed, at + 28)
        struct.pack_into("<L", listed, at + 42, struct.unpack_from("<L", listed, at + 42)[0] + len(first))
        at += 46 + sum(sizes)
    numbers = struct.pack("<QQQQ", n, n, n_bytes, start + len(first))
    second = honest[:start] + bytes(listed) + struct.pack("<4sQHHLL", b"PK\x06\x06", 44, 45, 45, 0, 0) + numbers
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, bomb.rfind(b"PK\x05\x06"), 1)
    return (
        first + second + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0)
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_in_which_two_readers_find_other_files(tmp_path: Path) -> None:
    """Python's, which checks, and torch's, which reads."""
    path, state = tmp_path / "x.pt", {"w": torch.zeros(2)}
    honest, bomb = (repacked(path, "data/0", bytes(n)).read_bytes() for n in (8, 2 * MB))
    torch.save(OrderedDict(x=Array()), path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes()
    for data, reason in {
        _two_lists(honest, bomb): "its list of files is not at its end, or it has more than one",
        bomb + honest: "its list of files is not at its end",
        bomb + bytes(70_000): "File is not a zip file",
        legacy + honest: "holds Python objects",
    }.items():
        path.write_bytes(data)
        assert reason in refusal(path), reason
    torch.save(OrderedDict(x=Array()), path)
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (archive.read(each) for each in archive.namelist() if each.endswith("data.pkl"))
    for names, reason in {
        ("x/data.pkl", "x/DATA.PKL"): "two of its files have the same name",
        ("x/DATA.PKL", "y/data.pkl"): "holds Python objects",
    }.items():
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in zip(names, (pickled, b"\x80\x02}."), strict=True):
                archive.writestr(name, data)
        assert reason in refusal(path), reason
    for is_zip in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=is_zip)
        assert isinstance(read_checkpoint(path), dict)
