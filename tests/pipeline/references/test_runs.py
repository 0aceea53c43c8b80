"""Whole runs with every kind of references."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pipeline
from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from dlshap_core.references import permute_codes, shuffle_codes, shuffle_codes_locally
from pipeline.cli.main import dispatch
from pipeline.config.compose import compose_config
from pipeline.messages.errors import RunError, UserError
from pipeline.messages.progress import shown_on_stderr
from pipeline.models.load import load_model
from pipeline.references import array, genomic
from pipeline.report.facts import run_facts
from pipeline.store.codec import read_array
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import POOL
from tests.pipeline.conftest import LENGTH, N_ROWS, Inputs, random_sequences, values, write_fasta

SEEDS = [0, 1, 2]
GIVEN = np.random.RandomState(2).randint(0, 4, (N_ROWS, 2, LENGTH)).astype(np.uint8)


def from_codes(drawn: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Tensor]:
    return lambda codes: one_hot(drawn(codes))


def column(*frequencies: float) -> Callable[[np.ndarray], Tensor]:
    return lambda codes: torch.tensor(frequencies)[:, None].expand(len(codes), 1, 4, LENGTH)


KINDS: dict[str, tuple[list[str], Callable[[np.ndarray], Tensor]]] = {
    "dinucleotide_shuffle_uniform": ([], from_codes(lambda codes: shuffle_codes(codes, SEEDS, is_uniform=True))),
    "local_dinucleotide_shuffle": (
        ["references.window=10"],
        from_codes(lambda codes: shuffle_codes_locally(codes, SEEDS, 10)),
    ),
    "shuffle": ([], from_codes(lambda codes: permute_codes(codes, SEEDS))),
    "uniform": ([], column(0.25, 0.25, 0.25, 0.25)),
    "zeros": ([], column(0, 0, 0, 0)),
    "background": (["references.frequencies=[0.3,0.2,0.2,0.3]"], column(0.3, 0.2, 0.2, 0.3)),
    "array": (["references.path=given.npy"], from_codes(lambda codes: GIVEN)),
}


def overrides_of(kind: str, inputs: Inputs, *more: str) -> list[str]:
    drawn = [f"references={kind}", *KINDS[kind][0], *more] if kind in KINDS else [f"references={kind}", *more]
    kept = [override for override in inputs.overrides("a.zarr") if not override.startswith("references")]
    n = ["references.n_shuffles=3"] if "shuffle" in kind or kind == "genomic" else []
    return [*kept, *drawn, *n]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_attributes_against_them(inputs: Inputs, in_folder: Path, kind: str) -> None:
    np.save("given.npy", GIVEN)
    overrides = overrides_of(kind, inputs)
    assert pipeline.run(overrides).complete
    store = pipeline.open_store("a.zarr")
    codes = np.asarray(store.codes[:])
    references = KINDS[kind][1](codes)
    module = load_model(compose_config(overrides).model).module
    expected = attribute(module, one_hot(codes), references, batch_size=64, device="cpu")
    np.testing.assert_allclose(store.hypothetical[:], expected.hypothetical.numpy(), atol=1e-6)
    np.testing.assert_allclose(store.reference_prediction[:], expected.reference_prediction.numpy(), atol=1e-6)
    assert store.reference_prediction.shape == (N_ROWS, 1, references.shape[1])
    assert np.abs(np.asarray(store.convergence_delta[:])).max() < 1e-5
    hard = bool((references.sum(2) == 1).all()) and bool(((references == 0) | (references == 1)).all())
    rows = references.argmax(2).to(torch.uint8) if hard else references.float()
    assert [zlib.crc32(row.contiguous().numpy().tobytes()) for row in rows] == list(store["reference_checksum"][:])
    assert store.attrs["fingerprint"]["settings.references.name"] == kind
    assert pipeline.run(overrides).rows_computed == 0


def test_background_frequencies_are_those_of_the_input(inputs: Inputs, in_folder: Path) -> None:
    pipeline.run(overrides_of("background", inputs, "references.frequencies=[]"))
    text = "".join(random_sequences())
    plan = pipeline.open_store("a.zarr").attrs["plan"]
    assert plan["references"]["frequencies"] == pytest.approx([text.count(base) / len(text) for base in "ACGT"])
    assert pipeline.run(overrides_of("background", inputs, "references.frequencies=[]")).rows_computed == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_instance")
def test_windows_of_a_genome_reach_actors_and_later_commands(
    inputs: Inputs, in_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    genome = write_fasta(tmp_path_factory.mktemp("genome") / "genome.fa", random_sequences(3, 60 * LENGTH, seed=9))
    overrides = overrides_of("genomic", inputs, f"references.genome={genome}")
    assert not pipeline.run([*overrides, "run.shards=0-1"]).complete
    on_ray = [override for override in overrides if override != "cluster=none"]
    assert pipeline.run([*on_ray, "cluster=local", "cluster.actors=2"]).complete
    assert pipeline.run([*overrides, "store.path=b.zarr"]).complete
    assert values(Path("a.zarr")) == values(Path("b.zarr"))
    pool = read_array(RunDirectory("a.zarr").store, POOL)
    assert len(pool) == 180
    write_fasta(genome, random_sequences(3, 60 * LENGTH, seed=10))
    with pytest.raises(UserError, match=r"belongs to another run: settings\.references\.windows is "):
        pipeline.run(overrides)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("array", ["references.path=nothing.npy"], "references.path=nothing.npy: no such file"),
        ("array", ["references.path=given.npy", "dataset.on_bad=skip", "dataset.length=40"], None),
        ("array", ["references.path=short.npy"], r"shape \(21, 2, 40\) .*; the input has 22 usable rows of 40 bases"),
        ("genomic", ["references.genome=nothing.fa"], "references.genome=nothing.fa: no such file"),
    ],
)
def test_references_that_do_not_fit_leave_nothing(
    inputs: Inputs, in_folder: Path, kind: str, more: list[str], message: str | None
) -> None:
    np.save("given.npy", GIVEN)
    np.save("short.npy", GIVEN[1:])
    if message is None:
        assert pipeline.run(overrides_of(kind, inputs, *more)).complete
        return
    with pytest.raises(UserError, match=message):
        pipeline.run(overrides_of(kind, inputs, *more))
    assert {path.name for path in in_folder.iterdir()} == {"given.npy", "short.npy"}


def test_a_changed_array_is_another_run(inputs: Inputs, in_folder: Path) -> None:
    np.save("given.npy", GIVEN)
    overrides = overrides_of("array", inputs)
    assert not pipeline.run([*overrides, "run.shards=0-1"]).complete
    np.save("given.npy", GIVEN[::-1])
    with pytest.raises(UserError, match=r"belongs to another run: settings\.references\.array is "):
        pipeline.run(overrides)


def write_over(path: Path, array: np.ndarray) -> None:
    """Other values into the same file, whose size and time of its content stay."""
    before = path.stat()
    with path.open("r+b") as file:
        np.save(file, array)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_an_array_that_is_written_over_is_another_run_whatever_its_time_says(inputs: Inputs, in_folder: Path) -> None:
    np.save("given.npy", GIVEN)
    pipeline.run([*overrides_of("array", inputs), "run.shards=0-0"])
    other = GIVEN.copy()
    other[8:12] = 3 - other[8:12]  # of rows in between, which no probe looks at
    write_over(Path("given.npy"), other)
    with pytest.raises(UserError, match=r"belongs to another run: settings\.references\.array is"):
        pipeline.run(overrides_of("array", inputs))


def test_an_array_that_changes_during_a_run_fails_its_shards(
    inputs: Inputs, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("given.npy", GIVEN)
    commit = RunDirectory.commit

    def commit_and_replace(directory: RunDirectory, record: Any) -> None:
        commit(directory, record)
        np.save("given.npy", 3 - GIVEN)

    monkeypatch.setattr(RunDirectory, "commit", commit_and_replace)
    with pytest.raises(RunError, match=r"given\.npy was written to during the run"):
        pipeline.run(overrides_of("array", inputs))


def test_a_number_that_is_not_used_is_said_to_be(
    inputs: Inputs, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["run", *overrides_of("zeros", inputs, "references.n_shuffles=9")]) == 0
    assert "dlshap: references=zeros compares with one reference; references.n_shuffles=9 is not used\n" in (
        capfd.readouterr().err
    )


@pytest.mark.parametrize(("setting", "first"), [("seed=0", 0), ("seed=1", 65536), ("references.random_state=7", 7)])
def test_a_run_draws_with_the_numbers_of_its_seed(inputs: Inputs, in_folder: Path, setting: str, first: int) -> None:
    assert pipeline.run(inputs.overrides("a.zarr", setting)).complete
    store = pipeline.open_store("a.zarr")
    references = shuffle_codes(np.asarray(store.codes[:]), [first, first + 1, first + 2])
    assert [zlib.crc32(row.tobytes()) for row in references] == list(store["reference_checksum"][:])
    for other in ("seed=2", "references.random_state=8"):
        with pytest.raises(UserError, match="belongs to another run"):
            pipeline.run(inputs.overrides("a.zarr", other))


def test_few_windows_are_said_once_and_files_are_read_once(
    inputs: Inputs, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_fasta(Path("genome.fa"), random_sequences(1, 20 * LENGTH, seed=9))
    overrides = overrides_of("genomic", inputs, "references.genome=genome.fa")
    line = "references.genome=genome.fa has 20 different windows of 40 known bases, fewer than 30"
    assert dispatch(["plan", *overrides]) == 0
    assert capfd.readouterr().err.count(f"dlshap: warning: {line}") == 1
    assert dispatch(["run", *overrides, "run.shards=0-1"]) == 0
    assert capfd.readouterr().err.count(f"dlshap: warning: {line}") == 1

    def read_again(*_: object) -> None:
        raise AssertionError("the files are those that were read before")

    with monkeypatch.context() as patched:
        patched.setattr(genomic.Genomic, "resolve", read_again)
        with shown_on_stderr():
            assert pipeline.run(overrides).complete
            assert pipeline.run(overrides).rows_computed == 0
        assert line not in capfd.readouterr().err
        store = pipeline.open_store("a.zarr")
        assert sum(note.startswith(f"warning: {line}") for note in store.attrs["notes"]) == 1
        assert sum(fact[1].startswith(f"warning: {line}") for group in run_facts(store).values() for fact in group) == 1
        os.utime("genome.fa")
        with pytest.raises(AssertionError, match="read before"):
            pipeline.run(overrides)
    assert pipeline.run(overrides).rows_computed == 0
    with pytest.raises(UserError, match=r"settings\.references\.n_shuffles is 3 there and 4 here"):
        pipeline.run([*overrides, "references.n_shuffles=4"])


def test_an_array_is_hashed_once(inputs: Inputs, in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("given.npy", GIVEN)
    overrides = overrides_of("array", inputs)
    assert not pipeline.run([*overrides, "run.shards=0-1"]).complete
    with monkeypatch.context() as patched:
        patched.setattr(array.Array, "resolve", lambda *_: pytest.fail("the array is that which was hashed before"))
        assert pipeline.run(overrides).complete
    other = write_fasta(Path("other.fa"), random_sequences(seed=1))
    with pytest.raises(UserError, match=r"belongs to another run: input\.sha256 is "):
        pipeline.run([*overrides, f"dataset.path={other}"])
