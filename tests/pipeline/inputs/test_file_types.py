"""The same sequences in every form give the same values, and a file of another form is known for what it is."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import Tensor, nn

import pipeline
from dlshap_core.sequences import decode
from pipeline.config.compose import compose_config
from pipeline.inputs.ingest import Nowhere, ingest, known_facts, signature, to_store
from pipeline.inputs.open import open_source
from pipeline.messages.errors import UserError
from pipeline.store.schema import LAYOUT
from tests.pipeline.conftest import LENGTH, N_ROWS, Inputs, random_sequences
from tests.pipeline.inputs.file_forms import FORMS, variants

SEQUENCES = random_sequences(500, 50, seed=3)
SEQUENCES[7] = SEQUENCES[7][:20] + "N" * 5 + SEQUENCES[7][25:]
UNNAMED = {"csv, quoted", "feather", "feather, codes", "bed3", "tiles", "tiles.gz", "tiles.bgz"}  # and arrays
COMPUTED = ["csv", "parquet", "parquet, lists", "arrow stream", "npy, NL4, float", "zarr 2, NL4", "bed6", "tiles.gz"]
VALUES = ("codes", "prediction", "attribution", "hypothetical")


def read(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Sequences and names of an input, all of them good."""
    batches = list(open_source(compose_config(overrides).dataset).batches())
    assert [problem for rows in batches for problem in rows.problem if problem] == []
    assert [row for rows in batches for row in rows.source_row.tolist()] == list(range(sum(map(len, batches))))
    assert all(codes.dtype == np.uint8 for rows in batches for codes in rows.codes if codes is not None)
    codes = [decode(codes) for rows in batches for codes in rows.codes if codes is not None]
    return codes, [name for rows in batches for name in rows.name]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_codes(tmp_path: Path, form: str) -> None:
    codes, names = read(FORMS[form](tmp_path, SEQUENCES))
    assert codes == SEQUENCES
    if form not in UNNAMED and not form.startswith(("npy", "npz", "zarr")):
        assert names == [f"s{i}" for i in range(500)]
    assert len(set(names)) == 500


def test_tables_and_fasta_of_the_same_names_are_the_same_input(tmp_path: Path) -> None:
    facts = []
    for form in ("fasta", "csv", "parquet"):
        dataset = compose_config(FORMS[form](tmp_path, SEQUENCES)).dataset
        facts.append(ingest(open_source(dataset), dataset, lambda *first: Nowhere(), lambda n: None).facts)
    assert facts[0] == facts[1] == facts[2]


@pytest.mark.parametrize("form", COMPUTED)
def test_forms_give_the_same_values(inputs: Inputs, finished: Path, tmp_path: Path, form: str) -> None:
    settings = FORMS[form](tmp_path, random_sequences())
    run = [override for override in inputs.overrides(tmp_path / "a.zarr") if not override.startswith("dataset")]
    assert pipeline.run([*run, *settings]).rows == N_ROWS
    expected, found = pipeline.open_store(finished), pipeline.open_store(tmp_path / "a.zarr")
    assert found.codes.shape == (N_ROWS, LENGTH)
    for name in LAYOUT:
        assert np.asarray(found[name][:]).tobytes() == np.asarray(expected[name][:]).tobytes(), name


def attributed(inputs: Inputs, store: Path, settings: list[str]) -> dict[str, np.ndarray]:
    run = [override for override in inputs.overrides(store) if not override.startswith(("dataset", "store.rows"))]
    assert pipeline.run([*run, *settings]).complete
    opened = pipeline.open_store(store)
    return {name: np.asarray(opened[name][:]) for name in VALUES}


@pytest.fixture(scope="module")
def of_fasta(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The values of the 500 sequences."""
    folder = tmp_path_factory.mktemp("fasta")
    return attributed(inputs, folder / "a.zarr", FORMS["fasta"](folder, SEQUENCES))


@pytest.mark.slow
@pytest.mark.parametrize("form", [*FORMS, "vcf"])
def test_every_form_of_500_sequences_gives_the_same_values_bit_for_bit(
    inputs: Inputs, of_fasta: dict[str, np.ndarray], tmp_path: Path, form: str
) -> None:
    write = variants if form == "vcf" else FORMS[form]
    found = attributed(inputs, tmp_path / "a.zarr", write(tmp_path, SEQUENCES))
    for name in VALUES:
        values = found[name][::2] if form == "vcf" else found[name]  # of a VCF, the reference alleles
        assert len(values) == 500
        assert values.tobytes() == of_fasta[name].tobytes(), name


class Dense(nn.Module):
    """Takes 100 bases."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(400, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("form", ["fasta", "csv", "parquet", "npy, N4L", "zarr 3, N4L", "bed4", "tiles", "vcf"])
def test_a_length_that_the_model_does_not_take_is_named_with_its_own(tmp_path: Path, form: str) -> None:
    settings = (variants if form == "vcf" else FORMS[form])(tmp_path, SEQUENCES[:4])
    save_file(Dense().state_dict(), tmp_path / "w.safetensors")
    model = ["model=module", f"model._target_={Dense.__module__}.Dense", f"model.checkpoint={tmp_path}/w.safetensors"]
    with pytest.raises(UserError, match=r"takes sequences of 100 bases, not of 50; .*dataset\.length=100") as caught:
        pipeline.run([*model, *settings, "cluster=none", f"store.path={tmp_path}/a.zarr"])
    assert ("cuts the windows" in str(caught.value)) == (form in ("bed4", "tiles", "vcf"))
    assert list(tmp_path.glob("a.zarr*")) == []


@pytest.mark.parametrize("form", FORMS)
def test_an_input_whose_files_change_is_another(tmp_path: Path, form: str) -> None:
    dataset = compose_config(FORMS[form](tmp_path, SEQUENCES[:20])).dataset
    ingested = ingest(open_source(dataset), dataset, lambda *first: Nowhere(), lambda n: None)
    stored = to_store(signature(dataset), ingested.facts)
    assert known_facts(stored, dataset) == ingested.facts
    main = Path(getattr(dataset, "path", "") or getattr(dataset, "loci", "") or dataset.genome)
    changed = next(path for path in sorted(main.rglob("*")) if path.is_file()) if main.is_dir() else main
    os.utime(changed, ns=(1, changed.stat().st_mtime_ns + 1))
    assert known_facts(stored, dataset) is None


def test_settings_of_an_input_are_in_its_signature(tmp_path: Path) -> None:
    settings = FORMS["npz"](tmp_path, SEQUENCES[:20])
    one, other = (signature(compose_config([*settings, *more]).dataset) for more in ([], ["dataset.key=y"]))
    assert one is not None
    assert one != other
    assert one == signature(compose_config([*settings, "dataset.timeout_s=9"]).dataset)
    blacklist = tmp_path / "b.bed"
    blacklist.write_text("chr1\t0\t1\n")
    tiles = [*FORMS["tiles"](tmp_path, SEQUENCES[:20]), f"dataset.blacklist={blacklist}"]
    found = signature(compose_config(tiles).dataset)
    assert found is not None
    assert str(blacklist) in found["files"]


@pytest.mark.parametrize(
    ("written", "read_as", "right"),
    [
        ("csv", "fasta", "dataset=table dataset.path="),
        ("tsv.gz", "fasta", "dataset=table dataset.path="),
        ("parquet", "fasta", "dataset=table dataset.path="),
        ("arrow stream", "array", "dataset=table dataset.path="),
        ("fasta.gz", "table", "dataset=fasta dataset.path="),
        ("fasta", "array", "dataset=fasta dataset.path="),
        ("npy, N4L", "fasta", "dataset=array dataset.path="),
        ("npz", "table", "dataset=array dataset.path="),
        ("zarr 3, N4L", "fasta", "dataset=array dataset.path="),
        ("zarr group, codes", "table", "dataset=array dataset.path="),
    ],
)
def test_another_form_is_known(tmp_path: Path, written: str, read_as: str, right: str) -> None:
    path = next(item.partition("=")[2] for item in FORMS[written](tmp_path, SEQUENCES[:5]) if "path" in item)
    with pytest.raises(UserError, match=rf"dataset={read_as} and dataset.path=\S+ contradict .*use {right}"):
        read([f"dataset={read_as}", f"dataset.path={path}"])


def test_loci_without_a_genome_are_known(tmp_path: Path) -> None:
    (tmp_path / "x.narrowPeak").write_text("chr1\t0\t9\n")
    with pytest.raises(UserError, match=r"a file of loci; use dataset=loci dataset\.loci="):
        read(["dataset=table", f"dataset.path={tmp_path / 'x.narrowPeak'}"])


@pytest.mark.parametrize("form", ["table", "array"])
def test_an_unknown_name_lists_the_forms(tmp_path: Path, form: str) -> None:
    (tmp_path / "x.dat").write_bytes(b"something")
    with pytest.raises(
        UserError, match=r"x\.dat is not known .*dataset=array \(\.npy, .*=fasta \(\.fa, .*\.csv, .*=tiles"
    ):
        read([f"dataset={form}", f"dataset.path={tmp_path / 'x.dat'}"])


@pytest.mark.parametrize("form", ["fasta", "table", "array", "loci", "tiles"])
def test_what_is_no_file_is_refused(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    setting = {"loci": "dataset.loci", "tiles": "dataset.genome"}.get(form, "dataset.path")
    more = {"loci": ["dataset.genome=x.fa"]}.get(form, [])
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x.sock")
        (tmp_path / "folder").mkdir()
        for path, what in [("x.sock", "is a socket"), ("/dev/null", "is a device"), ("nowhere", "no such file")]:
            with pytest.raises(UserError, match=rf"{re.escape(setting)}={path}\b.*{what}"):
                read([f"dataset={form}", f"{setting}={path}", *more])
    with pytest.raises(UserError, match=rf"{re.escape(setting)}=folder (is a directory|is not known)"):
        read([f"dataset={form}", f"{setting}=folder", *more])


def test_a_file_that_is_written_over_is_another_whatever_its_time_says(tmp_path: Path) -> None:
    dataset = compose_config(FORMS["fasta"](tmp_path, SEQUENCES[:20])).dataset
    path, before = Path(dataset.path or ""), signature(dataset)
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-20] + content[-20:].replace(b"A", b"C"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert signature(dataset) != before
