"""What kind of file a checkpoint is, told by its content: a file that holds no weights for torch is refused by name.

Nothing is unpickled here: the first bytes, and of a zip archive the names in it, are all that is looked at.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError

EXPECTED = "expected safetensors or a state dict written by torch.save"
_KERAS = (
    "{} of Keras or TensorFlow; convert its weights to a torch state dict (bpnet-lite's BPNet.from_chrombpnet does "
    "that for those of chrombpnet)"
)
_MAGIC = {
    b"\x89HDF": _KERAS.format("an HDF5 file"),
    b"version https": "a pointer to a large file that was not fetched (git lfs pull)",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"\x93NUMPY": "an array of NumPy",
}
_ONNX = (
    "an ONNX model, whose operations cannot be seen into; give the torch module that it was made from: its class as "
    "model._target_ and its state dict as model.checkpoint"
)


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def require_torch_file(path: Path) -> None:
    """Raises UserError that says what the file is, where it is not what `torch.save` writes."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        what = _in_zip(path)
    elif head.startswith(b"\x80"):  # a pickle of protocol 2 or later
        what = None
    else:
        what = _otherwise(head, path)
    if what is not None:
        raise UserError(f"model.checkpoint={path} is {what}; {EXPECTED}")


def directory_problem(path: Path) -> str:
    """What to say of a directory that holds no weights in a known form."""
    found = sorted(entry.name for entry in path.iterdir())
    if "saved_model.pb" in found or "keras_metadata.pb" in found:
        return f"model.checkpoint={path} is {_KERAS.format('a SavedModel')}"
    weights = [
        name for name in found if Path(name).suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".torch")
    ]
    holds = ", ".join((weights or found)[:5]) or "nothing"
    fix = f"; give one of its files, such as model.checkpoint={path / weights[0]}" if weights else ""
    return f"model.checkpoint={path} is a directory without model.safetensors; it holds {holds}{fix}"


def _in_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # truncated, perhaps: torch says what is wrong with it
    files, folders = {name.name for name in names}, {part for name in names for part in name.parts[:-1]}
    if "constants.pkl" in files and "code" in folders:
        return (
            "a TorchScript archive, whose operations cannot be seen into; write its weights alone, "
            "torch.save(torch.jit.load(file).state_dict(), 'weights.pt'), and give its class as model._target_"
        )
    if files & {"archive_format", "serialized_exported_program.json"}:
        return (
            "an exported program (torch.export), whose class is gone; write its weights alone, "
            "torch.save(torch.export.load(file).state_dict, 'weights.pt'), and give its class as model._target_"
        )
    if "model.weights.h5" in files:
        return _KERAS.format("a .keras archive")
    if "data.pkl" in files:
        return None
    return f"a zip archive of {_some(files)}, not of torch; unpack it first, if the weights are in it"


def _otherwise(head: bytes, path: Path) -> str:
    if not head:
        return "empty"
    if head[8:10] == b'{"':
        return "a damaged safetensors file: it ends within its header"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if path.suffix == ".onnx" or (
        head[0] == 8 and head[2:3] in (b"\x12", b"\x3a")
    ):  # ir_version, then a name or a graph
        return _ONNX
    for magic, text in _MAGIC.items():
        if head.startswith(magic):
            return text
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head) and b"\x7f" not in head:
        return f"text, which begins {head[:30].decode(errors='replace').split(chr(10))[0]!r}"
    return "of no kind that is known here"


def _some(names: Iterable[str]) -> str:
    found = sorted(name for name in names if name)
    return (
        ", ".join(found[:3]) + (f" and {len(found) - 3} more files" if len(found) > 3 else "") if found else "no files"
    )
