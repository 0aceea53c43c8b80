"""What kind of file a checkpoint is, by its first bytes or the names in a zip archive; nothing is unpickled."""

import json
import shlex
import zipfile
from pathlib import Path, PurePosixPath

from pipeline.config import limits
from pipeline.messages.errors import UserError
from pipeline.messages.words import some

EXPECTED = "expected safetensors or a state dict written by torch.save"
_KERAS = "{} of Keras, which model=keras reads (that of chrombpnet: model=chrombpnet or model=bpnet)"
_MAGIC = {
    b"\x89HDF": _KERAS.format("an HDF5 file"),
    b"version https": "a pointer to a large file that was not fetched (git lfs pull)",
    b"\x93NUMPY": "an array of NumPy",
}
_UNPACKED_BY = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_ONNX = (
    "an ONNX model, whose operations cannot be seen into; give the torch module that it was made from (its class as "
    "model._target_, its state dict as model.checkpoint), or convert it (pip install onnx2torch; up to opset 17): "
    "write `import onnx2torch; model = lambda: onnx2torch.convert({path!r})` into my_model.py, and give "
    "model._target_=my_model.py:model alone"
)
_PICKLE = (
    "a pickle, not of torch (of pickle.dump or joblib.dump, perhaps), and reading it could run any code; if you trust "
    "it, write its weights alone: `python -c {command}`, and give its class as model._target_"
)
_MAGIC_OF_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # in what it wrote before 1.6
_NO_WEIGHTS = ("optim", "scheduler", "rng_state", "random_states", "training_args", "scaler", "sampler")


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def require_bounded_safetensors(path: Path) -> None:
    """Raises UserError where the header of safetensors, or the whole, is beyond the limits."""
    size = path.stat().st_size
    limits.require_held(size, limits.bytes_on_disk(path), str(path))
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header < size:  # otherwise it is damaged, which whoever reads it says
        limits.require_header(header, f"{path}: its header")


def require_torch_file(path: Path) -> None:
    """Raises UserError that says what the file is, where it is not what `torch.save` writes."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"\x80"):  # a pickle of protocol 2 or later
        what = None if _MAGIC_OF_TORCH in head[:32] else _pickle(path)
    else:
        what = _in_zip(path) if head.startswith(b"PK") else _otherwise(head, path)
    if what is not None:
        raise UserError(f"model.checkpoint={path} is {what}; {EXPECTED}")


def directory_problem(path: Path) -> str:
    """The error for a directory without weights in a known form."""
    found = sorted(entry.name for entry in path.iterdir())
    if "saved_model.pb" in found or "keras_metadata.pb" in found:
        return (
            f"model.checkpoint={path} is a SavedModel of TensorFlow; load it there and save it as one file, "
            f"model.save('model.keras'), which model=keras reads"
        )
    if ".metadata" in found or any(name.endswith(".distcp") for name in found):
        return (
            f"model.checkpoint={path} is a distributed checkpoint of torch, in parts; write it as one file: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt"
        )
    weights = weight_files(path)
    holds = ", ".join((weights or found)[:5]) or "nothing"
    fix = f"; give one of its files, such as model.checkpoint={path / weights[0]}" if weights else ""
    return (
        f"model.checkpoint={path} is a directory without model.safetensors or pytorch_model.bin; it holds {holds}{fix}"
    )


def weight_files(folder: Path) -> list[str]:
    """The names of a folder's files that end like weights, without the states of a training's other parts."""
    found = sorted(entry.name for entry in folder.iterdir())
    named = [name for name in found if not name.startswith(_NO_WEIGHTS)]
    return [name for name in named if Path(name).suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".torch")]


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
    found = some(sorted(filter(None, files)), 3) or "no files"
    return f"a zip archive of {found}, not of torch; unpack it first, if the weights are in it"


def _pickle(path: Path) -> str:
    weights, module = path.with_suffix(".weights.pt"), "joblib" if path.suffix == ".joblib" else "pickle"
    file = json.dumps(str(path), ensure_ascii=False)
    read = f"joblib.load({file})" if module == "joblib" else f'pickle.load(open({file}, "rb"))'
    code = f"import torch, {module}; torch.save({read}.state_dict(), {json.dumps(str(weights), ensure_ascii=False)})"
    return _PICKLE.format(command=shlex.quote(code))


def _unpack(path: Path, program: str) -> str:
    """The command that unpacks a file beside it, under its name without the last suffix."""
    unpacked = path.with_suffix("" if len(path.suffixes) > 1 else ".unpacked")
    return f"{program} -dc {shlex.quote(str(path))} > {shlex.quote(str(unpacked))}"


def _otherwise(head: bytes, path: Path) -> str:
    if not head:
        return "empty"
    if head[8:10] == b'{"':
        return "a damaged safetensors file: it ends within its header"
    if head[257:262] == b"ustar":
        return f"a tar archive; unpack it: `tar -xf {shlex.quote(str(path))}`"
    is_onnx = head[0] == 8 and head[2:3] in (b"\x12", b"\x3a")  # ir_version, then a name or a graph
    if path.suffix == ".onnx" or is_onnx:
        return _ONNX.format(path=str(path.absolute()))
    for magic, program in _UNPACKED_BY.items():
        if head.startswith(magic):
            return f"compressed with {program}; unpack it: `{_unpack(path, program)}`"
    for magic, text in _MAGIC.items():
        if head.startswith(magic):
            return text
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head) and b"\x7f" not in head:
        return f"text, which begins {head[:30].decode(errors='replace').split(chr(10))[0]!r}"
    return "of no kind that is known here"
