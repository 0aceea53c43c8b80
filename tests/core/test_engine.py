"""The engine: batches, targets, further inputs, dtypes, and layouts of rows change nothing but the work."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core import Attribution, attribute
from dlshap_core.engine import drawn, plan_blocks
from dlshap_core.one_hot import one_hot, to_codes
from tests.core.toolbox import (
    Apply,
    Sandwich,
    explain,
    multipliers,
    relative_difference,
    seeded,
    sequences,
    shuffled,
    worst_delta,
)

N, R = 4, 5
FIELDS = ("hypothetical", "prediction", "reference_prediction", "convergence_delta", "multipliers")


def conv_net(n_targets: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 6, 7),
        nn.ReLU(),
        nn.MaxPool1d(4),
        nn.Conv1d(6, 6, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(36, n_targets),
    )


def with_softmax() -> nn.Module:
    return Apply(
        lambda conv, head, x: head((conv(x).softmax(-1) * conv(x)).sum(-1)), nn.Conv1d(4, 5, 3), nn.Linear(5, 2)
    )


def merging_rows() -> nn.Module:
    """Channels become rows: sizes alone cannot tell which sequence a row belongs to."""

    def forward(conv: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
        hidden = conv(x)
        rows = F.gelu(hidden.reshape(-1, hidden.shape[-1]))
        return head(rows.softmax(-1).reshape(hidden.shape).flatten(1) * hidden.flatten(1))

    return Apply(forward, nn.Conv1d(4, 3, 5), nn.Linear(108, 2))


def windows_as_rows() -> nn.Module:
    def forward(conv: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
        windows = x.unfold(-1, 10, 10).permute(2, 0, 1, 3).reshape(-1, 4, 10)  # windows first, then sequences
        return head(F.relu(conv(windows)).amax(-1).reshape(4, len(x), -1).sum(0))

    return Apply(forward, nn.Conv1d(4, 6, 5), nn.Linear(6, 2))


def looping_over_rows() -> nn.Module:
    return Apply(
        lambda conv, head, x: torch.cat([head(F.silu(conv(row[None])).mean(-1)) for row in x]),
        nn.Conv1d(4, 6, 5),
        nn.Linear(6, 2),
    )


def stacking_reverse_complements() -> nn.Module:
    def forward(conv: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
        both = head(F.relu(conv(torch.cat([x, x.flip(1, 2)]))).mean(-1))
        return both[: len(x)] * both[len(x) :]

    return Apply(forward, nn.Conv1d(4, 6, 5), nn.Linear(6, 2))


def batch_last() -> nn.Module:
    def forward(head: nn.Module, x: Tensor) -> Tensor:
        hidden = torch.tanh(x.permute(1, 2, 0).flatten(0, 1))  # (4 L, B)
        return head(F.elu(hidden[:80] + 0.3 * hidden[80:]).T)

    return Apply(forward, nn.Linear(80, 2))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "conv_net": conv_net,
    "with_softmax": with_softmax,
    "merging_rows": merging_rows,
    "windows_as_rows": windows_as_rows,
    "looping_over_rows": looping_over_rows,
    "stacking_reverse_complements": stacking_reverse_complements,
    "batch_last": batch_last,
}


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(N)
    return X, shuffled(X, R)


def assert_same(actual: Attribution, expected: Attribution, tolerance: float) -> None:
    for field in FIELDS:
        if field == "convergence_delta":
            torch.testing.assert_close(actual.convergence_delta, expected.convergence_delta, rtol=0, atol=tolerance)
        else:
            assert relative_difference(getattr(actual, field), getattr(expected, field)) < tolerance, field


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 10, 11, 20, 1000])
@pytest.mark.parametrize("name", MODELS)
def test_batches_change_nothing(name: str, batch_size: int, pairs: tuple[Tensor, Tensor]) -> None:
    model = seeded(MODELS[name])
    expected = explain(model, *pairs, targets="all", batch_size=R)
    assert worst_delta(expected) < 1e-9
    assert_same(explain(model, *pairs, targets="all", batch_size=batch_size), expected, 1e-9)
    in_float32 = explain(seeded(MODELS[name], dtype=torch.float32), *pairs, targets="all", batch_size=batch_size)
    assert worst_delta(in_float32) < 1e-4
    assert relative_difference(in_float32.hypothetical, expected.hypothetical) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_each_pair_on_its_own(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    model = seeded(MODELS[name])
    together = multipliers(model, X, references)
    for row in range(N):
        for k in range(R):
            alone = multipliers(model, X[row : row + 1], references[row : row + 1, k : k + 1])
            assert relative_difference(alone[0, 0], together[row, k]) < 1e-9


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("r", [1, 4, 9])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 9, 100])
def test_blocks_cover_every_pair_once_within_the_batch_size(n: int, r: int, batch_size: int) -> None:
    pairs_of_blocks, blocks = [], plan_blocks(n, r, batch_size)
    for block in blocks:
        pairs = [(i, k) for i in range(n)[block.rows] for k in range(r)[block.ks]]
        assert 0 < len(pairs) <= batch_size
        pairs_of_blocks += pairs
    assert pairs_of_blocks == [(i, k) for i in range(n) for k in range(r)]
    for sizes in ([b.rows.stop - b.rows.start for b in blocks], [b.ks.stop - b.ks.start for b in blocks]):
        assert max(sizes) - min(sizes) <= 1


def passes_of_one_row(model: nn.Module, X: Tensor, references: Tensor, batch_size: int) -> int:
    """How often a sequence, or a reference, goes through the model alone and observed."""
    seen = []
    handle = model.register_forward_pre_hook(lambda _, given: seen.append((len(given[0]), given[0].requires_grad)))
    explain(model, X, references, batch_size=batch_size)
    handle.remove()
    return seen.count((1, True))


def test_a_sequence_goes_through_the_model_once_for_all_batches_of_its_references() -> None:
    X = sequences(3)
    references, model = shuffled(X, 6), seeded(with_softmax)
    explain(model, X, references)  # its rows were found to stay apart
    assert passes_of_one_row(model, X, references, 3) == 3
    assert passes_of_one_row(model, X, references, 2) == 3
    assert passes_of_one_row(model, X, references, 1) == 18 + 18  # beside one pair it would be much memory


def test_a_model_that_overwrites_is_seen_anew_in_every_batch_that_fails() -> None:
    """Its first pass is found to be of no use when the way back was begun."""

    def forward(conv: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
        hidden = conv(x)
        shares = hidden.softmax(-1)
        hidden.mul_(0.5)
        return head((shares * hidden.exp()).sum(-1))

    model = seeded(lambda: Apply(forward, nn.Conv1d(4, 5, 3), nn.Linear(5, 2)))
    X = sequences(3)
    references = shuffled(X, 7)
    in_parts, whole = (explain(model, X, references, batch_size=n) for n in (2, 21))
    for name in FIELDS:
        assert relative_difference(getattr(in_parts, name), getattr(whole, name)) < 1e-9


def test_shapes_and_the_meaning_of_the_fields(pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    model = seeded(conv_net)
    result = explain(model, X, references, targets=[2, 0])
    assert result.multipliers is not None
    assert result.multipliers.shape == (N, 2, R, 4, 40)
    assert result.hypothetical.shape == (N, 2, 4, 40)
    assert result.prediction.shape == (N, 2)
    assert result.reference_prediction.shape == result.convergence_delta.shape == (N, 2, R)
    assert {getattr(result, field).dtype for field in FIELDS} == {torch.float64}
    with torch.no_grad():
        torch.testing.assert_close(result.prediction, model(X.double())[:, [2, 0]])
        expected = model(references.double().flatten(0, 1))[:, [2, 0]].unflatten(0, (N, R)).transpose(1, 2)
        torch.testing.assert_close(result.reference_prediction, expected)
    m, r = result.multipliers, references.double()[:, None]
    torch.testing.assert_close(result.hypothetical, (m - (m * r).sum(-2, keepdim=True)).mean(2))
    delta = (m * (X.double()[:, None, None] - r)).sum((-2, -1))
    delta -= result.prediction[..., None] - result.reference_prediction
    torch.testing.assert_close(result.convergence_delta, delta, rtol=0, atol=1e-12)
    assert explain(model, X, references, raw_outputs=False).multipliers is None


def test_convergence_delta_shows_what_does_not_add_up(pairs: tuple[Tensor, Tensor]) -> None:
    def half(module: nn.Module, grad_input: tuple[Tensor], grad_output: tuple[Tensor]) -> tuple[Tensor]:
        return (grad_output[0] / 2,)

    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(160, 1)))
    result = explain(model, *pairs, user_rules={nn.Identity: half})
    expected = -(result.prediction[..., None] - result.reference_prediction) / 2
    torch.testing.assert_close(result.convergence_delta, expected)


@pytest.mark.parametrize("name", MODELS)
def test_several_targets_equal_single_ones(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    model = seeded(MODELS[name])
    together = explain(model, *pairs, targets=[1, 0, -1, 1])
    n_targets = explain(model, *pairs, targets="all").hypothetical.shape[1]
    for position, target in enumerate([1, 0, n_targets - 1, 1]):
        alone = explain(model, *pairs, targets=[target])
        for field in FIELDS:
            torch.testing.assert_close(getattr(together, field)[:, [position]], getattr(alone, field))


@pytest.mark.parametrize("name", MODELS)
def test_a_contrast_of_targets_is_the_combination_of_their_attributions(
    name: str, pairs: tuple[Tensor, Tensor]
) -> None:
    model = seeded(MODELS[name])
    of_all = explain(model, *pairs, targets="all")
    asked = [1, {0: 1, -1: -0.25}, lambda n: {n - 1: 2.0, 0: 1 / 3}, {1: 1.0}]
    found = explain(model, *pairs, targets=asked)
    assert worst_delta(found) < 1e-9
    for field in FIELDS:
        values = getattr(of_all, field)
        first, second, last = values[:, 0], values[:, 1], values[:, -1]
        expected = torch.stack([second, first - 0.25 * last, 2 * last + first / 3, second], 1)
        torch.testing.assert_close(getattr(found, field), expected, rtol=1e-12, atol=1e-12)


def test_a_contrast_costs_one_way_back(monkeypatch: pytest.MonkeyPatch, pairs: tuple[Tensor, Tensor]) -> None:
    model, calls, back = seeded(lambda: conv_net(9)), [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: calls.append(1) or back(*args, **options))
    counts = []
    for targets in ([0, 2], [{place: 0.5**place for place in range(9)}, 2]):
        explain(model, *pairs, targets=targets, batch_size=N * R)
        counts.append(len(calls))
        calls.clear()
    assert counts[0] == counts[1]


def test_a_contrast_that_cancels_leaves_targets_beside_it_alone(pairs: tuple[Tensor, Tensor]) -> None:
    """In float32, beside large outputs; and with half precision, whose sum is taken in float32."""
    model = seeded(conv_net, dtype=torch.float32)
    alone, beside = (explain(model, *pairs, targets=asked) for asked in ([2], [{0: 1.0, 1: 1e4}, 2]))
    for field in FIELDS:
        assert torch.equal(getattr(alone, field)[:, 0], getattr(beside, field)[:, 1])
    halves = explain(model, *pairs, targets=[0, {0: 1.0, 1: -1.0}], dtype=torch.bfloat16)
    assert halves.prediction.dtype == torch.float32
    whole = explain(model, *pairs, targets=[0, {0: 1.0, 1: -1.0}])
    assert relative_difference(halves.hypothetical, whole.hypothetical) < 0.1


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ({3: 1.0}, IndexError, "target 3 is not there: the model has 3 outputs"),
        ({-4: 1.0}, IndexError, "target -4 is not there"),
        ({}, ValueError, "expected a finite number for each of one or more outputs"),
        ({0: float("nan")}, ValueError, "expected a finite number"),
        ({"a": 1.0}, TypeError, "target 'a' is not a whole number"),
        ({0: "much"}, ValueError, "much"),
    ],
)
def test_contrasts_that_are_none(
    target: Any, error: type[Exception], message: str, pairs: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(error, match=message):
        explain(seeded(conv_net), *pairs, targets=[target])


def test_order_of_sequences_and_references_changes_nothing(pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    model = seeded(conv_net)
    expected = multipliers(model, X, references)
    rows, ks = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    assert relative_difference(multipliers(model, X[rows], references[rows][:, ks]), expected[rows][:, ks]) < 1e-9


def test_int8_and_float_inputs_are_the_same(pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    model = seeded(conv_net)
    expected = explain(model, X.double(), references.double())
    for dtype in (torch.int8, torch.uint8, torch.bool, torch.float32):
        assert_same(explain(model, X.to(dtype), references.to(dtype)), expected, 1e-15)


@pytest.mark.parametrize(
    ("reshape", "n_targets"),
    [
        (lambda y: y[:, 0], 1),
        (lambda y: y[:, :1], 1),
        (lambda y: y[..., None], 3),
        (lambda y: y[..., None, None], 3),
    ],
)
def test_shapes_of_output(reshape: Callable[[Tensor], Tensor], n_targets: int, pairs: tuple[Tensor, Tensor]) -> None:
    model = seeded(conv_net)
    expected = explain(model, *pairs, targets=list(range(n_targets)))
    reshaped = Apply(lambda inner, x: reshape(inner(x)), model).eval()
    assert_same(explain(reshaped, *pairs, targets="all"), expected, 1e-12)


@pytest.mark.parametrize(
    "output",
    [
        lambda y: y.sum(),
        lambda y: y[:2],
        lambda y: y[..., None].expand(-1, -1, 2),
        lambda y: y.T[:, None, :],
        lambda y: (y, y),
        lambda y: {"y": y},
    ],
    ids=["scalar", "rows", "third axis", "transposed", "tuple", "dict"],
)
def test_outputs_that_are_not_a_value_for_each_row_and_target(
    output: Callable[[Tensor], Any], pairs: tuple[Tensor, Tensor]
) -> None:
    model = Apply(lambda inner, x: output(inner(x)), seeded(conv_net)).eval()
    with pytest.raises(ValueError, match="the model returns"):
        explain(model, *pairs)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    return (torch.tanh(x[:, :2].flatten(1) * gate) * gate).sum(1, keepdim=True)


def concatenated(conv: nn.Module, head: nn.Module, x: Tensor, extra: Tensor) -> Tensor:
    return head(F.relu(torch.cat([conv(x).amax(-1), extra], 1)))


def embedded(table: nn.Module, conv: nn.Module, x: Tensor, cell_type: Tensor) -> Tensor:
    return (F.softplus(conv(x)).mean(-1) * table(cell_type)).sum(1)


EXTRA: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "gate": (lambda: Apply(gated), torch.rand(N, 80, generator=torch.Generator().manual_seed(0))),
    "concatenated": (
        lambda: Apply(concatenated, nn.Conv1d(4, 5, 7), nn.Linear(8, 2)),
        torch.randn(N, 3, generator=torch.Generator().manual_seed(1)),
    ),
    "embedding": (lambda: Apply(embedded, nn.Embedding(9, 5), nn.Conv1d(4, 5, 7)), torch.tensor([3, 8, 0, 3])),
}


@pytest.mark.parametrize("name", EXTRA)
def test_extra_inputs_follow_their_sequence(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    make, extra = EXTRA[name]
    model = seeded(make)
    expected = explain(model, X, references, args=(extra,), dtype=torch.float64)
    assert worst_delta(expected) < 1e-9
    for batch_size in (1, 3, 5, 12):
        assert_same(
            explain(model, X, references, args=[extra], dtype=torch.float64, batch_size=batch_size), expected, 1e-9
        )
    for row in range(N):
        fixed = Apply(lambda x, value=extra[row]: model(x, value.expand(len(x), *value.shape))).eval()
        fixed.inner = model
        alone = explain(fixed, X[row : row + 1], references[row : row + 1], dtype=torch.float64)
        assert (
            relative_difference(alone.hypothetical, expected.hypothetical[row : row + 1].to(alone.hypothetical)) < 1e-6
        )


def test_extra_inputs_may_have_more_rows_but_not_fewer(pairs: tuple[Tensor, Tensor]) -> None:
    model, gate = Apply(gated), torch.rand(N + 2, 80)
    torch.testing.assert_close(
        explain(model, *pairs, args=(gate,)).hypothetical, explain(model, *pairs, args=(gate[:N],)).hypothetical
    )
    with pytest.raises(IndexError, match=r"args\[0\] has 3 rows for 4 sequences"):
        explain(model, *pairs, args=(gate[:3],))


@pytest.mark.parametrize(
    "model",
    [Apply(lambda x: torch.ones(len(x), 2)), Apply(lambda x: 0 * x[:, :2, 0] + 3)],
    ids=["ignored", "times zero"],
)
def test_a_model_that_ignores_its_input_gets_zeros(model: nn.Module, pairs: tuple[Tensor, Tensor]) -> None:
    result = explain(model, *pairs, targets="all")
    assert result.hypothetical.shape == (N, 2, 4, 40)
    assert result.hypothetical.abs().max() == 0
    assert result.convergence_delta.abs().max() == 0
    assert result.prediction.unique().numel() == 1


def test_a_target_that_ignores_the_input_beside_one_that_does_not(pairs: tuple[Tensor, Tensor]) -> None:
    model = Apply(lambda x: torch.cat([torch.ones(len(x), 1), x.flatten(1)[:, 3:4]], 1))
    result = explain(model, *pairs, targets="all")
    assert result.hypothetical[:, 0].abs().max() == 0
    assert result.hypothetical[:, 1].abs().max() == 1


def test_a_linear_model_has_its_weights_for_multipliers(pairs: tuple[Tensor, Tensor]) -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(160, 2)))
    expected = model[1].weight[1].detach().unflatten(0, (4, 40)).expand(N, R, 4, 40)
    assert relative_difference(multipliers(model, *pairs, targets=[1]), expected) < 1e-12


def test_a_reference_equal_to_its_sequence_gets_the_gradient(pairs: tuple[Tensor, Tensor]) -> None:
    X = pairs[0]
    for name, make in MODELS.items():
        model = seeded(make)
        leaf = X.double().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
        references = X[:, None].repeat(1, 3, 1, 1)
        result = explain(model, X, references)
        assert result.multipliers is not None
        assert relative_difference(result.multipliers[:, 0], gradient[:, None].expand(-1, 3, -1, -1)) < 1e-9, name
        assert result.convergence_delta.abs().max() < 1e-12
        in_float32 = multipliers(seeded(make, dtype=torch.float32), X, references)
        assert relative_difference(in_float32, gradient[:, None].expand(-1, 3, -1, -1)) < 1e-4, name


@pytest.mark.parametrize("name", MODELS)
def test_float32_keeps_its_digits_where_one_base_changes(name: str) -> None:
    X = sequences(3)
    references = X[:, None].repeat(1, 4, 1, 1)
    for k in range(1, 4):
        references[:, k, :, 9 * k] = references[:, k, :, 9 * k].roll(k, 1)
    exact = multipliers(seeded(MODELS[name]), X, references)
    assert relative_difference(multipliers(seeded(MODELS[name], dtype=torch.float32), X, references), exact) < 1e-4


def test_references_drawn_block_by_block(pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    asked: list[tuple[slice, slice]] = []

    class Drawn:
        n = R

        def __call__(self, rows: slice, ks: slice) -> Tensor:
            asked.append((rows, ks))
            return references[rows, ks]

    model = seeded(conv_net)
    for batch_size in (3, 12):
        asked.clear()
        result = explain(model, X, Drawn(), batch_size=batch_size)
        assert_same(result, explain(model, X, references, batch_size=batch_size), 1e-15)
        covered = [(i, k) for rows, ks in asked for i in range(N)[rows] for k in range(R)[ks]]
        assert covered == [(i, k) for i in range(N) for k in range(R)]


@dataclass
class CodeSource:
    """References as codes; remembers in which threads they were drawn."""

    codes: Tensor
    threads: list[str] = dataclasses.field(default_factory=list)

    @property
    def n(self) -> int:
        return self.codes.shape[1]

    def __call__(self, rows: slice, ks: slice) -> Tensor:
        self.threads.append(threading.current_thread().name)
        return self.codes[rows, ks]


@pytest.mark.parametrize("batch_size", [2, R, 3 * R])
def test_references_may_be_codes(batch_size: int, pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    source = CodeSource(to_codes(references))
    source.codes[:, 0, 3] = 4  # unknown
    references = one_hot(source.codes)
    model = seeded(conv_net)
    found, expected = (explain(model, X, given, batch_size=batch_size) for given in (source, references))
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in FIELDS)
    assert set(source.threads) == {threading.current_thread().name}


def test_for_another_device_references_are_drawn_a_block_ahead(pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    source = CodeSource(to_codes(references))
    blocks = plan_blocks(N, R, 2)
    for number, (block, sequence, codes) in enumerate(drawn(X, source, blocks, torch.device("meta"))):
        assert block == blocks[number]
        assert torch.equal(sequence, X[block.rows])
        assert torch.equal(codes, source.codes[block.rows, block.ks])
    assert len(source.threads) == len(blocks)
    assert threading.current_thread().name not in source.threads


def test_an_error_while_drawing_ahead_is_raised(pairs: tuple[Tensor, Tensor]) -> None:
    X, _ = pairs

    class Broken(CodeSource):
        def __call__(self, rows: slice, ks: slice) -> Tensor:
            if rows.start == 2:
                raise ValueError("no such row")
            return super().__call__(rows, ks)

    source = Broken(torch.zeros(N, R, X.shape[-1], dtype=torch.uint8))
    seen = []
    with pytest.raises(ValueError, match="no such row"):
        seen.extend(block for block, _, _ in drawn(X, source, plan_blocks(N, R, R), torch.device("meta")))
    assert len(seen) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [2, R, 3 * R])
def test_a_gpu_gives_the_values_of_the_cpu(batch_size: int, pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    for make in (conv_net, with_softmax):
        model = seeded(make)
        found = explain(model, X, CodeSource(to_codes(references)), batch_size=batch_size, device="cuda")
        expected = explain(model, X, references)
        for name in FIELDS[:3] + FIELDS[4:]:
            assert relative_difference(getattr(found, name), getattr(expected, name)) < 1e-9, name


def test_progress_counts_pairs_and_shows_deltas(pairs: tuple[Tensor, Tensor]) -> None:
    calls: list[tuple[int, Tensor]] = []
    result = explain(
        seeded(conv_net), *pairs, batch_size=10, targets=[0, 2], progress=lambda n, deltas: calls.append((n, deltas))
    )
    assert [n for n, _ in calls] == [10, 10]
    torch.testing.assert_close(torch.cat([deltas for _, deltas in calls]), result.convergence_delta)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_runs_under_autocast(dtype: torch.dtype, tolerance: float, pairs: tuple[Tensor, Tensor]) -> None:
    model = seeded(with_softmax, dtype=torch.float32)
    exact = multipliers(model, *pairs)
    assert exact.dtype == torch.float32
    assert 1e-6 < relative_difference(multipliers(model, *pairs, dtype=dtype), exact) < tolerance
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("size", [0.02, 500.0])  # variances beyond float16, or their reciprocals
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_in_half_precision(name: str, size: float, pairs: tuple[Tensor, Tensor]) -> None:
    def norm(x: Tensor) -> Tensor:
        return getattr(F, name)(size * x.mT, x.shape[1:2]).mT

    exact = multipliers(seeded(lambda: Sandwich(norm, 16)), *pairs)
    model = seeded(lambda: Sandwich(norm, 16), dtype=torch.float32)
    assert relative_difference(multipliers(model, *pairs, dtype=torch.float16), exact) < 0.01


def test_a_model_without_parameters_is_computed_in_float32(pairs: tuple[Tensor, Tensor]) -> None:
    model = Apply(lambda x: x.flatten(1)[:, :3].exp())
    assert explain(model, *pairs).hypothetical.dtype == torch.float32
    assert explain(model, *pairs, dtype=torch.float64).hypothetical.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": [3]}, IndexError, "target 3 is not there: the model has 3 outputs"),
        ({"targets": [-4]}, IndexError, "target -4"),
        ({"targets": "every"}, ValueError, "'all', not 'every'"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"references": torch.zeros(N, 0, 4, 40)}, RuntimeError, "at least one reference"),
        ({"X": torch.zeros(0, 4, 40)}, ValueError, "no sequences"),
    ],
)
def test_wrong_arguments(
    options: dict[str, Any], error: type[Exception], message: str, pairs: tuple[Tensor, Tensor]
) -> None:
    arguments = {"X": pairs[0], "references": pairs[1], "device": "cpu", **options}
    with pytest.raises(error, match=message):
        attribute(seeded(conv_net), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(pairs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(RuntimeError, match="no CUDA GPU here; use device='cpu'"):
        attribute(seeded(conv_net), *pairs, device="cuda")
    assert attribute(seeded(conv_net), *pairs, device=None).hypothetical.device.type == "cpu"


@pytest.mark.parametrize("batch_size", [1, 3, 4, 12])
def test_a_squeezed_output_is_one_target(batch_size: int, pairs: tuple[Tensor, Tensor]) -> None:
    plain = seeded(lambda: Sandwich(torch.relu))
    squeezed = Apply(lambda model, x: model(x).squeeze(), plain)
    expected = multipliers(plain, *pairs)
    assert relative_difference(multipliers(squeezed, *pairs, batch_size=batch_size), expected) < 1e-9


def test_rows_permuted_and_put_back_keep_their_pairs(pairs: tuple[Tensor, Tensor]) -> None:
    plain = seeded(lambda: Sandwich(torch.relu))
    rolled = seeded(lambda: Sandwich(lambda z: z.roll(1, 0).relu().roll(-1, 0)))
    assert relative_difference(multipliers(rolled, *pairs), multipliers(plain, *pairs)) < 1e-9


def test_tracks_beside_the_bases_get_contributions_of_their_own(pairs: tuple[Tensor, Tensor]) -> None:
    X, references = (z.double() for z in pairs)
    tracks = torch.rand(*X.shape[:1], 2, X.shape[-1], dtype=torch.float64)
    other = torch.rand(*references.shape[:2], 2, X.shape[-1], dtype=torch.float64)
    model = seeded(lambda: nn.Sequential(nn.Conv1d(6, 3, 5), nn.Tanh(), nn.Flatten(), nn.Linear(108, 1)))
    inputs, given = torch.cat([X, tracks], 1), torch.cat([references, other], 2)
    result = attribute(model, inputs, given, n_bases=4, device="cpu")
    observed = (result.hypothetical[:, 0, :4] * X).sum((1, 2)) + result.hypothetical[:, 0, 4:].sum((1, 2))
    difference = result.prediction[:, 0] - result.reference_prediction[:, 0].mean(1)
    torch.testing.assert_close(observed, difference)


@pytest.mark.parametrize("n_references", [1, 2, 3])
def test_ties_are_broken_alike_in_every_batch(n_references: int) -> None:
    X = sequences(4).float()
    references = shuffled(X, n_references)
    model = seeded(lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.MaxPool1d(4), nn.Flatten(), nn.Linear(54, 1)))
    model = model.float()
    together = explain(model, X, references, batch_size=n_references)
    for row in range(4):
        alone = explain(model, X[row : row + 1], references[row : row + 1], batch_size=n_references)
        assert torch.equal(alone.hypothetical[0], together.hypothetical[row])


def test_inputs_that_carry_gradients_do_not_leak_them(pairs: tuple[Tensor, Tensor]) -> None:
    X, references = (z.double().requires_grad_() for z in pairs)
    result = explain(seeded(lambda: Sandwich(torch.relu)), X, references)
    assert not result.convergence_delta.requires_grad
    assert not result.prediction.requires_grad


def test_an_elementwise_function_may_broadcast_its_input(pairs: tuple[Tensor, Tensor]) -> None:
    bounds = torch.linspace(-1, 1, 5, dtype=torch.float64)
    result = explain(seeded(lambda: Sandwich(lambda z: torch.clamp(z[..., :1], min=bounds))), *pairs)
    assert worst_delta(result) < 1e-9
