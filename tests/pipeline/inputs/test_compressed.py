"""Compressed files: the same values as of the plain file, within limits, and a line that says what is damaged."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dlshap_core.sequences import decode
from pipeline.config import limits
from pipeline.config.schema import LimitsConfig
from pipeline.inputs.file_types import require_form
from pipeline.inputs.genome import open_genome
from pipeline.inputs.open import open_source
from pipeline.inputs.text import numbered_lines
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import chosen


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
each_kind = pytest.mark.parametrize("suffix", PACKERS)
SEQUENCES = ["".join(np.random.RandomState(i).choice(list("ACGTN"), 90)) for i in range(600)]
FASTA = "".join(f">r{i}\n{bases}\n" for i, bases in enumerate(SEQUENCES)).encode()
TABLE = "name,sequence\n" + "".join(f"r{i},{bases}\n" for i, bases in enumerate(SEQUENCES))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def rows_of(path: Path, form: str) -> dict[str, str]:
    batches = list(open_source(chosen("dataset", form, path=str(path))).batches())
    return {
        name: decode(codes)
        for rows in batches
        for name, codes in zip(rows.name, rows.codes, strict=True)
        if codes is not None
    }


def lines_of(path: Path) -> bytes:
    return b"".join(line + b"\n" for _, line in numbered_lines(path))


def refusal(path: Path) -> str:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        lines_of(path)
    return str(caught.value)


@each_kind
def test_sequences_are_those_of_the_plain_file(tmp_path: Path, suffix: str) -> None:
    expected = {f"r{i}": bases for i, bases in enumerate(SEQUENCES)}
    pack = PACKERS[suffix]
    assert rows_of(written(tmp_path / f"x.fa{suffix}", pack(FASTA)), "fasta") == expected
    assert rows_of(written(tmp_path / f"x.csv{suffix}", pack(TABLE.encode())), "table") == expected
    genome = open_genome(written(tmp_path / f"g.fa{suffix}", pack(FASTA)))
    genome.expect({"r7", "r599"})
    assert genome.fetch("r7", 3, 50) == SEQUENCES[7][3:50].encode()
    assert genome.fetch("r599", 0, 90) == SEQUENCES[599].encode()


@each_kind
def test_the_kind_is_known_by_the_content_and_not_by_the_name(tmp_path: Path, suffix: str) -> None:
    assert lines_of(written(tmp_path / "x.fa", PACKERS[suffix](FASTA))) == FASTA
    assert lines_of(written(tmp_path / f"x.fa{suffix}", FASTA)) == FASTA


@each_kind
def test_streams_are_read_one_after_the_other(tmp_path: Path, suffix: str) -> None:
    pack, at = PACKERS[suffix], len(FASTA) // 3
    for content in (pack(FASTA[:at]) + pack(FASTA[at:]), pack(b"") + pack(FASTA) + pack(b"")):
        assert lines_of(written(tmp_path / f"x.fa{suffix}", content)) == FASTA
    assert lines_of(written(tmp_path / f"empty.fa{suffix}", pack(b""))) == b""


@each_kind
def test_what_ends_early_is_truncated(tmp_path: Path, suffix: str) -> None:
    packed = PACKERS[suffix](FASTA)
    for n_bytes in (len(packed) - 1, len(packed) - 30, len(packed) // 2, 20):
        message = refusal(written(tmp_path / f"x.fa{suffix}", packed[:n_bytes]))
        assert f"x.fa{suffix} is truncated after line " in message
        assert "copy or download it again" in message


@each_kind
def test_junk_after_the_end(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"x.fa{suffix}", PACKERS[suffix](FASTA) + b"junk" * 8)
    assert f"x.fa{suffix} is damaged after line " in refusal(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])  # Arrow's zstd has no checksum; that of the program has
def test_damage_in_the_middle(tmp_path: Path, suffix: str) -> None:
    packed = PACKERS[suffix](FASTA)
    middle = len(packed) // 2
    path = written(tmp_path / f"x.fa{suffix}", packed[:middle] + bytes(64) + packed[middle + 64 :])
    assert f"x.fa{suffix} is damaged after line " in refusal(path)


@each_kind
def test_a_small_file_that_becomes_large(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"x.fa{suffix}", PACKERS[suffix](b">a\n" + (b"ACGT" * 15 + b"\n") * 50_000))
    assert path.stat().st_size < 60_000
    with limits.using(LimitsConfig(streamed_mb=1, streamed_ratio=10)):
        assert "more than the limit of 1 MB; if you trust the file, set limits.streamed_mb=" in refusal(path)
    assert lines_of(path).count(b"\n") == 50_001


def test_an_xz_file_that_asks_for_much_memory(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    path = written(tmp_path / "x.fa.xz", lzma.compress(FASTA[:100], filters=filters))
    assert "x.fa.xz is damaged after line 0: Memory usage limit" in refusal(path)


@pytest.mark.parametrize(
    ("head", "kind", "command"),
    [
        (b"PK\3\4", "a zip archive", "unzip -p {} > {out}it's"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x -so {} > {out}it's"),
        (b"\x1a\x41\x27\x43", "a 2bit file", "twoBitToFa {} {out}it's.fa"),
        (b"\x43\x27\x41\x1a", "a 2bit file", "twoBitToFa {} {out}it's.fa"),
        (b"BCF\2\2", "BCF", "bcftools view -Oz -o {out}it's.vcf.gz {}"),
        (b"\xff\xfe>\0", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {} > {out}it's.utf8.txt"),
    ],
)
def test_what_another_program_converts(tmp_path: Path, head: bytes, kind: str, command: str) -> None:
    for path in (tmp_path / "it's.x", tmp_path / "it's.x.gz"):
        written(path, gzip.compress(head + bytes(20)) if path.suffix == ".gz" else head + bytes(20))
        message = refusal(path)
        assert message.startswith(f"{path} is {kind}; convert it: ")
        expected = [part.format(path, out=f"{tmp_path}/") for part in command.split(" ")]
        assert shlex.split(message.partition("convert it: ")[2]) == expected


def test_a_form_that_is_read_in_place_says_how_to_unpack_it(tmp_path: Path) -> None:
    path = tmp_path / "my array.npy.gz"
    np.save(tmp_path / "a.npy", np.zeros((2, 8), np.uint8))
    written(path, gzip.compress((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(UserError, match="is not decompressed while it is read; unpack it: gzip -dc ") as caught:
        list(open_source(chosen("dataset", "array", path=str(path))).batches())
    subprocess.run(str(caught.value).partition("unpack it: ")[2], shell=True, check=True)
    assert (tmp_path / "my array.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()


def test_a_name_that_only_another_program_reads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a 2bit file; convert it: twoBitToFa"):
        require_form(written(tmp_path / "hg38.2bit", b"\x43\x27\x41\x1a" + bytes(30)), "fasta")
