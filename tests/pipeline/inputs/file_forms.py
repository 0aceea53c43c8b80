"""The same sequences in every form of input, for tests."""

from __future__ import annotations

import csv
import gzip
import struct
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr

from dlshap_core.one_hot import one_hot
from dlshap_core.sequences import encode

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


def _indexed_fasta(folder: Path, sequences: list[str]) -> list[str]:
    write(folder / "i.fa.fai", b"s0\t50\t4\t50\t51\n")  # of another file: it is not looked at
    return _fasta("i.fa", fasta)(folder, sequences)


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


def _parquet_lists(folder: Path, sequences: list[str]) -> list[str]:
    """Lists of any size, as pandas and most libraries write them."""
    pq.write_table(pa.table({"codes": codes_of(sequences).tolist(), "name": names_of(sequences)}), folder / "l.parquet")
    return ["dataset=table", f"dataset.path={folder / 'l.parquet'}", "dataset.column=codes"]


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


def _npz_codes(folder: Path, sequences: list[str]) -> list[str]:
    np.savez(folder / "c.npz", codes=codes_of(sequences).astype(np.int32))
    return ["dataset=array", f"dataset.path={folder / 'c.npz'}"]


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


def bgzf(content: bytes, block: int = 600) -> bytes:
    """As bgzip writes it: gzip members that say their own size, and an empty one at the end."""

    def member(part: bytes) -> bytes:
        packed = zlib.compress(part, wbits=-15)
        head = struct.pack("<4BI2BH2BHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(packed) + 25)
        return head + packed + struct.pack("<II", zlib.crc32(part), len(part))

    return b"".join(member(content[at : at + block]) for at in range(0, len(content), block)) + member(b"")


def genome_of(sequences: list[str]) -> bytes:
    """One after the other on chr1, in lines of 60."""
    bases = "".join(sequences)
    return f">chr1 all of them\n{textwrap.fill(bases, 60)}\n".encode()


def index_of(sequences: list[str]) -> bytes:
    """The .fai of `genome_of`."""
    return f"chr1\t{sum(map(len, sequences))}\t18\t60\t61\n".encode()


def _with_genome(folder: Path, sequences: list[str], kind: str) -> list[str]:
    genome = write(folder / f"genome.fa{kind}", _PACKED[kind](genome_of(sequences)))
    if not kind:
        write(folder / "genome.fa.fai", index_of(sequences))
    return [f"dataset.genome={genome}", f"dataset.length={len(sequences[0])}"]


_PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bgz": bgzf}


def _loci(name: str, line: str, genome: str = "") -> Writer:
    """Loci as lines of a format; {start}, {end}, {centre} and {i} are filled in."""

    def written(folder: Path, sequences: list[str]) -> list[str]:
        n, text = len(sequences[0]), ""
        for i in range(len(sequences)):
            start, centre = i * n, i * n + n // 2
            text += (
                line.format(i=i, start=start, end=start + n, centre=centre, after=centre + 1, n=n, half=n // 2) + "\n"
            )
        content = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
        loci = write(folder / name, content)
        return ["dataset=loci", f"dataset.loci={loci}", *_with_genome(folder, sequences, genome)]

    return written


def _turned_loci(folder: Path, sequences: list[str]) -> list[str]:
    """Every other sequence lies on the minus strand, and is turned as it is read."""
    there = [sequence.translate(_COMPLEMENT)[::-1] if i % 2 else sequence for i, sequence in enumerate(sequences)]
    line = "chr1\t{start}\t{end}\ts{i}\t0\t"
    settings = _loci("t.bed", line)(folder, there)
    strands = [text + "+-"[i % 2] for i, text in enumerate((folder / "t.bed").read_text().splitlines())]
    write(folder / "t.bed", "\n".join(strands).encode())
    return [*settings, "dataset.strand=apply"]


_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def _tiles(genome: str) -> Writer:
    return lambda folder, sequences: ["dataset=tiles", *_with_genome(folder, sequences, genome)]


def variants(folder: Path, sequences: list[str]) -> list[str]:
    """A VCF whose reference alleles, every other row, are the sequences."""
    n, lines = len(sequences[0]), []
    for i, sequence in enumerate(sequences):
        ref = sequence[n // 2]
        lines.append(f"chr1\t{i * n + n // 2 + 1}\ts{i}\t{ref}\t{'A' if ref != 'A' else 'C'}\n")
    vcf = write(folder / "v.vcf", b"##fileformat=VCFv4.2\n" + "".join(lines).encode())
    return ["dataset=variants", f"dataset.vcf={vcf}", *_with_genome(folder, sequences, "")]


FORMS: dict[str, Writer] = {
    "fasta": _fasta("a.fa", fasta),
    "fasta.gz": _fasta("a.fa.gz", lambda sequences: gzip.compress(fasta(sequences))),
    "fasta.bgz": _fasta("a.fa.bgz", lambda sequences: bgzf(fasta(sequences))),
    "fasta, gzip in parts": _fasta("p.fa", lambda s: gzip.compress(fasta(s)[:700]) + gzip.compress(fasta(s)[700:])),
    "fasta, indexed": _indexed_fasta,
    "fasta in lower case, RNA": _fasta("r.fa", lower_case_rna),
    "fasta, CRLF": _fasta("c.fa", lambda sequences: fasta(sequences).replace(b"\n", b"\r\n")),
    "csv": _text("t.csv", lambda sequences: delimited(sequences, ",")),
    "csv.gz": _text("t.csv.gz", lambda sequences: gzip.compress(delimited(sequences, ","))),
    "tsv": _text("t.tsv", lambda sequences: delimited(sequences, "\t")),
    "tsv.gz": _text("t.tsv.gz", lambda sequences: gzip.compress(delimited(sequences, "\t"))),
    "csv, CRLF": _text("c.csv", lambda sequences: delimited(sequences, ",", "\r\n")),
    "txt": _text("t.txt", lambda sequences: delimited(sequences, ";")),
    "semicolons": _text("s.csv", lambda sequences: delimited(sequences, ";"), "dataset.delimiter=semicolon"),
    "csv, quoted": _quoted,
    "parquet": _parquet,
    "parquet, one-hot": _parquet_one_hot,
    "parquet, lists": _parquet_lists,
    "arrow": _arrow,
    "arrow stream": _arrow_stream,
    "feather": _feather,
    "feather, codes": lambda folder, sequences: [*_feather(folder, sequences), "dataset.column=codes"],
    "npy, N4L": _npy("n.npy", one_hot_of),
    "npy, NL4, float": _npy("f.npy", lambda sequences: one_hot_of(sequences).transpose(0, 2, 1).astype(np.float32)),
    "npy, bool": _npy("b.npy", lambda sequences: one_hot_of(sequences).astype(bool)),
    "npy, codes": _npy("c.npy", lambda sequences: codes_of(sequences).astype(np.int64)),
    "npz": _npz,
    "npz, codes": _npz_codes,
    "zarr 3, N4L": _zarr("x.zarr", one_hot_of, 64),
    "zarr 2, NL4": _zarr("y.zarr", lambda sequences: one_hot_of(sequences).transpose(0, 2, 1), 7, zarr_format=2),
    "zarr 3, NL4": _zarr("z.zarr", lambda sequences: one_hot_of(sequences).transpose(0, 2, 1), 64),
    "zarr 3, codes": _zarr("c.zarr", codes_of, 64),
    "zarr group, codes": _zarr_group,
    "bed3": _loci("l.bed", "chr1\t{start}\t{end}"),
    "bed4": _loci("l.bed", "chr1\t{start}\t{end}\ts{i}", ".gz"),
    "bed5": _loci("l.bed", "chr1\t{start}\t{end}\ts{i}\t7"),
    "bed6": _loci("l.bed", "chr1\t{start}\t{end}\ts{i}\t7\t-", ".bgz"),
    "bed6, strands applied": _turned_loci,
    "bed9": _loci("l.bed", "chr1\t{start}\t{end}\ts{i}\t7\t+\t{start}\t{end}\t0,0,0"),
    "bed12": _loci("l.bed.gz", "chr1\t{start}\t{end}\ts{i}\t7\t+\t{start}\t{end}\t0\t1\t{n},\t0,"),
    "narrowPeak": _loci("l.narrowPeak", "chr1\t{start}\t{end}\ts{i}\t7\t.\t1\t2\t3\t{half}", ".bgz"),
    "broadPeak": _loci("l.broadPeak", "chr1\t{start}\t{end}\ts{i}\t7\t.\t1\t2\t3"),
    "summits": _loci("l_summits.bed", "chr1\t{centre}\t{after}\ts{i}\t7"),
    "tiles": _tiles(""),
    "tiles.gz": _tiles(".gz"),
    "tiles.bgz": _tiles(".bgz"),
}
