"""Small files that would become large are refused in time, with the setting that an honest one needs."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from dlshap_core.sequences import decode
from pipeline.config import limits
from pipeline.config.compose import compose_config
from pipeline.config.schema import LimitsConfig
from pipeline.inputs.base import RowBatch
from pipeline.inputs.genome import StreamedGenome, open_genome
from pipeline.inputs.ingest import Nowhere, ingest
from pipeline.inputs.open import open_source
from pipeline.inputs.parquet_pages import pages
from pipeline.messages.errors import UserError

MB = 10**6
SMALL = [
    "limits.record_mb=1",
    "limits.sequence=500000",
    "limits.held_mb=1",
    "limits.streamed_mb=4",
    "limits.block_mb=1",
]


def read(*overrides: str) -> list[RowBatch]:
    config = compose_config(list(overrides))
    with limits.using(config.limits):
        return list(open_source(config.dataset).batches())


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(*SMALL, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def packed(path: Path, *parts: bytes) -> Path:
    with gzip.open(path, "wb", 1) as file:
        for part in parts:
            file.write(part)
    return path


# --- text -----------------------------------------------------------------------------------------------------------

LONG, VARIANT = b"ACGT" * (MB // 2), b"chr1\t2\tx\tA\t"


def _fasta_header(folder: Path) -> list[str]:
    return ["dataset=fasta", f"dataset.path={packed(folder / 'x.fa.gz', b'>', LONG, b' ACGT')}"]


def _csv(folder: Path) -> list[str]:
    return ["dataset=table", f"dataset.path={packed(folder / 'x.csv.gz', b'sequence', bytes([10]), LONG)}"]


def _bed(folder: Path) -> list[str]:
    (folder / "g.fa").write_text(">chr1\nACGTACGT\n")
    return [
        "dataset=loci",
        f"dataset.loci={packed(folder / 'x.bed.gz', b'chr1 1 2 ' * 300_000)}",
        f"dataset.genome={folder / 'g.fa'}",
        "dataset.length=4",
    ]


def _vcf(folder: Path) -> list[str]:
    (folder / "g.fa").write_text(">chr1\nACGTACGT\n")
    return [
        "dataset=variants",
        f"dataset.vcf={packed(folder / 'x.vcf.gz', VARIANT, LONG)}",
        f"dataset.genome={folder / 'g.fa'}",
        "dataset.length=4",
    ]


@pytest.mark.parametrize(("make", "line"), [(_fasta_header, 1), (_csv, 2), (_bed, 1), (_vcf, 1)])
def test_a_line_that_is_too_long(tmp_path: Path, make: Callable[[Path], list[str]], line: int) -> None:
    message = refusal(*make(tmp_path))
    assert f"line {line} is more than the limit of 1 MB; if you trust the file, set limits.record_mb=" in message


def test_lines_at_the_limit(tmp_path: Path) -> None:
    longest = b"N" * (MB - 9) + b"\tACGTACGT"
    (tmp_path / "x.tsv").write_bytes(b"name\tsequence\n" + longest + b"\r\n" + b"y\tACGT\n")
    given = ["dataset=table", f"dataset.path={tmp_path / 'x.tsv'}"]
    (rows,) = read(*given, *SMALL)
    assert [len(name) for name in rows.name] == [MB - 9, 1]
    (tmp_path / "x.tsv").write_bytes(b"name\tsequence\n" + b"NNN" + longest)
    assert "x.tsv, line 2 is more than the limit of 1 MB" in refusal(*given)


def test_a_sequence_that_is_too_long_is_a_bad_row_whose_length_is_told(tmp_path: Path) -> None:
    for ends, number in ((b"", 2 * MB), (b"\n", 2 * MB)):
        lines = ends.join([b"ACGT" * 50_000] * 10)
        packed(tmp_path / "x.fa.gz", b">a\nAC\n>b\n", lines, b"\n>c\nGT")
        (rows,) = read("dataset=fasta", f"dataset.path={tmp_path / 'x.fa.gz'}", *SMALL)
        assert [codes is None for codes in rows.codes] == [False, True, False]
        assert f"'b' (x.fa.gz, line 3) has {number} bases, more than the limit of 500000" in str(rows.problem[1])
        assert f"set limits.sequence={number}" in str(rows.problem[1])


@pytest.mark.parametrize("column", ["name", "chrom"])
def test_a_name_that_is_too_long_is_a_bad_row(tmp_path: Path, column: str) -> None:
    line = {"name": "a", "chrom": "chr1"} | {column: "x" * 5000}
    (tmp_path / "x.tsv").write_text(
        f"name\tchrom\tstart\tend\tsequence\n{line['name']}\t{line['chrom']}\t0\t8\tACGTACGT\nb\tchr1\t0\t8\tACGTACGT\n"
    )
    config = compose_config(["dataset=table", f"dataset.path={tmp_path / 'x.tsv'}", "dataset.on_bad=skip"])
    found = ingest(open_source(config.dataset), config.dataset, lambda *_: Nowhere(), lambda _: None)
    assert (found.n_rows, found.n_bad) == (1, 1)
    assert "has a name of 5000 characters, more than the limit of 4096" in found.problems[0]
    assert len(found.problems[0]) < 400
    with limits.using(LimitsConfig(name=5000)):
        found = ingest(open_source(config.dataset), config.dataset, lambda *_: Nowhere(), lambda _: None)
    assert (found.n_rows, found.n_bad) == (2, 0)


@pytest.mark.parametrize("members", [1, 300])
@pytest.mark.parametrize("form", ["fasta", "table"])
def test_gzip_that_unpacks_to_far_more_than_it_is(tmp_path: Path, form: str, members: int) -> None:
    name, part = ("x.fa.gz", b"\n" * 50_000) if form == "fasta" else ("x.csv.gz", b"# x\n" * 12_500)
    one = gzip.compress(part * (300 // members))
    (tmp_path / name).write_bytes(one * members)
    message = refusal(f"dataset={form}", f"dataset.path={tmp_path / name}", "limits.streamed_ratio=50")
    assert f"{name} unpacks to 4." in message
    assert "more than the limit of 4 MB; if you trust the file, set limits.streamed_mb=" in message


def test_a_packed_genome_is_streamed_and_its_chromosomes_are_held_within_the_limits(tmp_path: Path) -> None:
    chromosome = "".join(np.random.RandomState(0).choice(list("ACGT"), 600_000))
    packed(tmp_path / "g.fa.gz", f">chr1\n{chromosome}\n>chr2\n{chromosome}".encode())
    with limits.using(compose_config(SMALL).limits):
        genome = open_genome(tmp_path / "g.fa.gz")
        assert genome.lengths == {"chr1": 600_000, "chr2": 600_000}
        assert genome.fetch("chr1", 599_990, 600_000).decode() == chromosome[-10:]
    packed(tmp_path / "z.fa.gz", *(b"\n>%d\n" % i + b"A" * 600_000 for i in range(2)))
    with limits.using(compose_config(SMALL).limits):
        genome = open_genome(tmp_path / "z.fa.gz")
        assert genome.fetch("0", 0, 3) == b"AAA"
        genome.release("0")
        assert genome.fetch("1", 0, 3) == b"AAA"  # one at a time: each is within the limits
        genome = open_genome(tmp_path / "z.fa.gz")
        assert genome.fetch("0", 0, 3) == b"AAA"
        with pytest.raises(UserError, match=r"up to 1 \(unpack it, or sort the loci in its order\), takes 1\.2 MB"):
            genome.fetch("1", 0, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_genomes_read_in_blocks_that_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("pipeline.inputs.genome._CHUNK_BYTES", size)
    text = b"\xef\xbb\xbf>chr1 first\r\nAC GT\nACG\n\n>chr2\nTT>T\n>chr3\n>chr4\nG"
    packed(tmp_path / "g.fa.gz", text)
    genome = StreamedGenome(tmp_path / "g.fa.gz")
    assert genome.lengths == {"chr1": 7, "chr2": 4, "chr3": 0, "chr4": 1}
    assert [genome.fetch(chrom, 0, n) for chrom, n in genome.lengths.items()] == [b"ACGTACG", b"TT>T", b"", b"G"]


def test_a_file_of_holes_is_no_genome(tmp_path: Path) -> None:
    with (tmp_path / "g.fa").open("wb") as file:
        file.write(b">chr1\n")
        file.truncate(10**9)
    with limits.using(compose_config(SMALL).limits), pytest.raises(UserError, match=r"g\.fa unpacks to 1 GB or more"):
        open_genome(tmp_path / "g.fa")


@pytest.mark.parametrize("size", [7, 100])
def test_a_line_of_a_genome_that_is_too_long_to_make_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("pipeline.inputs.genome._CHUNK_BYTES", size)
    chromosome = "ACGT" * 500
    (tmp_path / "g.fa").write_text(f">short\nAC\n>chr1\n{chromosome}\n")
    monkeypatch.setattr(limits, "MB", 1000)
    with limits.using(LimitsConfig(held_mb=1)), pytest.raises(UserError, match=r"samtools faidx g\.fa makes an index"):
        open_genome(tmp_path / "g.fa")
    with limits.using(LimitsConfig(held_mb=2)):
        genome = open_genome(tmp_path / "g.fa")
    with limits.using(LimitsConfig(held_mb=1)):  # there is an index now
        genome = open_genome(tmp_path / "g.fa")
    assert genome.fetch("chr1", 1998, 2000) == b"GT"


# --- arrays ---------------------------------------------------------------------------------------------------------


def npy_header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}"
    text += " " * (63 - (len(text) + 10) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz(path: Path, shape: tuple[int, ...]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy_header(shape) + bytes(int(np.prod(shape))))
    return path


def test_a_row_of_an_array_that_is_too_large(tmp_path: Path) -> None:
    npz(tmp_path / "x.npz", (1, 4, 300_000))
    message = refusal("dataset=array", f"dataset.path={tmp_path / 'x.npz'}")
    assert message.endswith(
        "x.npz, of shape (1, 4, 300000): each row has 1.2 MB, more than the limit of 1 MB; "
        "if you trust the file, set limits.record_mb=2"
    )
    (tmp_path / "x.npy").write_bytes(npy_header((2, 4, 4 * 10**9), "<f4"))
    assert "each row has 64 GB" in refusal("dataset=array", f"dataset.path={tmp_path / 'x.npy'}")


def test_an_array_of_sequences_that_are_too_long(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 600_000), np.uint8))
    message = refusal("dataset=array", f"dataset.path={tmp_path / 'x.npy'}")
    assert "x.npy: each row has 600000 bases, more than the limit of 500000" in message
    (rows,) = read("dataset=array", f"dataset.path={tmp_path / 'x.npy'}", *SMALL, "limits.sequence=600000")
    assert [len(codes) for codes in rows.codes if codes is not None] == [600_000, 600_000]


def test_an_npz_that_unpacks_to_far_more_than_it_is(tmp_path: Path) -> None:
    npz(tmp_path / "x.npz", (60_000, 100))
    message = refusal("dataset=array", f"dataset.path={tmp_path / 'x.npz'}")
    assert "x.npz unpacks to" in message
    assert "limits.streamed_mb=" in message
    assert len(read("dataset=array", f"dataset.path={tmp_path / 'x.npz'}", *SMALL, "limits.streamed_mb=7")) == 59


def test_an_npy_of_holes(tmp_path: Path) -> None:
    for order in ("False", "True"):
        with (tmp_path / "x.npy").open("wb") as file:
            file.write(npy_header((10**9, 4), "|u1").replace(b"False", order.encode().ljust(5)))
            file.truncate(4 * 10**9 + 128)
        assert "x.npy unpacks to 4 GB or more" in refusal("dataset=array", f"dataset.path={tmp_path / 'x.npy'}")


@pytest.mark.parametrize(
    ("shape", "chunks", "message"),
    [
        ((10**15, 4, 300), (4, 4, 300), "unpacks to 1.2e+06 TB or more, and has"),
        ((4, 4, 300), (4, 4, 10**9), "each chunk, of shape (4, 4, 1000000000), has 16 GB"),
        ((10**8, 4, 300), (10**6, 4, 300), "each chunk, of shape (1000000, 4, 300), has 1.2 GB"),
        ((1, 4, 10**6), (1, 4, 100), "each row of its chunks has 4 MB, more than the limit of 1 MB"),
        ((4, 4, 200_000), (1, 1, 1), "is in chunks of shape (1, 1, 1), 800000 for a row or a shard"),
    ],
)
def test_an_array_of_zarr_that_holds_nothing(
    tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], message: str
) -> None:
    zarr.create_array(tmp_path / "x.zarr", shape=shape, chunks=chunks, dtype="u1")
    assert message in refusal("dataset=array", f"dataset.path={tmp_path / 'x.zarr'}")


def test_a_shard_of_zarr_of_more_chunks_than_any_reader_needs(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", shape=(10**5, 4), chunks=(1, 4), shards=(10**5, 4), dtype="u1")
    assert "100000 for a row or a shard" in refusal("dataset=array", f"dataset.path={tmp_path / 'x.zarr'}")


def zarr_codec(name: str, zarr_format: int) -> object:
    config = {"id": name, **({"clevel": 1, "cname": "zstd"} if name == "blosc" else {})}
    if zarr_format == 2:
        return numcodecs.get_codec(config)
    if name in ("bz2", "lzma", "zlib", "lz4"):
        return {"name": f"numcodecs.{name}", "configuration": {}}
    return {"gzip": GzipCodec(), "zstd": ZstdCodec(), "blosc": BloscCodec(cname="zstd")}[name]


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4"])
def test_a_chunk_of_zarr_that_unpacks_to_more_than_a_chunk_is(tmp_path: Path, name: str, zarr_format: int) -> None:
    codes = np.random.RandomState(0).randint(0, 4, (6, 500)).astype("u1")
    codec = zarr_codec(name, zarr_format)
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(6, 500), chunks=(2, 500), dtype="u1", compressors=codec, zarr_format=zarr_format
    )
    array[:] = codes
    given = ["dataset=array", f"dataset.path={tmp_path / 'x.zarr'}"]
    (rows,) = read(*given)
    np.testing.assert_array_equal(np.stack([row for row in rows.codes if row is not None]), codes)
    packed = numcodecs.get_codec({"id": name}).encode(bytes(3 * MB))
    (tmp_path / "x.zarr" / ("1.0" if zarr_format == 2 else "c/1/0")).write_bytes(bytes(packed))
    assert "x.zarr, of shape (6, 500): a chunk unpacks to more than 69536 bytes" in refusal(*given)


def test_a_chunk_within_a_shard_that_unpacks_to_more_than_a_chunk_is(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(4, 9), chunks=(2, 9), shards=(4, 9), dtype="u1", compressors=GzipCodec()
    )
    array[:] = np.ones((4, 9), "u1")
    shard, bomb = (tmp_path / "x.zarr" / "c/0/0").read_bytes(), gzip.compress(bytes(3 * MB))
    entries = struct.pack("<4Q", len(shard) - 36, len(bomb), *struct.unpack("<4Q", shard[-36:-4])[2:])
    index = entries + struct.pack("<I", google_crc32c.value(entries))
    (tmp_path / "x.zarr" / "c/0/0").write_bytes(shard[:-36] + bomb + index)
    assert "a chunk unpacks to more than" in refusal("dataset=array", f"dataset.path={tmp_path / 'x.zarr'}")


@pytest.mark.parametrize("size", [1000, 3 * MB])
def test_zstd_that_does_not_say_its_size(tmp_path: Path, size: int) -> None:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(bytes([1]) * size)
    array = zarr.create_array(tmp_path / "x.zarr", shape=(2, 500), chunks=(2, 500), dtype="u1", compressors=ZstdCodec())
    array[:] = np.ones((2, 500), "u1")
    (tmp_path / "x.zarr" / "c/0/0").write_bytes(packed.getvalue().to_pybytes())
    given = ["dataset=array", f"dataset.path={tmp_path / 'x.zarr'}"]
    if size == 1000:
        assert [row.tolist() for row in read(*given)[0].codes if row is not None] == [[1] * 500] * 2
    else:
        assert "a chunk unpacks to more than" in refusal(*given)


# --- tables ---------------------------------------------------------------------------------------------------------


def of_parquet(folder: Path) -> list[str]:
    return ["dataset=table", f"dataset.path={folder / 'x.parquet'}"]


def write(folder: Path, values: pa.Array, **options: object) -> list[str]:
    pq.write_table(pa.table({"sequence": values}), folder / "x.parquet", compression="zstd", **options)
    return of_parquet(folder)


@pytest.mark.parametrize("encoding", ["dictionary", "plain", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_a_cell_of_parquet_that_is_too_large(tmp_path: Path, encoding: str) -> None:
    cells = ["ACGT"] * 500 + ["A" * 3 * MB] * 20
    options = {"use_dictionary": True} if encoding == "dictionary" else {"use_dictionary": False}
    if "DELTA" in encoding:
        options |= {"column_encoding": {"sequence": encoding}}
    more = ["limits.streamed_ratio=1000000", "limits.held_mb=100"]
    message = refusal(*write(tmp_path, pa.array(cells), **options), *more)
    assert "x.parquet: a cell of column 'sequence' has 3 MB, more than the limit of 1 MB" in message
    assert message.endswith("set limits.record_mb=3")


def zigzag(number: int, length: int = 0) -> bytes:
    """A number as Thrift writes it, in so many bytes at least."""
    number, found = number * 2, b""
    while number >= 128 or len(found) < length - 1:
        number, found = number >> 7, found + bytes([number & 127 | 128])
    return found + bytes([number])


def test_parquet_that_lies_about_its_pages(tmp_path: Path) -> None:
    """What the file says of a column is not believed where its pages say more, nor which encodings it has."""
    given = write(tmp_path, pa.array(["A" * 3 * MB] * 2), use_dictionary=False)
    path, says = tmp_path / "x.parquet", pq.read_metadata(tmp_path / "x.parquet").row_group(0).column(0)
    old = zigzag(says.total_uncompressed_size)
    path.write_bytes(path.read_bytes().replace(old, zigzag(50, len(old))))
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 50
    assert "the mean cell of 'sequence' has 3 MB" in refusal(*given)
    path.write_bytes(path.read_bytes().replace(zigzag(2), zigzag(63)))  # more rows: the mean is small
    assert "x.parquet: a page takes 6 MB of memory once it is read" in refusal(*given, "limits.streamed_mb=9")
    for encoding, number in (("PLAIN", 0), ("DELTA_BYTE_ARRAY", 7)):
        options = {"use_dictionary": encoding == "PLAIN"} | ({"column_encoding": encoding} if number else {})
        write(tmp_path, pa.array(["ACGT"] * 9), data_page_version="2.0" if number else "1.0", **options)
        about = pq.read_metadata(path).row_group(0).column(0)
        with path.open("rb") as file:
            found = list(pages(file.fileno(), 4, 4 + about.total_compressed_size))
        assert [page.is_delta for page in found] == [bool(number)] * len(found)
        assert [page.is_dictionary for page in found] == ([True, False] if not number else [False])


def test_parquet_whose_rows_are_runs_of_an_entry_of_its_dictionary(tmp_path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), pa.array(["ACGT" * 10]))
    message = refusal(*write(tmp_path, values.cast(pa.string())))
    assert "x.parquet unpacks to" in message
    assert "limits.streamed_mb=" in message


def test_a_categorical_column_whose_cells_are_long(tmp_path: Path) -> None:
    entries = pa.array(["ACGT", "A" * 900_000])
    values = pa.DictionaryArray.from_arrays(pa.array(np.r_[np.zeros(600, np.int32), np.ones(3, np.int32)]), entries)
    given = [*SMALL, "limits.sequence=1000000", "limits.streamed_ratio=1000000"]
    rows = read(*write(tmp_path, values), *given)
    assert [len(codes) for batch in rows for codes in batch.codes if codes is not None] == [4] * 600 + [900_000] * 3
    entries = pa.array(["ACGT", "A" * 1_100_000])
    values = pa.DictionaryArray.from_arrays(pa.array([0, 0]), entries)
    assert "a cell of column 'sequence' has 1.1 MB" in refusal(*write(tmp_path, values))


def test_lists_of_parquet_that_unpack_to_far_more_than_they_are(tmp_path: Path) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * MB, np.int32)), 40_000)
    message = refusal(*write(tmp_path, values))
    assert "x.parquet unpacks to 16 MB or more, and has" in message
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * MB, np.int32)), 1 * MB)
    assert "the mean cell of 'sequence" in refusal(*write(tmp_path, values), "limits.streamed_ratio=1000000")


@pytest.mark.parametrize("type_", [pa.list_(pa.string()), pa.struct([("a", pa.string())])])
def test_columns_of_other_kinds_are_not_read(tmp_path: Path, type_: pa.DataType) -> None:
    pq.write_table(pa.table({"sequence": ["ACGT"], "name": pa.array([None], type_)}), tmp_path / "x.parquet")
    assert (
        f"column 'name' is {str(type_).replace('item', 'element')}; expected text, numbers or lists of numbers"
        in refusal(*of_parquet(tmp_path))
    )


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_batch_of_arrow_that_unpacks_to_far_more_than_it_is(
    tmp_path: Path, compression: str, is_stream: bool
) -> None:
    table = pa.table({"sequence": ["ACGT" * 100_000] * 20, "label": pa.array(["x"] * 20).dictionary_encode()})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with make(tmp_path / "x.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    given = ["dataset=table", f"dataset.path={tmp_path / 'x.arrow'}"]
    message = refusal(*given)
    assert "x.arrow: a batch of rows takes 8 MB of memory once it is read" in message
    assert message.endswith("set limits.held_mb=9")
    (rows,) = read(*given, *SMALL, "limits.held_mb=9", "limits.streamed_mb=9")
    assert len(rows) == 20


def test_an_arrow_file_that_has_lost_a_batch(tmp_path: Path) -> None:
    table = pa.table({"sequence": ["ACGT"] * 6})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    data = bytearray((tmp_path / "x.arrow").read_bytes())
    end = data.rindex(b"\xff\xff\xff\xff\0\0\0\0")  # the end of the messages
    second = [i for i in range(0, end, 8) if data[i : i + 4] == b"\xff\xff\xff\xff"][2]
    data[second : second + 8] = b"\xff\xff\xff\xff\0\0\0\0"
    (tmp_path / "x.arrow").write_bytes(data)
    with pytest.raises(UserError, match="is damaged: it has 1 of 3 batches of rows"):
        read("dataset=table", f"dataset.path={tmp_path / 'x.arrow'}")


# --- honest files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i1", "f4", "i8", "f8"])
def test_one_hot_in_npz_is_within_the_ratio(tmp_path: Path, dtype: str) -> None:
    codes = np.random.RandomState(0).randint(0, 4, (300, 2114))
    one_hot = (codes[:, :, None] == np.arange(4)).astype(dtype)
    np.savez_compressed(tmp_path / "x.npz", one_hot)
    given = ["dataset=array", f"dataset.path={tmp_path / 'x.npz'}", "limits.streamed_mb=1"]
    assert sum(map(len, read(*given))) == 300


def test_long_sequences_are_within_the_defaults(tmp_path: Path) -> None:
    sequence = "".join(np.random.RandomState(0).choice(list("ACGT"), 1 << 20))
    (tmp_path / "x.fa").write_text(f">a\n{sequence}\n")
    pq.write_table(pa.table({"sequence": [sequence]}), tmp_path / "x.parquet")
    for given in (["dataset=fasta", f"dataset.path={tmp_path / 'x.fa'}"], of_parquet(tmp_path)):
        (rows,) = read(*given)
        assert [decode(codes) for codes in rows.codes if codes is not None] == [sequence]


# --- files that are damaged on purpose ------------------------------------------------------------------------------


def test_a_header_of_npy_that_is_no_python(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'shape': (2, ("
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert "x.npy cannot be read" in refusal("dataset=array", f"dataset.path={tmp_path / 'x.npy'}")


@pytest.mark.parametrize("spoiled", [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"])
def test_text_of_arrow_that_is_no_text_or_lies_elsewhere(tmp_path: Path, spoiled: bytes) -> None:
    table = pa.table({"sequence": ["ACGT"] * 3, "name": ["name", "eman", "mane"]})
    pa.feather.write_feather(table, tmp_path / "x.arrow", compression="uncompressed")
    data = (tmp_path / "x.arrow").read_bytes()
    where = b"name" if spoiled == b"\xff" * 4 else struct.pack("<4i", 0, 4, 8, 12)
    at = data.rindex(b"nameemanmane") if where == b"name" else data.rindex(where) + 8
    (tmp_path / "x.arrow").write_bytes(data[:at] + spoiled + data[at + 4 :])
    message = refusal("dataset=table", f"dataset.path={tmp_path / 'x.arrow'}", "dataset.columns.name=name")
    assert "x.arrow" in message
