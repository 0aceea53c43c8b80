"""The same sequences in every form of input, for tests."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr

from dlshap_core.sequences import encode, one_hot

Writer = Callable[[Path, list[str]], list[str]]  # writes into a folder; returns the settings that read it


def codes_of(sequences: list[str]) -> np.ndarray:
    """(N, L) uint8."""
    return np.stack([encode(sequence) for sequence in sequences])


def one_hot_of(sequences: list[str]) -> np.ndarray:
    """(N, 4, L) int8."""
    return one_hot(torch.from_numpy(codes_of(sequences))).numpy()


def names_of(sequences: list[str]) -> list[str]:
    return [f"s{i}" for i in range(len(sequences))]


def fasta(sequences: list[str]) -> bytes:
    return "".join(f">s{i}\n{sequence}\n" for i, sequence in enumerate(sequences)).encode()


def lower_case_rna(sequences: list[str]) -> bytes:
    return fasta([sequence.lower().replace("t", "u").replace("n", "r") for sequence in sequences])


def delimited(sequences: list[str], delimiter: str, end: str = "\n") -> bytes:
    lines = [("name", "label", "sequence"), *((f"s{i}", "x", sequence) for i, sequence in enumerate(sequences))]
    return "".join(delimiter.join(line) + end for line in lines).encode()


def quoted(path: Path, sequences: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["Seq", "a, b"])
        writer.writerows([sequence, 'so "called", x'] for sequence in sequences)


def table(sequences: list[str]) -> pa.Table:
    return pa.table({"name": names_of(sequences), "sequence": sequences})


def lists(values: np.ndarray) -> pa.Array:
    """A column of nested fixed-size lists."""
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _fasta(name: str, make: Callable[[list[str]], bytes]) -> Writer:
    return lambda folder, sequences: ["dataset=fasta", f"dataset.path={write(folder / name, make(sequences))}"]


def _text(name: str, make: Callable[[list[str]], bytes], *more: str) -> Writer:
    return lambda folder, sequences: ["dataset=table", f"dataset.path={write(folder / name, make(sequences))}", *more]


def _quoted(folder: Path, sequences: list[str]) -> list[str]:
    quoted(folder / "q.csv", sequences)
    return ["dataset=table", f"dataset.path={folder / 'q.csv'}"]


def _parquet(folder: Path, sequences: list[str]) -> list[str]:
    pq.write_table(table(sequences), folder / "t.parquet", row_group_size=100)
    return ["dataset=table", f"dataset.path={folder / 't.parquet'}"]


def _parquet_one_hot(folder: Path, sequences: list[str]) -> list[str]:
    columns = {"x": lists(one_hot_of(sequences).transpose(0, 2, 1)), "name": names_of(sequences)}
    pq.write_table(pa.table(columns), folder / "x.parquet", row_group_size=300)
    return ["dataset=table", f"dataset.path={folder / 'x.parquet'}", "dataset.column=x"]


def _arrow(folder: Path, sequences: list[str]) -> list[str]:
    made = table(sequences)
    with pa.OSFile(str(folder / "t.arrow"), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
        writer.write_table(made, max_chunksize=70)
    return ["dataset=table", f"dataset.path={folder / 't.arrow'}"]


def _arrow_stream(folder: Path, sequences: list[str]) -> list[str]:
    made = table(sequences)
    with pa.OSFile(str(folder / "s.arrow"), "wb") as file, pa.ipc.new_stream(file, made.schema) as writer:
        writer.write_table(made, max_chunksize=300)
    return ["dataset=table", f"dataset.path={folder / 's.arrow'}"]


def _feather(folder: Path, sequences: list[str]) -> list[str]:
    made = pa.table({"seq": pa.array(sequences).dictionary_encode(), "codes": lists(codes_of(sequences))})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(folder / "t.feather"), "wb") as file, pa.ipc.new_file(file, made.schema, options=options) as out:
        out.write_table(made)
    return ["dataset=table", f"dataset.path={folder / 't.feather'}"]


def _npy(name: str, make: Callable[[list[str]], np.ndarray]) -> Writer:
    def written(folder: Path, sequences: list[str]) -> list[str]:
        np.save(folder / name, make(sequences))
        return ["dataset=array", f"dataset.path={folder / name}"]

    return written


def _npz(folder: Path, sequences: list[str]) -> list[str]:
    np.savez_compressed(folder / "x.npz", y=np.zeros(3), x=one_hot_of(sequences).astype(np.float16))
    return ["dataset=array", f"dataset.path={folder / 'x.npz'}", "dataset.key=x"]


def _zarr(name: str, make: Callable[[list[str]], np.ndarray], chunk: int, **options: int) -> Writer:
    def written(folder: Path, sequences: list[str]) -> list[str]:
        values = make(sequences)
        chunks = (min(chunk, len(values)), *values.shape[1:])
        zarr.create_array(folder / name, data=values, chunks=chunks, **options)
        return ["dataset=array", f"dataset.path={folder / name}"]

    return written


def _zarr_group(folder: Path, sequences: list[str]) -> list[str]:
    group = zarr.create_group(folder / "g.zarr")
    group.create_array("codes", data=codes_of(sequences), chunks=(50, len(sequences[0])))
    group.create_array("other", data=np.zeros(3))
    return ["dataset=array", f"dataset.path={folder / 'g.zarr'}", "dataset.key=codes"]


def _loci(folder: Path, sequences: list[str]) -> list[str]:
    length = len(sequences[0])
    write(folder / "genome.fa", f">chr1\n{''.join(sequences)}\n".encode())
    lines = "".join(f"chr1\t{i * length}\t{(i + 1) * length}\ts{i}\n" for i in range(len(sequences)))
    bed = write(folder / "l.bed", lines.encode())
    genome = f"dataset.genome={folder / 'genome.fa'}"
    return ["dataset=loci", f"dataset.loci={bed}", genome, f"dataset.length={length}"]


def _tiles(folder: Path, sequences: list[str]) -> list[str]:
    genome = write(folder / "tiled.fa.gz", gzip.compress(f">chr1\n{''.join(sequences)}AC\n".encode()))
    return ["dataset=tiles", f"dataset.genome={genome}", f"dataset.length={len(sequences[0])}"]


FORMS: dict[str, Writer] = {
    "fasta": _fasta("a.fa", fasta),
    "fasta.gz": _fasta("a.fa.gz", lambda sequences: gzip.compress(fasta(sequences))),
    "fasta.bgz": _fasta("a.fa.bgz", lambda s: gzip.compress(fasta(s)[:700]) + gzip.compress(fasta(s)[700:])),
    "fasta in lower case, RNA": _fasta("r.fa", lower_case_rna),
    "fasta, CRLF": _fasta("c.fa", lambda sequences: fasta(sequences).replace(b"\n", b"\r\n")),
    "csv": _text("t.csv", lambda sequences: delimited(sequences, ",")),
    "tsv.gz": _text("t.tsv.gz", lambda sequences: gzip.compress(delimited(sequences, "\t"))),
    "csv, CRLF": _text("c.csv", lambda sequences: delimited(sequences, ",", "\r\n")),
    "txt": _text("t.txt", lambda sequences: delimited(sequences, ";")),
    "semicolons": _text("s.csv", lambda sequences: delimited(sequences, ";"), "dataset.delimiter=semicolon"),
    "csv, quoted": _quoted,
    "parquet": _parquet,
    "parquet, one-hot": _parquet_one_hot,
    "arrow": _arrow,
    "arrow stream": _arrow_stream,
    "feather": _feather,
    "npy, N4L": _npy("n.npy", one_hot_of),
    "npy, NL4, float": _npy("f.npy", lambda sequences: one_hot_of(sequences).transpose(0, 2, 1).astype(np.float32)),
    "npy, bool": _npy("b.npy", lambda sequences: one_hot_of(sequences).astype(bool)),
    "npy, codes": _npy("c.npy", lambda sequences: codes_of(sequences).astype(np.int64)),
    "npz": _npz,
    "zarr 3, N4L": _zarr("x.zarr", one_hot_of, 64),
    "zarr 2, NL4": _zarr("y.zarr", lambda sequences: one_hot_of(sequences).transpose(0, 2, 1), 7, zarr_format=2),
    "zarr group, codes": _zarr_group,
    "loci": _loci,
    "tiles": _tiles,
}
