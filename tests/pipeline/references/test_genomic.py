"""Windows of a genome: which of them a sequence is compared with."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlshap_core.sequences import decode, reverse_complement
from pipeline.inputs.facts import InputFacts
from pipeline.messages.errors import UserError
from pipeline.planning.plan import Plan
from pipeline.references.base import ResolvedReferences
from pipeline.references.genomic import MAX_OWN, WINDOWS_EACH
from pipeline.references.resolve import load_references, resolve_references
from tests.pipeline.conftest import chosen

L, R = 30, 6
GENERATOR = np.random.RandomState(4)


def with_gc(gc: float, n_bases: int) -> np.ndarray:
    return GENERATOR.choice([0, 1, 2, 3], n_bases, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]).astype(np.uint8)


GENOME = [with_gc(gc, 60 * L) for gc in (0.2, 0.4, 0.5, 0.6, 0.8)]
BALANCED = np.stack([GENERATOR.permutation(np.repeat([0, 1, 2, 3], [8, 7, 8, 7])) for _ in range(300)]).astype(np.uint8)
ODD = np.stack(
    [np.full(L, 0), np.full(L, 2), np.full(L, 4), np.r_[np.full(L - 1, 4), 1], np.r_[np.full(20, 4), BALANCED[0, 20:]]]
)


def write(folder: Path, chromosomes: list[np.ndarray]) -> str:
    path = folder / "genome.fa"
    path.write_text("".join(f">chr{i}\n{decode(codes)}\n" for i, codes in enumerate(chromosomes)))
    return str(path)


def settled_on(genome: str, n: int = R, length: int = L) -> ResolvedReferences:
    config = chosen("references", "genomic", genome=genome, n_shuffles=n)
    return resolve_references(config, InputFacts("", 1, length, [1, 1, 1, 1]))


def drawn(settled: ResolvedReferences, codes: np.ndarray, random_state: int = 0, rows_per_group: int = 1) -> np.ndarray:
    """(N, R, L) codes."""
    values: dict[str, Any] = dict.fromkeys(Plan.__dataclass_fields__)
    own = {"references": settled.plan, "n_references": settled.n, "random_state": random_state, "length": L}
    assert settled.pool is not None
    draw = load_references(Plan(**{**values, **own, "rows_per_group": rows_per_group}), lambda: np.array(settled.pool))
    references = draw(codes.astype(np.uint8), 0)
    return references.values


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> ResolvedReferences:
    return settled_on(write(tmp_path_factory.mktemp("genome"), GENOME))


def as_set(row: np.ndarray) -> frozenset[bytes]:
    return frozenset(reference.tobytes() for reference in row)


def test_sequences_of_one_gc_content_have_different_references(settled: ResolvedReferences) -> None:
    sets = [as_set(row) for row in drawn(settled, BALANCED)]
    assert {len(found) for found in sets} == {R}, "no window twice"
    assert len(set(sets)) == len(BALANCED)
    shared = [len(a & b) for a, b in itertools.pairwise(sets)]
    assert np.mean(shared) < 1.5 * R / WINDOWS_EACH


def test_the_nearest_windows_are_drawn_from(settled: ResolvedReferences) -> None:
    pool = settled.pool
    assert pool is not None
    percents = np.round(100 * ((pool == 1) | (pool == 2)).mean(axis=1))
    for sequence in [*BALANCED[:50], *ODD]:
        n_known = max(1, (sequence < 4).sum())
        distance = np.abs(percents * n_known - 100 * ((sequence == 1) | (sequence == 2)).sum()) * (sequence < 4).any()
        for k, reference in enumerate(drawn(settled, sequence[None])[0]):
            places = np.flatnonzero((pool == reference).all(axis=1))
            assert len(places) == 1
            assert distance[places[0]] <= np.sort(distance)[WINDOWS_EACH * (k + 1) - 1]


def test_every_window_that_is_near_enough_is_as_likely(settled: ResolvedReferences) -> None:
    pool = settled.pool
    assert pool is not None
    generator = np.random.RandomState(5)
    sequences = np.stack([generator.permutation(np.repeat([0, 1], [15, 15])) for _ in range(3000)])
    found = drawn(settled, sequences)[:, 0]
    names, counts = np.unique([reference.tobytes() for reference in found], return_counts=True)
    percents = np.round(100 * ((pool == 1) | (pool == 2)).mean(axis=1))
    n = (percents == 50).sum()
    assert n >= WINDOWS_EACH, "the nearest percentage alone is drawn from"
    assert len(names) == n
    assert ((counts - 3000 / n) ** 2 / (3000 / n)).sum() < n + 4 * np.sqrt(2 * n)


def test_neither_other_rows_nor_the_number_of_references_matter(settled: ResolvedReferences) -> None:
    codes = np.concatenate([BALANCED[:20], ODD, BALANCED[:5]])
    together = drawn(settled, codes)
    order = np.random.RandomState(6).permutation(len(codes))
    np.testing.assert_array_equal(drawn(settled, codes[order]), together[order])
    np.testing.assert_array_equal(together[-5:], together[:5])
    for n in (1, 2, 40):
        n_same = min(n, R)
        of_n = drawn(dataclasses.replace(settled, n=n), codes)
        np.testing.assert_array_equal(of_n[:, :n_same], together[:, :n_same])


def test_another_seed_or_another_base_draws_anew(settled: ResolvedReferences) -> None:
    first, second = drawn(settled, BALANCED, 0), drawn(settled, BALANCED, 1)
    assert np.mean([len(as_set(a) & as_set(b)) for a, b in zip(first, second, strict=True)]) < 1.5 * R / WINDOWS_EACH
    changed = BALANCED.copy()
    changed[:, [0, 1]] = changed[:, [1, 0]]
    of_changed = drawn(settled, changed)
    is_changed = (changed != BALANCED).any(axis=1)
    assert [as_set(a) == as_set(b) for a, b in zip(first, of_changed, strict=True)] == (~is_changed).tolist()


def test_a_sequence_is_not_its_own_reference(settled: ResolvedReferences) -> None:
    pool = settled.pool
    assert pool is not None
    for codes in (pool, reverse_complement(pool)):
        references = drawn(dataclasses.replace(settled, n=len(pool) - MAX_OWN), codes[::7])
        for sequence, row in zip(codes[::7], references, strict=True):
            turned = reverse_complement(sequence)
            assert len(as_set(row)) == len(pool) - MAX_OWN
            assert not as_set(row) & {sequence.tobytes(), turned.tobytes()}


def test_odd_sequences_have_different_references(settled: ResolvedReferences) -> None:
    for row in drawn(settled, ODD):
        assert len(as_set(row)) == R
        assert (row < 4).all()
    gc = ((drawn(settled, np.full((200, L), 4))[0] % 3) > 0).mean()
    assert 0.2 < gc < 0.8, "where no base is known, any window is as near"


def test_equal_windows_of_a_genome_are_one(tmp_path: Path) -> None:
    repeat = np.tile(GENOME[0][:L], 50)
    settled = settled_on(write(tmp_path, [repeat, GENOME[1], repeat]))
    assert settled.pool is not None
    assert len(settled.pool) == 61
    assert len(as_set(settled.pool)) == 61


def test_alleles_share_the_references_of_the_first(settled: ResolvedReferences) -> None:
    together = drawn(settled, BALANCED[:8], rows_per_group=2)
    np.testing.assert_array_equal(together, np.repeat(drawn(settled, BALANCED[:8:2]), 2, axis=0))


@pytest.mark.parametrize(("n_windows", "n", "advice"), [(1, 1, ""), (7, 6, ", or lower references.n_shuffles to 5")])
def test_too_few_windows_are_refused(tmp_path: Path, n_windows: int, n: int, advice: str) -> None:
    genome = write(tmp_path, [GENOME[2][: n_windows * L]])
    windows = "1 different window" if n_windows == 1 else f"{n_windows} different windows"
    with pytest.raises(UserError) as raised:
        settled_on(genome, n)
    assert str(raised.value) == (
        f"references.genome={genome} has {windows} of {L} known bases; references.n_shuffles={n} needs {n + 2} (2 "
        f"more, as a sequence's own window, on either strand, is not its reference): give a larger genome{advice}"
    )
    if advice:
        own = settled_on(genome, n - 1)
        assert own.pool is not None
        assert {len(as_set(row)) for row in drawn(own, own.pool)} == {n - 1}


def test_few_windows_are_said_to_be_few(tmp_path: Path) -> None:
    genome = write(tmp_path, [GENOME[2][: 59 * L]])
    (line,) = settled_on(genome).notes
    assert (
        f"has 59 different windows of {L} known bases, fewer than 60 (10 for each of references.n_shuffles=6)" in line
    )
    assert settled_on(write(tmp_path, [GENOME[2]])).notes == []


def test_windows_that_an_older_version_drew_otherwise_are_not_drawn(settled: ResolvedReferences) -> None:
    older = dataclasses.replace(settled, plan={key: settled.plan[key] for key in ("name", "bins")})
    with pytest.raises(UserError, match=r"^dlshap 0\.1 drew these windows of a genome by another rule"):
        drawn(older, BALANCED)
