"""The benchmark's parts on tiny models: the floor is plain autograd, ratios are of medians, and the command runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import contenders, dtypes, profiles, tf32, timing
from benchmarks.engine import Case, best_size, cases, disagreement, draw, figure, ratios
from benchmarks.models import SUBJECTS, BPNet, Subject, build
from benchmarks.options import Options
from benchmarks.timing import Samples

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
TINY = Subject(lambda length, n_targets: BPNet(4, n_targets), 60, 40, 2)
OPTIONS = Options(device=CPU, quick=True, budget_s=0.01, peers=("tangermeme", "captum"))


def tiny(n_targets: int) -> Case:
    X, references = draw(2, 40, 3, CPU)
    return Case(build(TINY, 40, 2, CPU), X, references, list(range(n_targets)))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_floor_is_the_gradient_at_every_reference_for_every_target(batch_size: int) -> None:
    case = tiny(2)
    batches = contenders.floor_gradients(case.model, case.X, case.references, case.targets, batch_size)
    found = torch.cat([torch.stack(gradients, 1) for gradients in batches])
    leaf = case.references.flatten(0, 1).requires_grad_()
    for target in case.targets:
        (expected,) = torch.autograd.grad(case.model(leaf)[:, target].sum(), leaf)
        torch.testing.assert_close(found[:, target], expected)


@pytest.mark.parametrize("name", ["engine", "tangermeme", "captum"])
def test_contenders_give_the_same_attributions(name: str) -> None:
    case = tiny(2)
    given = (case.model, case.X, case.references, case.targets)
    expected, found = contenders.engine(*given)(2), getattr(contenders, name)(*given)(3)
    assert expected is not None
    assert found is not None
    assert disagreement(found, expected) < 1e-4


def test_what_is_drawn_is_what_is_given() -> None:
    case = tiny(1)
    given = contenders.engine(case.model, case.X, case.references, case.targets)(8)
    assert given is not None
    for make in (contenders.engine_drawing, contenders.tangermeme):
        drawn = make(case.model, case.X, 3, case.targets)(8)
        assert drawn is not None
        assert disagreement(drawn, given) < 1e-4


def test_a_figure_has_every_contender_with_its_samples() -> None:
    sizes = {"floor": 4, "engine": 2, "tangermeme": 8}
    found = figure(tiny(1), TINY, sizes, OPTIONS)
    taken = {name: contender["batch_size"] for name, contender in found["contenders"].items()}
    assert taken == {
        **sizes,
        "engine_drawing": 2,
        "tangermeme_default": 32,
        "tangermeme_drawing": 8,
        "captum": 32,
    }
    assert all(len(contender["wall_s"]) >= timing.MIN_ROUNDS for contender in found["contenders"].values())
    assert set(found["ratios"]) >= {"engine / floor", "engine / tangermeme", "engine_drawing / tangermeme_drawing"}


def test_ratios_are_of_medians() -> None:
    samples = {"engine": Samples([1.0, 9.0, 2.0], [4.0, 4.0, 4.0]), "floor": Samples([1.0, 1.0, 4.0], [2.0, 8.0, 1.0])}
    found = ratios(samples)["engine / floor"]
    assert (found["wall"], found["cpu"]) == (2.0, 2.0)
    assert found["wall_quartiles"] == [0.75, 1.0, 5.0]  # of 1, 9 and 0.5


def test_rounds_fill_the_budget_within_bounds() -> None:
    assert [timing.rounds_within(60, round_s) for round_s in (0.001, 10, 1000)] == [15, 6, 3]


def test_contenders_take_turns() -> None:
    turns: list[str] = []
    contenders = {name: (lambda name=name: turns.append(name)) for name in "abc"}
    samples = timing.interleaved(contenders, CPU, budget_s=0.0)
    assert "".join(turns) == "abcbcacab"
    assert all(len(taken.wall_s) == len(taken.cpu_s) == 3 for taken in samples.values())


def test_the_search_stops_where_batches_only_get_slower() -> None:
    passes: list[int] = []

    def run(size: int) -> None:
        passes.append(size)
        sum(range({64: 20, 32: 1, 16: 40, 8: 1}[size] * 100_000))

    assert best_size(run, (8, 16, 32, 64), CPU) == 32
    assert passes == [64, 64, 32, 16]


def test_quick_has_ten_targets_of_one_model_alone() -> None:
    assert cases("bpnet64", OPTIONS) == [(1, 20), (10, 20)]
    assert cases("splice", OPTIONS) == [(1, 20)]
    assert cases("splice", Options(device=CPU, targets=(1,))) == [(1, 20), (1, 2)]


@pytest.mark.parametrize("name", SUBJECTS)
def test_models_take_their_quick_length(name: str) -> None:
    subject = SUBJECTS[name]
    X, _ = draw(2, subject.quick_length, 1, CPU)
    with torch.no_grad():
        y = build(subject, subject.quick_length, 3, CPU)(X)
    assert y.shape == (2, 3)
    assert y.std() > 0


def test_agreement_of_attributions_with_themselves_and_with_others() -> None:
    exact = torch.randn(4, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact[:, 20:30] += 9
    same = {"correlation": 1.0, "same_site": 1.0, "strongest": 1.0, "largest_difference": 0.0}
    assert dtypes.agreement(exact, exact) == same
    other = exact.clone()
    other[0] = other[0].roll(30)  # one site of four is elsewhere
    found = dtypes.agreement(other, exact)
    assert found["same_site"] == 0.75
    assert 0.75 <= found["strongest"] < 1
    assert 0 < found["correlation"] < 0.9
    assert found["largest_difference"] > 0.5


def test_tf32_is_emulated_where_there_is_none() -> None:
    x = torch.tensor([1 + 2.0**-10, 1 + 2.0**-11 + 2.0**-12, 1 + 2.0**-13, -3.0e38, torch.inf, 0.0])
    assert tf32.rounded(x).tolist() == [1 + 2.0**-10, 1 + 2.0**-10, 1.0, tf32.rounded(x)[3].item(), torch.inf, 0.0]
    a, b = torch.randn(2, 3, 40, 30, generator=torch.Generator().manual_seed(0)).unbind()
    with tf32.TF32():
        found = a.mT @ b
    assert torch.equal(found, tf32.rounded(a).mT @ tf32.rounded(b))
    case = tiny(1)
    exact, same, rough = (
        dtypes.attributions(case, CPU, given)
        for given in ({"dtype": torch.float64}, dtypes.DTYPES["float32"], dtypes.DTYPES["tf32"])
    )
    error, float32_error = (rough - exact).abs().max(), (same - exact).abs().max()
    assert 10 * float32_error < error < 0.01 * exact.abs().max()


def test_a_profile_tells_kinds_of_operations_apart() -> None:
    x, weight = torch.randn(2, 4, 500), torch.randn(4, 4, 9)
    found = profiles.by_kind(lambda: torch.relu(torch.conv1d(x, weight)).clone())
    assert found["convolutions"] > 0
    assert {"activations", "copies"} <= set(found)


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark"), "shuffles", "store", "--quick"]
    done = subprocess.run(
        [*command, "--budget", "0.1", "--threads", "1", "--out", "results.json"],
        cwd=tmp_path,
        env={**os.environ, "VIRTUAL_ENV": "this"},
        capture_output=True,
        text=True,
        check=True,
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"machine", "options", "shuffles", "store"}
    assert results["machine"]["versions"]["torch"] == torch.__version__
    assert min(results["shuffles"]["shuffles_per_s"].values()) > 0
    assert "bytes a row" in done.stdout
