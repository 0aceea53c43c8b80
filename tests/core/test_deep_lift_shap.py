"""The face: every parameter of deep_lift_shap, its errors, and equality with the peers whose parameters these are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tangermeme.deep_lift_shap import _captum_deep_lift_shap as peer_by_captum
from tangermeme.deep_lift_shap import deep_lift_shap as peer
from tangermeme.deep_lift_shap import hypothetical_attributions as peer_hypothetical
from torch import Tensor, nn

from dlshap_core import _captum_deep_lift_shap, deep_lift_shap, dinucleotide_shuffle, hypothetical_attributions, shuffle
from dlshap_core.engine import numbers
from tests.core.toolbox import Apply, relative_difference, seeded, sequences

N, R, L = 4, 5, 60


def relu_net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(4, 8, 7), nn.ReLU(), nn.Conv1d(8, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 50, 16), nn.ReLU()),
        nn.Linear(16, 3),
    )


class BPNet(nn.Module):
    """BPNet in small: dilated residual blocks with ReLU modules, the log-count output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_relu = nn.Conv1d(4, 8, 15, padding=7), nn.ReLU()
        self.blocks = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=2**i, dilation=2**i) for i in range(1, 5))
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(4))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_relu(self.stem(x))
        for block, relu in zip(self.blocks, self.relus, strict=True):
            x = x + relu(block(x))
        return self.head(x.mean(-1))


def deepsea() -> nn.Module:
    """Its logits: at the sigmoid's output the peer loses digits in float32."""
    return nn.Sequential(
        *(nn.Conv1d(4, 8, 8), nn.ReLU(), nn.MaxPool1d(4, 4), nn.Dropout(0.2), nn.Conv1d(8, 8, 5), nn.ReLU()),
        *(nn.MaxPool1d(2, 2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)),
    )


NETS: dict[str, Callable[[], nn.Module]] = {"ReLU net": relu_net, "BPNet counts": BPNet, "DeepSEA": deepsea}


@pytest.fixture
def X() -> Tensor:  # noqa: N802  a fixture goes by the name of its value
    return sequences(N, L, seed=11).float()


@pytest.fixture
def references(X: Tensor) -> Tensor:
    return dinucleotide_shuffle(X, n=R, random_state=3)


def attributed(model: nn.Module, X: Tensor, **options: Any) -> Tensor:
    result = deep_lift_shap(model, X, **{"device": "cpu", "random_state": 0, "n_shuffles": R, **options})
    assert isinstance(result, Tensor)
    return result


def by_peer(model: nn.Module, X: Tensor, **options: Any) -> Any:
    return peer(model, X, **{"device": "cpu", "random_state": 0, "n_shuffles": R, **options})


# --- equality with the peers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, {"hypothetical": True}, {"raw_outputs": True}], ids=["observed", "all", "raw"])
@pytest.mark.parametrize("source", ["references", "random_state", "shuffle"])
@pytest.mark.parametrize("name", NETS)
def test_equals_the_peer(name: str, source: str, form: dict[str, Any], X: Tensor, references: Tensor) -> None:
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, 1e-5)]:
        model = seeded(NETS[name], dtype=dtype)
        options = {**form, "random_state": 7}
        theirs: dict[str, Any] = dict(options)
        if source == "references":
            options["references"] = theirs["references"] = references
        elif source == "shuffle":
            from tangermeme.ersatz import shuffle as peer_shuffle

            options["references"], theirs["references"] = shuffle, peer_shuffle
        expected = by_peer(model, X, **theirs)
        actual = attributed(model, X, **options)
        assert actual.dtype == expected.dtype
        assert relative_difference(actual, expected) < tolerance


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("name", ["ReLU net", "DeepSEA"])
def test_equals_the_peer_for_each_target(name: str, target: int, X: Tensor) -> None:
    model = seeded(NETS[name])
    assert relative_difference(attributed(model, X, target=target), by_peer(model, X, target=target)) < 1e-9


@pytest.mark.parametrize("name", ["ReLU net", "BPNet counts"])
def test_equals_captum_where_there_is_no_max_pooling(name: str, X: Tensor, references: Tensor) -> None:
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, 1e-5)]:
        model = seeded(NETS[name], dtype=dtype)
        for form in ({}, {"hypothetical": True}):
            options: dict[str, Any] = {"references": references.to(dtype), "device": "cpu", **form}
            by_captum = _captum_deep_lift_shap(model, X.to(dtype), **options)
            assert isinstance(by_captum, Tensor)
            assert relative_difference(attributed(model, X, **options), by_captum) < tolerance
            theirs = peer_by_captum(model, X.to(dtype), **options)
            assert relative_difference(by_captum, theirs) < tolerance


# --- parameters -------------------------------------------------------------------------------------------------------


def gated(conv: nn.Module, x: Tensor, gate: Tensor, shift: Tensor) -> Tensor:
    return F.relu(conv(x)).mean(-1) * gate + shift


def test_args_follow_their_sequences(X: Tensor) -> None:
    with_modules = Apply(
        lambda conv, relu, x, gate, shift: relu(conv(x)).mean(-1) * gate + shift, nn.Conv1d(4, 3, 9), nn.ReLU()
    )
    model = seeded(lambda: with_modules, dtype=torch.float32)
    args = (torch.rand(N, 1), torch.randn(N, 3))
    expected = by_peer(model, X, args=args, target=1)
    for batch_size in (1, 3, 8, 32):
        actual = attributed(model, X, args=args, target=1, batch_size=batch_size)
        assert relative_difference(actual, expected) < 1e-5


def test_a_list_of_targets_gives_an_axis_of_targets(X: Tensor) -> None:
    model = seeded(deepsea)
    for form, axes in [({}, (4, L)), ({"hypothetical": True}, (4, L)), ({"raw_outputs": True}, (R, 4, L))]:
        together = attributed(model, X, target=[2, 0], **form)
        assert together.shape == (N, 2, *axes)
        for position, target in enumerate([2, 0]):
            torch.testing.assert_close(together[:, position], attributed(model, X, target=target, **form))


def test_a_combination_of_outputs_is_a_target(X: Tensor) -> None:
    model = seeded(deepsea)
    first, last = (attributed(model, X, target=target) for target in (0, 2))
    expected = first - 0.5 * last
    torch.testing.assert_close(attributed(model, X, target={0: 1, -1: -0.5}), expected)
    together = attributed(model, X, target=[{np.int64(0): 1, 2: -0.5}, 2])
    torch.testing.assert_close(together, torch.stack([expected, last], 1))


def test_batch_size_changes_nothing(X: Tensor) -> None:
    model = seeded(deepsea)
    expected = attributed(model, X, n_shuffles=7)
    for batch_size in (1, 2, 3, 7, 9, 14, 100):
        assert relative_difference(attributed(model, X, n_shuffles=7, batch_size=batch_size), expected) < 1e-9


def test_reference_k_is_drawn_with_the_seed_plus_k_whatever_the_row(X: Tensor) -> None:
    model = seeded(relu_net)
    result = deep_lift_shap(model, X, n_shuffles=3, random_state=5, return_references=True, device="cpu")
    assert result.references.shape == (N, 3, 4, L)
    for row in range(N):
        for k in range(3):
            expected = dinucleotide_shuffle(X[row : row + 1], n=1, random_state=5 + k)
            assert torch.equal(result.references[row, k], expected[0, 0])
    alone = deep_lift_shap(model, X[2:3], n_shuffles=3, random_state=5, device="cpu")
    torch.testing.assert_close(alone, result.attributions[2:3])


@pytest.mark.parametrize("batch_size", [2, 5, 32])
def test_returned_references_are_those_used(batch_size: int, X: Tensor) -> None:
    model = seeded(relu_net)
    options: dict[str, Any] = {"n_shuffles": R, "device": "cpu", "batch_size": batch_size, "return_references": True}
    attributions, drawn = deep_lift_shap(model, X, **options)  # no seed: another draw would differ
    again = deep_lift_shap(model, X, references=drawn, **options)
    torch.testing.assert_close(again.attributions, attributions)
    assert torch.equal(again.references, drawn)
    other = deep_lift_shap(model, X, **options)
    assert not torch.equal(other.references, drawn)
    theirs = by_peer(model, X, return_references=True)
    assert torch.equal(deep_lift_shap(model, X, random_state=0, **options).references, theirs.references)


def test_a_function_is_asked_for_each_pair_by_its_seed(X: Tensor) -> None:
    calls: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def drawn(x: Tensor, **options: Any) -> Tensor:
        calls.append((tuple(x.shape), options))
        return shuffle(x, **options)

    attributed(seeded(relu_net), X[:2], references=drawn, n_shuffles=3, random_state=9)
    assert calls == 2 * [((1, 4, L), {"n": 1, "random_state": 9 + k}) for k in range(3)]


def test_a_tensor_of_references_overrides_the_number_of_shuffles(X: Tensor, references: Tensor) -> None:
    raw = attributed(seeded(relu_net), X, references=references, n_shuffles=2, raw_outputs=True)
    assert raw.shape == (N, R, 4, L)


def test_references_of_zeros(X: Tensor) -> None:
    model = seeded(deepsea)
    nothing = torch.zeros(N, 1, 4, L)
    assert relative_difference(attributed(model, X, references=nothing), by_peer(model, X, references=nothing)) < 1e-9


def test_hypothetical_attributions_hold_the_observed_ones(X: Tensor) -> None:
    model = seeded(deepsea)
    everything, observed = attributed(model, X, hypothetical=True), attributed(model, X)
    torch.testing.assert_close(everything * X, observed)
    assert (everything * (1 - X)).abs().max() > 0


def test_raw_outputs_are_multipliers_whose_projection_is_the_attribution(X: Tensor) -> None:
    model = seeded(deepsea)
    result = deep_lift_shap(
        model, X, raw_outputs=True, return_references=True, n_shuffles=R, random_state=0, device="cpu"
    )
    projected = [
        hypothetical_attributions((result.attributions[i],), (X[i].double().expand(R, 4, L),), (result.references[i],))
        for i in range(N)
    ]
    expected = torch.stack([p[0].mean(0) for p in projected])
    torch.testing.assert_close(expected, attributed(model, X, hypothetical=True))


def test_warning_threshold(X: Tensor) -> None:
    model = seeded(deepsea, dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match="convergence deltas too high: up to .*over the threshold of 1e-12"):
        attributed(model, X, warning_threshold=1e-12)
    attributed(model, X, warning_threshold=1e-3)  # a warning would be an error here


def test_a_delta_that_is_not_a_number_is_warned_of(X: Tensor) -> None:
    model = Apply(lambda x: torch.log(x.flatten(1).sum(1, keepdim=True) - 1e6))
    with pytest.warns(RuntimeWarning, match="up to nan"):
        attributed(model, X)


def test_print_convergence_deltas(X: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    attributed(seeded(relu_net), X)
    assert capsys.readouterr().out == ""
    attributed(seeded(relu_net), X, print_convergence_deltas=True, batch_size=2 * R)
    assert capsys.readouterr().out.count("tensor(") == 2


def test_verbose_shows_progress_beside_the_output(X: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    attributed(seeded(relu_net), X, verbose=True, batch_size=R)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{N * R} of {N * R} pairs" in shown.err
    attributed(seeded(relu_net), X)
    assert capsys.readouterr().err == ""


def test_dtype_by_name_and_by_value(X: Tensor) -> None:
    model = seeded(relu_net, dtype=torch.float32)
    assert attributed(model, X).dtype == torch.float32
    exact = attributed(model, X)
    for dtype in ("bfloat16", torch.bfloat16):
        assert 1e-6 < relative_difference(attributed(model, X, dtype=dtype, warning_threshold=1.0), exact) < 0.05
    assert torch.equal(attributed(model, X, dtype="tf32"), exact), "a CPU has none"
    assert numbers("tf32") == {"dtype": torch.float32, "allow_tf32": True}
    assert numbers("bfloat16") == numbers(torch.bfloat16) == {"dtype": torch.bfloat16}


def test_integers_serve_as_one_hot(X: Tensor, references: Tensor) -> None:
    model = seeded(relu_net)
    expected = attributed(model, X, references=references)
    for dtype in (torch.int8, torch.uint8, torch.float64):
        assert torch.equal(attributed(model, X.to(dtype), references=references.to(dtype)), expected)
    assert torch.equal(attributed(model, X.to(torch.int8)), attributed(model, X))


def test_trailing_axes_of_the_output_are_dropped(X: Tensor) -> None:
    model = seeded(relu_net)
    longer = Apply(lambda inner, x: inner(x)[..., None, None], model)
    assert torch.equal(attributed(longer, X, target=2), attributed(model, X, target=2))


def test_device_may_be_left_to_choose(X: Tensor) -> None:
    model = seeded(relu_net)
    assert torch.equal(attributed(model, X, device=None), attributed(model, X)) or torch.cuda.is_available()
    assert torch.equal(attributed(model, X, device=torch.device("cpu")), attributed(model, X))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": torch.zeros(4, 60)}, ValueError, "X has 2 axes"),
        ({"X": torch.zeros(1, 1, 4, 60)}, ValueError, "X has 4 axes"),
        ({"X": [[1, 0]]}, ValueError, "must be a torch.Tensor"),
        ({"X": torch.full((2, 4, 60), 0.25)}, ValueError, "one-hot"),
        ({"X": torch.ones(2, 4, 60)}, ValueError, "one-hot"),
        ({"X": torch.zeros(2, 4, 60)}, ValueError, "unknown characters"),
        ({"X": torch.zeros(0, 4, 60)}, ValueError, "no sequences"),
        ({"references": torch.zeros(4, 60)}, ValueError, "references have shape"),
        ({"references": torch.zeros(N, 4, L)}, ValueError, "references have shape"),
        ({"references": torch.zeros(N - 1, R, 4, L)}, ValueError, "references have shape"),
        ({"references": torch.zeros(N, R, 4, L - 1)}, ValueError, "references have shape"),
        ({"references": torch.full((N, R, 4, L), 0.5)}, ValueError, "references must be one-hot"),
        ({"n_shuffles": 0}, RuntimeError, "n_shuffles must be at least 1"),
        ({"args": (torch.zeros(N - 1, 3),)}, IndexError, "rows for 4 sequences"),
        ({"target": 3}, IndexError, "target 3 is not there"),
        ({"target": [0, 8]}, IndexError, "target 8 is not there"),
        ({"target": {8: 1}}, IndexError, "target 8 is not there"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str, X: Tensor) -> None:
    arguments = {"X": X, **change}
    with pytest.raises(error, match=message):
        attributed(seeded(relu_net), **arguments)


def test_only_warn_turns_the_check_of_values_into_a_warning(X: Tensor, references: Tensor) -> None:
    model = seeded(relu_net)
    with pytest.warns(RuntimeWarning, match="X must be one-hot"):
        attributed(model, X * 0.5, references=references, only_warn=True)
    with pytest.warns(RuntimeWarning, match="references must be one-hot"):
        attributed(model, X, references=references * 0.5, only_warn=True)
    with pytest.raises(ValueError, match="axes"):
        attributed(model, X[0], references=references, only_warn=True)


def test_unknown_bases_get_no_attribution(X: Tensor) -> None:
    X[:, :, 20:23] = 0
    with pytest.warns(RuntimeWarning, match="unknown characters"):
        result = attributed(seeded(relu_net), X, only_warn=True)
    assert result[:, :, 20:23].abs().max() == 0
    assert result[:, :, :20].abs().max() > 0


def test_outputs_of_the_wrong_shape(X: Tensor) -> None:
    for output in (lambda y: y[..., None].expand(-1, -1, 2), lambda y: y.sum()):
        model = Apply(lambda inner, x, output=output: output(inner(x)), seeded(relu_net))
        with pytest.raises(ValueError, match="the model returns shape"):
            attributed(model, X)


# --- the projection and the debugging twin ----------------------------------------------------------------------------


def test_hypothetical_attributions_equal_the_peers_and_a_direct_sum(X: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    m, r = torch.randn(N, 4, L, generator=generator), dinucleotide_shuffle(X, n=1, random_state=0)[:, 0]
    (actual,) = hypothetical_attributions((m,), (X,), (r,))
    torch.testing.assert_close(actual, peer_hypothetical((m,), (X,), (r,))[0])
    for c in range(4):
        base = torch.zeros(4, 1)
        base[c] = 1
        torch.testing.assert_close(actual[:, c], ((base - r) * m).sum(1))


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 4, 9), (), (torch.zeros(1, 4, 9),) * 2, (None,), (torch.zeros(1, 4, 8),)]
)
def test_hypothetical_attributions_refuse_other_forms(position: int, wrong: Any) -> None:
    arguments: list[Any] = [(torch.zeros(1, 4, 9),)] * 3
    arguments[position] = wrong
    with pytest.raises(ValueError, match="multipliers, X and references must"):
        hypothetical_attributions(*arguments)


def test_the_debugging_twin_draws_and_returns_references_as_the_peers_does(X: Tensor) -> None:
    model = seeded(relu_net, dtype=torch.float32)
    options: dict[str, Any] = {"n_shuffles": 3, "random_state": 4, "device": "cpu", "return_references": True}
    mine, theirs = _captum_deep_lift_shap(model, X, **options), peer_by_captum(model, X, **options)
    assert torch.equal(mine[1], theirs[1])
    assert relative_difference(mine[0], theirs[0]) < 1e-5
    direct = attributed(model, X, references=mine[1])
    assert relative_difference(mine[0], direct) < 1e-5


def test_the_debugging_twin_takes_targets_args_and_shows_progress(
    X: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    model = seeded(
        lambda: Apply(lambda conv, relu, x, gate: relu(conv(x)).mean(-1) * gate, nn.Conv1d(4, 3, 9), nn.ReLU()),
        dtype=torch.float32,
    )
    options: dict[str, Any] = {"args": (torch.rand(N, 1),), "target": 2, "device": "cpu"}
    drawn = dinucleotide_shuffle(X, n=3, random_state=0)
    mine = _captum_deep_lift_shap(model, X, references=drawn, verbose=True, **options)
    assert isinstance(mine, Tensor)
    assert relative_difference(mine, attributed(model, X, references=drawn, **options)) < 1e-5
    assert f"{N} of {N} sequences" in capsys.readouterr().err


def test_sequences_that_cannot_be_shuffled_need_no_seed() -> None:
    X = torch.zeros(2, 4, 30)
    X[:, 0] = 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(120, 1))
    attributions = deep_lift_shap(model, X, n_shuffles=3, device="cpu")
    assert attributions.abs().max() < 1e-6
    X[:, 0, 4] = 0
    with pytest.warns(RuntimeWarning, match="unknown characters"):
        assert deep_lift_shap(model, X, n_shuffles=3, device="cpu", only_warn=True).shape == X.shape
