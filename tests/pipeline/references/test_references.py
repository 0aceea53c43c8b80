"""Every kind of references: its values, that nothing but the row decides them, and its checksums."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from dlshap_core.one_hot import one_hot
from dlshap_core.references import permute_codes, shuffle_codes, shuffle_codes_locally
from dlshap_core.sequences import decode
from pipeline.config import limits
from pipeline.config.registry import names, schema
from pipeline.config.schema import LimitsConfig
from pipeline.config.validate import from_mapping
from pipeline.inputs.facts import InputFacts
from pipeline.messages.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.references import genomic
from pipeline.references.base import Draw, ResolvedReferences
from pipeline.references.resolve import load_references, resolve_references, unused
from tests.pipeline.conftest import chosen

N, R, L, SEED = 7, 3, 24, 5
CODES = np.random.RandomState(0).randint(0, 4, (N, L)).astype(np.uint8)
CODES[2, 4:7] = 4
SEEDS = [SEED + k for k in range(R)]
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "references.json").read_text())


def known(n_rows: int = N, length: int = L) -> InputFacts:
    """As the pass over the input finds it."""
    return InputFacts("", n_rows, length, np.bincount(CODES.ravel(), minlength=5)[:4].tolist())


def plan_of(settled: ResolvedReferences) -> Plan:
    values: dict[str, Any] = dict.fromkeys(Plan.__dataclass_fields__)
    own = {"references": settled.plan, "n_references": settled.n, "random_state": SEED, "length": L}
    return Plan(**{**values, **own, "rows_per_group": 1})


def opened(**config: Any) -> tuple[ResolvedReferences, Draw]:
    settled = resolve_references(chosen("references", **{"n_shuffles": R, **config}), known())

    def pool() -> np.ndarray:
        assert settled.pool is not None
        return settled.pool

    return settled, load_references(plan_of(settled), pool)


def whole(draw: Draw) -> np.ndarray:
    references = draw(CODES, 0)
    values = references(slice(None), slice(None))
    if values.ndim == 3:  # codes
        values = one_hot(values)
    assert tuple(values.shape) == (N, references.n, 4, L)
    return values.double().numpy()


def genome(folder: Path) -> Path:
    """Chromosomes whose windows go from AT to GC; an N and a short end that no window may touch."""
    generator = np.random.RandomState(1)
    lines = []
    for i, gc in enumerate([0.1, 0.3, 0.5, 0.7, 0.9]):
        codes = generator.choice([0, 1, 2, 3], size=20 * L, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2])
        lines.append(f">chr{i}\n{decode(codes.astype(np.uint8))}N{'A' * (L - 2)}")
    path = folder / "genome.fa"
    path.write_text("\n".join([*lines, ">short", "ACGT", ""]))
    return path


SHUFFLED: list[tuple[dict[str, Any], Callable[[], np.ndarray]]] = [
    ({"name": "dinucleotide_shuffle"}, lambda: shuffle_codes(CODES, SEEDS)),
    ({"name": "dinucleotide_shuffle_uniform"}, lambda: shuffle_codes(CODES, SEEDS, is_uniform=True)),
    ({"name": "local_dinucleotide_shuffle", "window": 10}, lambda: shuffle_codes_locally(CODES, SEEDS, 10)),
    ({"name": "shuffle"}, lambda: permute_codes(CODES, SEEDS)),
]


@pytest.mark.parametrize(("config", "expected"), SHUFFLED, ids=[case[0]["name"] for case in SHUFFLED])
def test_shuffles_are_those_of_the_mathematics(config: dict[str, Any], expected: Callable[[], np.ndarray]) -> None:
    settled, draw = opened(**config)
    np.testing.assert_array_equal(whole(draw), one_hot(expected()).numpy())
    np.testing.assert_array_equal(draw(CODES, 0).checksums(), [zlib.crc32(row.tobytes()) for row in expected()])
    assert settled.fingerprint["references.name"] == config["name"]
    assert settled.fingerprint["references.n_shuffles"] == R
    assert settled.fingerprint.get("references.window") == config.get("window")


SHARES = [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("config", "column"),
    [
        ({"name": "zeros"}, [0.0] * 4),
        ({"name": "uniform"}, [0.25] * 4),
        ({"name": "background", "frequencies": SHARES}, SHARES),
        ({"name": "background"}, [float((base == CODES).sum() / (CODES < 4).sum()) for base in range(4)]),
    ],
    ids=["zeros", "uniform", "background given", "background of the input"],
)
def test_fixed_references_are_one_column_everywhere(config: dict[str, Any], column: list[float]) -> None:
    settled, draw = opened(**config)
    assert settled.n == 1
    expected = np.broadcast_to(np.array(column)[:, None], (N, 1, 4, L))
    np.testing.assert_allclose(whole(draw), expected, atol=1e-7)
    checksum = zlib.crc32(np.tile(np.array(column, dtype=np.float32)[:, None], L).tobytes())
    assert set(draw(CODES, 0).checksums()) == {checksum}
    assert len(draw(CODES, 0).checksums()) == N
    if config["name"] == "background":
        assert settled.fingerprint["references.frequencies"] == pytest.approx(column)


def given_codes(*shape: int) -> np.ndarray:
    return np.random.RandomState(3).randint(0, 5, shape).astype(np.uint8)


def encoded(codes: np.ndarray) -> np.ndarray:
    return one_hot(codes).numpy()


SOFT = np.random.RandomState(4).dirichlet(np.ones(4), (N, 2, L)).transpose(0, 1, 3, 2).astype(np.float32)
ARRAYS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "codes by row": (given_codes(N, 2, L), encoded(given_codes(N, 2, L))),
    "four codes by row": (given_codes(N, 4, L), encoded(given_codes(N, 4, L))),
    "codes as int64": (given_codes(N, 2, L).astype(np.int64), encoded(given_codes(N, 2, L))),
    "codes for all": (given_codes(2, L), np.broadcast_to(encoded(given_codes(2, L)), (N, 2, 4, L))),
    "one-hot by row": (encoded(given_codes(N, 2, L)), encoded(given_codes(N, 2, L))),
    "one-hot as bool": (encoded(given_codes(N, 2, L)).astype(bool), encoded(given_codes(N, 2, L))),
    "one-hot for all": (encoded(given_codes(2, L)), np.broadcast_to(encoded(given_codes(2, L)), (N, 2, 4, L))),
    "as many one-hot as rows": (encoded(given_codes(N, L)), np.broadcast_to(encoded(given_codes(N, L)), (N, N, 4, L))),
    "frequencies by row": (SOFT, SOFT),
    "frequencies for all": (SOFT[:, 0], np.broadcast_to(SOFT[:, 0], (N, N, 4, L))),
}


def saved(folder: Path, array: np.ndarray, form: str) -> Path:
    path = folder / f"references.{form}"
    if form == "npy":
        np.save(path, array)
    elif form == "npz":
        np.savez(path, array)
    else:
        zarr.create_array(path, data=array, chunks=(1, *array.shape[1:]))
    return path


@pytest.mark.parametrize("form", ["npy", "npz", "zarr"])
@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_are_taken_as_they_are(tmp_path: Path, what: str, form: str) -> None:
    array, expected = ARRAYS[what]
    settled, draw = opened(name="array", path=str(saved(tmp_path, array, form)))
    np.testing.assert_array_equal(whole(draw), expected)
    assert settled.n == expected.shape[1]
    kind = "shares of the bases" if "freq" in what else "codes" if "codes" in what else "one-hot"
    whose = "the same for all rows" if "all" in what or "as rows" in what else "each row's own"
    (note,) = settled.notes
    assert note.endswith(f"shape {array.shape} read as {kind}, {settled.n} references, {whose}")
    is_hard = "frequencies" not in what
    rows = np.where(expected.any(axis=2), expected.argmax(axis=2), 4).astype(np.uint8) if is_hard else expected
    np.testing.assert_array_equal(
        draw(CODES, 0).checksums(), [zlib.crc32(np.ascontiguousarray(r).tobytes()) for r in rows]
    )


def test_the_content_of_an_array_decides_its_fingerprint_and_its_file_does_not(tmp_path: Path) -> None:
    array = given_codes(N, 2, L)
    found = {form: opened(name="array", path=str(saved(tmp_path, array, form)))[0] for form in ("npy", "zarr")}
    assert found["npy"].fingerprint == found["zarr"].fingerprint
    array[-1, -1, -1] = (array[-1, -1, -1] + 1) % 5
    changed = opened(name="array", path=str(saved(tmp_path, array, "npy")))[0]
    assert changed.fingerprint != found["npy"].fingerprint


def test_arrays_that_become_far_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    limit = LimitsConfig(held_mb=1, streamed_mb=1, block_mb=1)
    np.savez_compressed(tmp_path / "x.npz", np.zeros((2, 4, 150_000), np.uint8))
    with limits.using(limit), pytest.raises(UserError, match=r"x\.npz takes 1\.2 MB of memory once it is read"):
        opened(name="array", path=str(tmp_path / "x.npz"))
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 4, L)})
        file.truncate(file.tell() + 10**6 * 4 * L)
    with limits.using(limit), pytest.raises(UserError, match=r"x\.npy unpacks to .* or more"):
        opened(name="array", path=str(tmp_path / "x.npy"))
    zarr.create_array(tmp_path / "x.zarr", shape=(10**15, 4, L), chunks=(1, 4, L), dtype="u1")
    with limits.using(limit), pytest.raises(UserError, match=r"x\.zarr unpacks to .* TB or more"):
        opened(name="array", path=str(tmp_path / "x.zarr"))
    np.save(tmp_path / "y.npy", np.ones((2, 4, 300_000), np.uint8))
    with limits.using(limit), pytest.raises(UserError, match=r"y\.npy: each item of its first axis has 1\.2 MB"):
        opened(name="array", path=str(tmp_path / "y.npy"))


WRONG: list[tuple[np.ndarray, str]] = [
    (
        given_codes(N + 1, 2, L),
        r"shape \(8, 2, 24\) and type uint8; the input has 7 usable rows of 24 bases: expected codes",
    ),
    (given_codes(N, 2, L - 1), r"expected codes \(7, R, 24\) or one-hot \(7, R, 4, 24\), or \(R, 24\) or \(R, 4, 24\)"),
    (encoded(given_codes(N, 2, L)).swapaxes(2, 3), r"shape \(7, 2, 24, 4\)"),
    (given_codes(N, 2, L) + 3, r"holds \d at \(0, 0, \d+\); expected codes: 0..3"),
    (np.full((N, 2, L), 0.5), r"holds 0.5 at \(0, 0, 0\); expected codes"),
    (np.where(np.arange(L) == 9, np.nan, SOFT), r"holds nan at \(0, 0, 0, 9\); expected finite"),
    (np.zeros((0, L)), r"shape \(0, 24\)"),
    (np.full((2, L), "A"), "type <U1"),
]


@pytest.mark.parametrize(("array", "message"), WRONG, ids=[message[:24] for _, message in WRONG])
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=rf"^references\.path=.*{message}[^\n]*$"):
        opened(name="array", path=str(saved(tmp_path, array, "npy")))


def test_files_that_hold_no_array_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("ACGT")
    np.savez(tmp_path / "two.npz", a=CODES, b=CODES)
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    zarr.create_group(tmp_path / "group.zarr")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "nothing": "no such file",
        "text": "cannot be read as an array",
        "two.npz": r"holds 2 arrays \(a, b\); expected one",
        "pickle.npy": "cannot be read as an array",
        "group.zarr": "no Zarr array lies there",
        "folder": "no Zarr array lies there",
    }.items():
        with pytest.raises(UserError, match=rf"^references\.path=[^\n]*{message}[^\n]*$"):
            chosen("references", "array", path=str(tmp_path / name)).require_files()
    with pytest.raises(UserError, match=r"references\.genome=.*: no such file"):
        chosen("references", "genomic", genome=str(tmp_path / "nothing")).require_files()


def test_windows_are_thinned_evenly_and_known_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = chosen("references", "genomic", genome=str(genome(tmp_path)), n_shuffles=R)
    every = resolve_references(config, known())
    assert resolve_references(config, known()).fingerprint == every.fingerprint
    monkeypatch.setattr(genomic, "MAX_POOL_BYTES", 35 * L)
    thinned = resolve_references(config, known())
    assert every.pool is not None
    assert thinned.pool is not None
    assert len(thinned.pool) == 34  # every third of 5 * 20 windows that can be used and 5 that cannot
    assert {row.tobytes() for row in thinned.pool} < {row.tobytes() for row in every.pool}
    assert thinned.fingerprint != every.fingerprint
    with pytest.raises(UserError, match=r"has 0 different windows of 9999 known bases; .* give a larger genome$"):
        resolve_references(config, known(length=9999))


@pytest.mark.parametrize("random_state", [0, 123456])
def test_references_are_those_of_all_versions(tmp_path: Path, random_state: int) -> None:
    """Checksums that dlshap 0.1 gave for these seeds, and for `genomic` those of the first version that draws so."""
    generator, length, n = np.random.RandomState(77), 60, 3
    codes = generator.randint(0, 4, (4, length)).astype(np.uint8)
    codes[1, 20:26], codes[3] = 4, 0
    given = generator.randint(0, 5, (4, n, length)).astype(np.uint8)
    path = tmp_path / "genome.fa"
    path.write_text(f">chr1\n{decode(np.random.RandomState(78).randint(0, 4, 100 * length).astype(np.uint8))}\n")
    own: dict[str, dict[str, Any]] = {
        "local_dinucleotide_shuffle": {"window": 20},
        "array": {"path": str(saved(tmp_path, given, "npy"))},
        "genomic": {"genome": str(path)},
    }
    facts = InputFacts("", 4, length, np.bincount(codes.ravel(), minlength=5)[:4].tolist())
    assert set(GOLDEN) == set(names("references"))
    for name, checksums in GOLDEN.items():
        settled = resolve_references(
            chosen("references", **{"name": name, "n_shuffles": n, **own.get(name, {})}), facts
        )
        plan = replace(plan_of(settled), random_state=random_state, length=length)
        found = load_references(plan, lambda settled=settled: settled.pool)(codes, 0).checksums()
        assert found.tolist() == checksums[str(random_state)], name


def every_kind(folder: Path) -> list[dict[str, Any]]:
    own: dict[str, dict[str, Any]] = {
        "local_dinucleotide_shuffle": {"window": 6},
        "array": {"path": str(saved(folder, given_codes(N, R, L), "npy"))},
        "genomic": {"genome": str(genome(folder))},
    }
    return [{"name": name, **own.get(name, {})} for name in names("references")]


def test_the_row_alone_decides_its_references(tmp_path: Path) -> None:
    for config in every_kind(tmp_path):
        _, draw = opened(**config)
        together = draw(CODES, 0)
        for start, stop in [(0, 3), (3, N)]:
            part = draw(CODES[start:stop], start)
            for ks in (slice(0, together.n), slice(1, 2)):
                assert torch.equal(part(slice(0, stop - start), ks), together(slice(start, stop), ks)), config["name"]
            np.testing.assert_array_equal(part.checksums(), together.checksums()[start:stop])


def test_two_seeds_share_no_reference(tmp_path: Path) -> None:
    """Of those of seed 0, the next seed shared all but one."""
    for config in every_kind(tmp_path):
        if config["name"] not in ("dinucleotide_shuffle", "dinucleotide_shuffle_uniform", "shuffle"):
            continue  # shuffles of short windows, and windows of a short genome, may be equal by chance
        settled, _ = opened(**config, n_shuffles=20)
        sets = []
        for seed in (0, 1):
            run = from_mapping({"seed": seed, "dataset": {"name": "fasta", "path": "x.fa"}})
            draw = load_references(replace(plan_of(settled), random_state=run.random_state), lambda: CODES)
            sets.append({row.tobytes() for row in draw(CODES[:1], 0)(slice(0, 1), slice(0, 20))[0].numpy()})
        assert [len(found) for found in sets] == [20, 20]
        assert not sets[0] & sets[1]


def test_numbers_that_are_not_used_are_said_to_be(tmp_path: Path) -> None:
    for config in every_kind(tmp_path):
        said = unused(chosen("references", n_shuffles=9, **config))
        if schema("references", config["name"]).is_drawn:
            assert said is None
        else:
            assert said is not None
            assert "references.n_shuffles=9 is not used" in said
            assert unused(chosen("references", n_shuffles=None, **config)) is None
