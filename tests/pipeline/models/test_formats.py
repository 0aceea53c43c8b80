"""Files that are no weights for torch are told by their content; and no file, whatever it is, runs code."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.messages.errors import UserError
from pipeline.models.load import load_model
from tests.pipeline.conftest import chosen


class Touch:
    """Makes a folder when it is unpickled; with a name that a stand-in could be given for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, dict[str, str]]]:
        return eval, ("__import__('os').mkdir(p)", {"p": str(self.path)})


class TouchByModule(Touch):
    """The same through a module that torch blocks by itself."""

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.path),)


def state() -> dict[str, torch.Tensor]:
    return nn.Linear(4, 1).state_dict()


def load(path: object, **values: object) -> Any:
    init = {"in_features": 4, "out_features": 1}
    values = {"name": "module", "init": init, "checkpoint": path, **values}
    if values["name"] == "module":
        values = {"_target_": "torch.nn.Linear", **values}
    return load_model(chosen("model", **values))


def zip_of(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"model/{name.replace('__', '/').replace('_DOT_', '.')}", data)
    return path


def tar_of(path: Path, data: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return path


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(-1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_archive_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(4, 1), torch.zeros(1, 4)), path)
    with pytest.raises(
        UserError, match=r"TorchScript.*torch\.save\(torch\.jit\.load\(file\)\.state_dict\(\)"
    ) as raised:
        load(path)
    assert "\n" not in str(raised.value)
    torch.save(torch.jit.load(path).state_dict(), tmp_path / "weights.pt")  # the way out is one
    assert load(tmp_path / "weights.pt").description["checkpoint"] == "weights.pt"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_program_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(nn.Linear(4, 1), (torch.zeros(1, 4),)), path)
    with pytest.raises(UserError, match=r"exported program.*torch\.export\.load\(file\)\.state_dict"):
        load(path)
    torch.save(torch.export.load(path).state_dict, tmp_path / "weights.pt")
    load(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["name.onnx", "name"])
def test_onnx_is_refused(tmp_path: Path, name: str) -> None:
    """A fixture: how the published protobuf begins, ir_version (field 1) and producer_name (field 2)."""
    (tmp_path / name).write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x032.0" + b"\x3a\x10\x00\x00")
    with pytest.raises(UserError, match=r"an ONNX model.*_target_"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config_DOT_json": b"{}", "metadata_DOT_json": b"{}", "model_DOT_weights_DOT_h5": b"\x89HDF"}, r"\.keras"),
        ({"arr_0_DOT_npy": b"\x93NUMPY"}, r"a zip archive of arr_0\.npy, not of torch; unpack"),
        ({"weights_DOT_pt": b"x", "a": b"", "b": b"", "c": b""}, r"of a, b, c and 1 more, not"),
        ({}, "no files"),
    ],
)
def test_zip_archives_of_other_things(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    """The .keras one is a fixture, with the file names that Keras 3 documents."""
    with pytest.raises(UserError, match=message):
        load(zip_of(tmp_path / "model.pt", **files))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x1f\x8b\x08\x00",
            r"gzip; unpack it: `gzip -dc \S+/model\.pt > \S+/model\.unpacked`; expected",
        ),
        (b"BZh9", "compressed with bzip2"),
        (b"\xfd7zXZ\x00", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        (b"\x93NUMPY\x01\x00", "an array of NumPy"),
        (
            pickle.dumps({"a": 1}),
            r"""a pickle, not of torch.*`python -c 'import torch, pickle; torch\.save\(.*weights\.pt"\)'`""",
        ),
        (b"\x89HDF\r\n\x1a\n", r"HDF5.*Keras.*model=keras"),
        (b"{\n  'a': 1}\n", r"text, which begins"),
        (b"\x00\xff\x17\x99", "no kind that is known"),
        ((99999).to_bytes(8, "little") + b'{"a":', "safetensors file: it ends within its header"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path / "model.pt")
    assert "\n" not in str(raised.value)


def in_form(folder: Path, form: str, evil: object) -> Path:
    """A file that holds the object in one of the ways in which files hold objects."""
    path, kind, _, rest = folder / "evil.pt", *form.partition(" ")
    if kind == "torch":
        torch.save({"state_dict": state(), "x": evil}, path, pickle_protocol=int(rest))
    elif kind == "legacy":
        torch.save({**state(), "x": evil}, path, pickle_protocol=int(rest), _use_new_zipfile_serialization=False)
    elif kind == "raw":
        path.write_bytes(pickle.dumps(evil, protocol=int(rest)))
    elif kind == "in-zip":
        zip_of(path, data_DOT_pkl=pickle.dumps(evil, protocol=int(rest)), version=b"3\n", byteorder=b"little")
    elif kind == "in-tar":
        tar_of(path, pickle.dumps(evil, protocol=int(rest)))
    elif kind == "lightning":
        torch.save({"pytorch-lightning_version": "2.0", "state_dict": {**state(), "x": evil}}, path)
    elif kind == "key":
        torch.save({evil: torch.zeros(1)}, path)
    elif kind == "storage":
        torch.save({"model": {"weight": [evil, torch.zeros(1)]}, "optimizer": evil}, path)
    return path


PROTOCOLS = range(6)
FORMS = [f"{kind} {protocol}" for kind in ("raw", "in-zip", "in-tar") for protocol in PROTOCOLS]
FORMS += [f"{kind} {protocol}" for kind in ("torch", "legacy") for protocol in range(2, 6)]
FORMS += ["lightning", "key", "storage"]


@pytest.mark.parametrize("evil", [Touch, TouchByModule])
@pytest.mark.parametrize("form", FORMS)
def test_no_file_runs_code_on_any_path(tmp_path: Path, form: str, evil: type[Touch]) -> None:
    mark, path = tmp_path / "ran", in_form(tmp_path, form, evil(tmp_path / "ran"))
    torch.save(state(), tmp_path / "good.pt")
    changes: list[dict[str, Any]] = [
        {"name": "module"},
        {"name": "module", "prefix": "model."},
        {"name": "module", "_target_": None},
        {"name": "module", "checkpoint": [str(tmp_path / "good.pt"), str(path)]},
        {"name": "module", "checkpoint": str(tmp_path / "evil*")},
        *({"name": name, "init": {}} for name in ("example", "bpnet", "chrombpnet")),
        {"name": "chrombpnet", "init": {"trimming": 1}, "bias": str(path), "with_bias": True},
    ]
    for change in changes:
        with pytest.raises(UserError, match=r".") as raised:
            load(**{"path": path, **change} if "checkpoint" not in change else {"path": None, **change})
        assert "\n" not in str(raised.value)
        assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "part.safetensors", "pytorch_model.bin"])
def test_no_file_of_a_folder_runs_code(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(Touch(tmp_path / "ran"), folder / name)
    if name == "part.safetensors":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"weight": "part.safetensors"}}')
    with pytest.raises(UserError, match=r"damaged safetensors|Python objects"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_the_canary_sings_when_it_is_trusted(tmp_path: Path) -> None:
    found = load(in_form(tmp_path, "legacy 2", Touch(tmp_path / "ran")), trust_pickle=True)
    assert found.notes[-1].endswith("evil.pt, as they are no tensors: x")
    assert (tmp_path / "ran").exists()


def test_a_trusted_file_that_is_damaged(tmp_path: Path) -> None:
    torch.save(Touch(tmp_path / "ran"), tmp_path / "evil.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "evil.pt").write_bytes((tmp_path / "evil.pt").read_bytes()[:40])
    with pytest.raises(UserError, match=r"cannot be read"):
        load(tmp_path / "evil.pt", trust_pickle=True)


def test_a_directory_says_what_it_holds(tmp_path: Path) -> None:
    for folder, file, message in [
        ("tf", "saved_model.pb", "a SavedModel of TensorFlow.*model=keras"),
        ("hub", "weights.safetensors", r"or pytorch_model\.bin; it holds weights\.safetensors; give one of its files"),
        ("empty", None, "it holds nothing"),
    ]:
        (tmp_path / folder).mkdir()
        if file:
            (tmp_path / folder / file).write_bytes(b"")
        for name in ("module", "bpnet"):
            with pytest.raises(UserError, match=message):
                load(tmp_path / folder, name=name)


def test_safetensors_without_tensors_and_with_odd_types(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(UserError, match="holds no tensors"):
        load(tmp_path / "empty.safetensors")
    save_file({**state(), "weight": torch.zeros(1, 4, dtype=torch.int8)}, tmp_path / "int8.safetensors")
    with pytest.raises(UserError, match=r"'weight' is of type int8, which the model has as float32"):
        load(tmp_path / "int8.safetensors")
