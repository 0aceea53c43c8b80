"""Blocks that are computed again on the way back give the bits of a model that is kept whole, or are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from dlshap_core import attribute, audit
from dlshap_core.engine import memory_of_pair
from dlshap_core.errors import UnsupportedModelError
from dlshap_core.kernels.memory_format import FormatChoice
from dlshap_core.passes.blocks import Called, best_split
from tests.core.toolbox import Apply

LENGTH = 96
_watch = FormatChoice.watch


class Residual(nn.Module):
    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(8), nn.Conv1d(8, 8, 5, padding=2)
        self.first = nn.ReLU(inplace=True) if in_place else nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.first(self.norm(x)))
        return x + h * torch.sigmoid(h)


class Pair(nn.Module):
    """Takes two tensors by name and returns two in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, gate: Tensor) -> dict[str, Any]:
        h = self.linear(x.transpose(1, 2)).transpose(1, 2)
        return {"h": torch.tanh(h) * gate, "gate": torch.softmax(gate, 1), "n": 3}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 8, 7, padding=3)
        self.blocks = nn.Sequential(Residual(), nn.MaxPool1d(2), Residual(in_place=True))
        self.pair = Pair()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        for _ in range(2):  # one module, called twice
            out = self.pair(x, gate=torch.sigmoid(x))
            x = out["h"] + out["gate"] / out["n"]
        return self.head(self.norm(x.transpose(1, 2)).mean(1))


def drawn(n: int, r: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    def one_hot(*shape: int) -> Tensor:
        return nn.functional.one_hot(torch.randint(0, 4, (*shape, LENGTH)), 4).transpose(-1, -2).to(dtype)

    torch.manual_seed(1)
    return one_hot(n), one_hot(n, r)


def made(make: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype).eval()


@pytest.mark.parametrize("names", [("blocks", "pair"), ("blocks.0", "blocks.2", "pair"), ("blocks.1", "norm")])
@pytest.mark.parametrize(("n", "r", "size"), [(1, 1, 1), (2, 3, 3), (3, 2, 6)])
@pytest.mark.parametrize("targets", [(0,), (0, 1)])
def test_the_same_bits(names: tuple[str, ...], n: int, r: int, size: int, targets: tuple[int, ...]) -> None:
    model, (X, references) = made(Net), drawn(n, r)
    given: dict[str, Any] = {"targets": targets, "batch_size": size, "device": "cpu", "raw_outputs": True}
    whole = attribute(model, X, references, **given)
    split = attribute(model, X, references, **given, split=names)
    assert whole.multipliers is not None
    assert split.multipliers is not None
    assert torch.equal(whole.multipliers, split.multipliers)
    assert torch.equal(whole.convergence_delta, split.convergence_delta)
    assert "forward" not in vars(model.get_submodule(names[0]))


class Scaled(nn.Module):
    """A block that is given an extra input of the model, too, which has the rows of the pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3)
        self.block = Apply(lambda x, scale: torch.tanh(scale * torch.tanh(x)).mean(-1))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.block(self.conv(x), scale.view(-1, 1, 1))


class Packed(nn.Module):
    """A block that is given packed sequences, and states that have the rows of the pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        packed = pack_padded_sequence(x.mT, (8 * scale).long(), batch_first=True, enforce_sorted=False)
        return self.block(packed, scale.view(1, -1, 1).expand(1, len(x), 3).contiguous())[1][0].sin()


@pytest.mark.parametrize("make", [Scaled, Packed])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_constants_of_a_block_have_the_rows_of_its_pass(size: int, make: type[nn.Module]) -> None:
    model, (X, references) = made(make), drawn(2, 3)
    given: dict[str, Any] = {"args": [torch.tensor([0.5, 2.0])], "batch_size": size, "device": "cpu"}
    whole, split = (attribute(model, X, references, **given, split=names) for names in ((), ("block",)))
    torch.testing.assert_close(split.hypothetical, whole.hypothetical)


def test_exact_in_float64() -> None:
    model, (X, references) = made(Net, torch.float64), drawn(2, 3, torch.float64)
    found = attribute(model, X, references, batch_size=3, device="cpu", split=("blocks", "pair"))
    assert float(found.convergence_delta.abs().max()) < 1e-13


class WritesIntoInput(Net):
    """Its first block works on its argument in place, where the caller goes on with it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.ReLU(inplace=True), Residual())


class ReadsMore(Net):
    """A block reads what another left with the model."""

    def forward(self, x: Tensor) -> Tensor:
        self.pair.left = torch.sigmoid(self.stem(x))
        return super().forward(x)

    def __init__(self) -> None:
        super().__init__()

        class Reading(Pair):
            def forward(self, x: Tensor, *, gate: Tensor) -> dict[str, Any]:
                out = super().forward(x, gate=gate)
                return {**out, "h": out["h"] * self.left.mean(-1, keepdim=True)}

        self.pair = Reading()


class WritesIntoPieces(Net):
    """A block works in place on halves of an activation of its own."""

    def __init__(self) -> None:
        super().__init__()

        class Halves(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                left, right = (2 * x).chunk(2, 1)
                return torch.cat([left.relu_(), right], 1)

        self.blocks = nn.Sequential(Halves(), Residual())


class GivesMask(Net):
    """A block returns a mask."""

    def __init__(self) -> None:
        super().__init__()

        class Masking(Pair):
            def forward(self, x: Tensor, *, gate: Tensor) -> dict[str, Any]:
                return {**super().forward(x, gate=gate), "n": (x > 0) + 1}

        self.pair = Masking()


@pytest.mark.parametrize("make", [WritesIntoInput, ReadsMore, GivesMask, WritesIntoPieces])
def test_what_cannot_be_computed_again_by_itself_is_kept(make: type[nn.Module]) -> None:
    model, (X, references) = made(make), drawn(2, 2)
    whole = attribute(model, X, references, batch_size=2, device="cpu")
    split = attribute(model, X, references, batch_size=2, device="cpu", split=("blocks", "pair"))
    assert torch.equal(whole.hypothetical, split.hypothetical)


def test_a_block_that_counts_its_calls_is_kept_or_refused() -> None:
    class Counting(Pair):
        n = 0

        def forward(self, x: Tensor, *, gate: Tensor) -> dict[str, Any]:
            type(self).n += 1
            return super().forward(x * (1 + 1e-3 * type(self).n), gate=gate)

    model, (X, references) = made(Net), drawn(1, 2)
    model.pair = Counting().eval()
    with pytest.raises(UnsupportedModelError):
        attribute(model, X, references, batch_size=2, device="cpu", split=("pair",))


class Reshapes(Net):
    """A block reshapes an activation whose channels lie last in memory."""

    def __init__(self) -> None:
        super().__init__()

        class Flat(Residual):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(self.conv(x).flatten(1).unflatten(1, x.shape[1:]))

        self.blocks = nn.Sequential(Flat(), nn.MaxPool1d(2), Residual())


def test_what_was_reshaped_in_a_block_is_let_go_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = FormatChoice(may_change=True)
    monkeypatch.setattr(FormatChoice, "of", lambda *_: formats)
    watched: list[int] = []
    monkeypatch.setattr(FormatChoice, "watch", lambda self, *x: (watched.append(len(x)), _watch(self, *x))[1])
    model, (X, references) = made(Reshapes), drawn(1, 1)
    attribute(model, X, references, batch_size=1, device="cpu", split=("blocks.0",))
    assert watched
    assert formats.n_watched == 0


def test_an_audit_lists_the_same() -> None:
    model, (X, references) = made(Net), drawn(1, 2)
    whole = audit(model, X, references, device="cpu")
    split = audit(model, X, references, device="cpu", split=("blocks", "pair"))
    assert set(split.operations) == set(whole.operations)  # in the order of the way back
    assert split.convergence_error == whole.convergence_error


def test_the_memory_of_a_pair_and_what_would_lower_it() -> None:
    model = made(Net)
    found = memory_of_pair(model, drawn(1, 1)[0], device="cpu")
    assert found.split <= found.whole
    # GELU's input, two products and three sigmoids of (8, 96) or half of that, and more
    assert found.whole > 4 * 8 * LENGTH * 6
    assert memory_of_pair(model, drawn(1, 1)[0][..., : LENGTH // 2], device="cpu").whole < 0.6 * found.whole
    assert "forward" not in vars(model.pair)


def test_large_modules_are_split_into_their_parts_where_these_have_what_is_kept() -> None:
    def layer(name: str) -> Called:
        return Called(name, 1, 100, [Called(f"{name}.a", 1, 50), Called(f"{name}.b", 1, 50)])

    layers = [layer(f"layers.{i}") for i in range(8)]
    whole = Called("", 0, 800, [Called("layers", 1, 800, layers)])
    found = best_split(whole)
    assert found.n_bytes < whole.n_bytes / 3
    assert "layers" not in found.names
    alone = Called("", 0, 100, [Called("all", 1, 100, [Called("all.small", 1, 10)])])
    assert best_split(alone).names == ("all",)
