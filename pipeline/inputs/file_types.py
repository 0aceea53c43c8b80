"""Which form of input a file is: by its first bytes where they tell, by its name otherwise."""

import gzip
import zlib
from pathlib import Path

from pipeline.errors import UserError
from pipeline.sources.text import is_gzip

FORMS = (
    "dataset=fasta (.fa, .fasta, .fna, .fas), dataset=table (.csv, .tsv, .tab, .txt, .parquet, .pq, .arrow, .feather, "
    ".ipc), dataset=array (.npy, .npz, .zarr), dataset=loci (.bed, .narrowPeak, .broadPeak, with a genome), "
    "dataset=tiles (a genome); text may be gzip"
)
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_SUFFIXES = {
    "fasta": (".fa", ".fasta", ".fna", ".fas", ".ffn", ".mfa"),
    "table": (*DELIMITERS, ".parquet", ".pq", ".arrow", ".feather", ".ipc"),
    "array": (".npy", ".npz", ".zarr"),
    "loci": (".bed", ".bed3", ".bed6", ".bed12", ".narrowpeak", ".broadpeak"),
}
_MAGIC = {
    b">": "fasta",
    b"PAR1": "table",
    b"ARROW1": "table",
    b"FEA1": "table",
    b"\xff\xff\xff\xff": "table",
    b"\x93NUMPY": "array",
}
_A = {"fasta": "a FASTA file", "table": "a table", "array": "an array", "loci": "a file of loci"}


def require_form(path: Path, form: str) -> None:
    """Refuse a file that is clearly of another form than `dataset=form`.

    Raises:
        UserError: names the form that fits; or all forms, for a name that says nothing where the content does not
            either.
    """
    found = form_of(path)
    if found is not None and found != form:
        setting = "dataset.loci" if found == "loci" else "dataset.path"
        raise UserError(
            f"dataset={form} and dataset.path={path} contradict each other: it looks like {_A[found]}; "
            f"use dataset={found} {setting}={path}"
        )
    if found is None and form != "fasta" and suffix_of(path) != ".txt":
        raise UserError(
            f"dataset.path={path} is not known by its name or its first bytes as {_A[form]}; forms: {FORMS}"
        )


def form_of(path: Path) -> str | None:
    """fasta, table, array or loci; None where neither the first bytes nor the name tell."""
    if path.is_dir():
        return "array" if is_zarr(path) or suffix_of(path) == ".zarr" else None
    head = first_bytes(path)
    for magic, form in _MAGIC.items():
        if head.startswith(magic):
            return form
    suffix = suffix_of(path)
    return next((form for form, suffixes in _SUFFIXES.items() if suffix in suffixes), None)


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr array or group, of either format."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def suffix_of(path: Path) -> str:
    """The end of a name that says what is in it, in lower case: .csv of x.CSV.gz."""
    name = path.name.lower()
    for compressed in (".gz", ".bgz"):
        name = name.removesuffix(compressed)
    return Path(name).suffix


def first_bytes(path: Path, n: int = 8) -> bytes:
    """The first bytes of the content, decompressed if it is gzip; fewer where there are no more, or it is damaged."""
    with gzip.open(path, "rb") if is_gzip(path) else path.open("rb") as file:
        try:
            return file.read(n)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return b""
