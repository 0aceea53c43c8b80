"""Inputs and models that are wrong, one of each kind, as a command meets them: a line, exit code 2, nothing left."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli.main import dispatch
from tests.pipeline.conftest import Inputs

GENOME = f">chr1\n{'ACGT' * 250}\n"
FASTA = f">a\n{'ACGT' * 10}\n>b\n{'CGTA' * 10}\n"
Settings = Callable[[Path, Inputs], list[str]]


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def fasta(content: str | bytes, name: str = "x.fa") -> Settings:
    return lambda folder, inputs: ["dataset=fasta", f"dataset.path={write(folder / name, content)}"]


def table(content: str | bytes, name: str = "x.csv") -> Settings:
    return lambda folder, inputs: ["dataset=table", f"dataset.path={write(folder / name, content)}"]


def loci(content: str | bytes, name: str = "x.bed") -> Settings:
    def settings(folder: Path, inputs: Inputs) -> list[str]:
        genome = f"dataset.genome={write(folder / 'genome.fa', GENOME)}"
        return ["dataset=loci", genome, "dataset.length=40", f"dataset.loci={write(folder / name, content)}"]

    return settings


def tiles(length: int) -> Settings:
    def settings(folder: Path, inputs: Inputs) -> list[str]:
        genome = write(folder / "genome.fa", GENOME)
        return ["dataset=tiles", f"dataset.genome={genome}", f"dataset.length={length}"]

    return settings


def variants(line: str) -> Settings:
    def settings(folder: Path, inputs: Inputs) -> list[str]:
        files = [
            f"dataset.genome={write(folder / 'genome.fa', GENOME)}",
            f"dataset.vcf={write(folder / 'x.vcf', line)}",
        ]
        return ["dataset=variants", "dataset.length=40", *files]

    return settings


def array(values: np.ndarray) -> Settings:
    def settings(folder: Path, inputs: Inputs) -> list[str]:
        np.save(folder / "x.npy", values, allow_pickle=True)
        return ["dataset=array", f"dataset.path={folder / 'x.npy'}"]

    return settings


def weights(make: Callable[[dict[str, torch.Tensor]], object], *more: str) -> Settings:
    def settings(folder: Path, inputs: Inputs) -> list[str]:
        torch.save(make(load_file(inputs.weights)), folder / "w.pt")
        return [f"model.checkpoint={folder / 'w.pt'}", *more]

    return settings


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


KINDS: dict[str, tuple[Settings, str]] = {
    "empty": (fasta(""), "holds no FASTA records"),
    "empty table": (table(""), "is empty; expected a first line that names the columns"),
    "truncated gzip": (fasta(gzip.compress(FASTA.encode())[:-9], "x.fa.gz"), "x.fa.gz is truncated after line"),
    "CRLF in a field": (table('name,seq\r\n"a\r\nb",ACGT\r\n'), "its quotes do not close within the line"),
    "carriage returns alone": (loci("chr1\t99\t101\rchr1\t199\t201\r"), "tr '\\r' '\\n' mends that"),
    "tabs in names": (loci("chr1\t99\t101\ta\tb\t0\t-\n"), "column 6 (strand) is '0'"),
    "header only": (table("name,seq\n"), "holds no rows below its header"),
    "a long line": (fasta(FASTA + ">c\n" + "ACGT" * 250_000 + "\n"), "row 2 'c' has 1000000 bases"),
    "negative": (loci("chr1\t-5\t101\n"), "start -5 is negative; coordinates are 0-based"),
    "reversed": (loci("chr1\t101\t99\n"), "end 99 lies before start 101"),
    "beyond the end": (loci("chr1\t990\t999\n"), "leaves chr1, which spans 0-1000"),
    "shorter than a window": (tiles(1001), "no chromosome of genome.fa has dataset.length=1001 bases"),
    "chromosomes of another naming": (loci("1\t99\t101\n"), "it has 'chr1': rename one of the two"),
    "zero length": (fasta(f"{FASTA}>c\n\n>d\nACGT\n"), "record 2 'c' (x.fa, line 5) has no sequence"),
    "not UTF-8": (fasta(b">\xff\xfe\nACGT\n"), "the header is not UTF-8 text"),
    "UTF-16": (table("name,seq\na,ACGT\n".encode("utf-16")), "is UTF-16 text"),
    "lengths": (table(f"name,seq\na,{'ACGT' * 10}\nb,ACG\n"), "row 1 'b' has 3 bases where the first sequence has 40"),
    "no nucleotides": (fasta(">p\nMKVLEEF\n"), "is not a nucleotide"),
    "soft values": (array(np.full((2, 4, 40), 0.25)), "soft values, such as frequencies, cannot be attributed"),
    "objects": (array(np.array([Bomb()], dtype=object)), "holds Python objects, which are pickled and not loaded"),
    "another build": (variants("chr1\t101\trs1\tC\tT\n"), "REF is C and genome.fa has A there"),
    "symbolic allele": (variants("chr1\t101\trs1\tA\t<DEL>\n"), "symbolic alleles have no sequence"),
    "NaN weights": (weights(lambda state: {k: v * torch.nan for k, v in state.items()}), "that are NaN or infinite"),
    "another architecture": (weights(lambda state: state, "model.init.n_filters=7"), "arguments that it was made with"),
    "code in a pickle": (weights(lambda state: {**state, "x": Bomb()}), "reading it would run code from the file"),
    "code for a BPNet": (
        lambda folder, inputs: ["model=bpnet", *weights(lambda state: Bomb())(folder, inputs)],
        "reading it would run code from the file",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_line_and_nothing_is_left_or_run(
    inputs: Inputs, in_folder: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    make, message = KINDS[kind]
    (in_folder / "files").mkdir()
    settings = make(in_folder / "files", inputs)
    given = {setting.partition("=")[0].partition(".")[0] for setting in settings if setting.startswith("dataset")}
    is_new = {setting.partition("=")[0] for setting in settings} | ({"dataset", "dataset.path"} if given else set())
    if "model" in is_new:
        is_new |= {"model._target_", "model.init.n_filters", "model.init.n_hidden"}
    kept = [each for each in inputs.overrides("made/a.zarr") if each.partition("=")[0] not in is_new]
    assert dispatch(["run", *kept, *settings]) == 2
    told = capfd.readouterr()
    (line,) = [line for line in told.err.splitlines() if line.startswith("dlshap: error: ")]
    assert message in line
    assert len(line) < 700
    assert told.out == ""
    assert "Traceback" not in told.err
    made = {path.relative_to(in_folder).as_posix() for path in in_folder.rglob("*")}
    assert {name for name in made if not name.startswith("files") and name != "made"} == set()
