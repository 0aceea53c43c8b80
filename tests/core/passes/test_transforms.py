"""torch.vmap and activation checkpointing: against the same without them, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from dlshap_core import UnsupportedModelError, audit
from tests.core.toolbox import (
    Apply,
    Sandwich,
    explain,
    relative_difference,
    require_twins,
    seeded,
    sequences,
    shuffled,
    worst_delta,
)

Function = Callable[[Tensor], Tensor]
vmap = torch.vmap
WIDTH, CHANNELS = 36, 4
WEIGHTS = torch.sin(torch.arange(CHANNELS * WIDTH * WIDTH).double()).reshape(CHANNELS, WIDTH, WIDTH)
PLACES = torch.arange(WIDTH)


def shift(a: Tensor, b: Tensor) -> Tensor:
    """(N, D) and (2 N - 1, D) to (N, N): the products of each row with the window that belongs to it."""
    n = len(a)
    return torch.einsum("i d, j d -> i j", a, b).flatten().as_strided((n, n), ((n - 1) * 2, 1), n - 1)


def relative_shift(z: Tensor, shifts: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Attention of two heads with relative positions."""
    heads = z.unflatten(1, (2, 2)).mT
    keys = torch.sin(torch.arange(2 * 71 * 2).double()).reshape(2, 71, 2).to(z)
    return (heads @ heads.mT + shifts(heads, keys)).softmax(-1) @ heads


def shift_by_padding(q: Tensor, k: Tensor) -> Tensor:
    logits = F.pad(torch.einsum("bhid,hjd->bhij", q, k), (1, 0))
    logits = logits.reshape(*logits.shape[:2], -1, q.shape[2])[:, :, 1:].reshape(*q.shape[:3], -1)
    return logits[..., :WIDTH]


def twice_in_place(z: Tensor) -> Tensor:
    y = z.clone()
    vmap(lambda row: row.mul_(2))(y)
    return y


def with_no_grad(row: Tensor) -> Tensor:
    with torch.no_grad():
        sums = row.cumsum(-1)
    return row + sums


TWINS: dict[str, tuple[Function, Function]] = {
    "relative shift of attention": (
        lambda z: relative_shift(z, vmap(vmap(shift), in_dims=(0, None))),
        lambda z: relative_shift(z, shift_by_padding),
    ),
    "linear": (
        lambda z: vmap(lambda row: row.cumsum(-1) @ WEIGHTS[0].to(z))(z),
        lambda z: z.cumsum(-1) @ WEIGHTS[0].to(z),
    ),
    "linear, in chunks": (lambda z: vmap(lambda row: row.cumsum(-1), chunk_size=2)(z), lambda z: z.cumsum(-1)),
    "ruled, over the rows": (
        lambda z: vmap(lambda row: (row.mT @ row).softmax(-1))(z),
        lambda z: (z.mT @ z).softmax(-1),
    ),
    "over channels": (
        lambda z: vmap(lambda c: c.relu().cumsum(-1), in_dims=-2, out_dims=-1)(z).mT,
        lambda z: z.relu().cumsum(-1),
    ),
    "over heads of weights": (
        lambda z: vmap(lambda w, x: F.gelu(F.linear(x, w)), in_dims=(0, None), out_dims=1)(WEIGHTS.to(z), z),
        lambda z: torch.stack([F.gelu(F.linear(z, w)) for w in WEIGHTS.to(z)], 1),
    ),
    "nested, ruled within": (
        lambda z: vmap(vmap(lambda q, k: (q @ k).sigmoid(), (0, None)), (0, None))(z, WEIGHTS[0].to(z)),
        lambda z: (z @ WEIGHTS[0].to(z)).sigmoid(),
    ),
    "nested arguments": (
        lambda z: vmap(lambda d: {"a": [d["x"] * d["y"].tanh()]}, ({"x": 0, "y": None},), {"a": [-1]})(
            {"x": z, "y": WEIGHTS[0, :1].to(z)}
        )["a"][0].movedim(-1, 0),
        lambda z: z * WEIGHTS[0, :1].to(z).tanh(),
    ),
    "named arguments": (
        lambda z: vmap(lambda row, by: row * by)(z, by=WEIGHTS[0, :CHANNELS].to(z)),
        lambda z: z * WEIGHTS[0, :CHANNELS].to(z),
    ),
    "from around, indexed": (lambda z: vmap(lambda i: z[..., i], out_dims=-1)(PLACES.flip(0)), lambda z: z.flip(-1)),
    "from around, ruled": (lambda z: vmap(lambda i: z[..., i].exp(), out_dims=-1)(PLACES), torch.exp),
    "of positions alone": (
        lambda z: z @ vmap(vmap(lambda i, j: (i >= j).to(z.dtype), (None, 0)), (0, None))(PLACES, PLACES),
        lambda z: z @ torch.ones(WIDTH, WIDTH).to(z).tril(),
    ),
    "no axis of what it returns": (
        lambda z: z + vmap(lambda _: torch.ones(WIDTH).to(z), out_dims=None)(PLACES),
        lambda z: z + 1,
    ),
    "a mask from outside": (lambda z: vmap(lambda row, m: 2 * row * m)(z, z > 0), lambda z: 2 * z.relu()),
    "a mask from within": (lambda z: vmap(lambda row: torch.where(row > 0, row, 0))(z), torch.relu),
    "in place": (twice_in_place, lambda z: 2 * z),
    "gradients off within": (lambda z: vmap(with_no_grad)(z), lambda z: z + z.cumsum(-1)),
    "gradients off around": (lambda z: torch.no_grad()(vmap(lambda row: row.cumsum(-1)))(z), lambda z: z.cumsum(-1)),
    "complex": (
        lambda z: vmap(lambda row: torch.fft.irfft(torch.fft.rfft(row) * 2, WIDTH))(z),
        lambda z: 2 * z,
    ),
}


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3)
    return X, shuffled(X, 4)


def model(function: Function) -> nn.Module:
    return seeded(lambda: Sandwich(function, CHANNELS))


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_multipliers(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    require_twins(*map(model, TWINS[name]), *pairs)


def test_float32_keeps_its_digits_where_nothing_or_little_changes() -> None:
    X = sequences(2)
    references = X[:, None].repeat(1, 2, 1, 1)
    references[:, 1, :, 17] = references[:, 1, :, 17].roll(1, 1)
    net = model(TWINS["relative shift of attention"][0])
    exact = explain(net, X, references).multipliers
    in_float32 = explain(net.float(), X, references).multipliers
    assert exact is not None
    assert in_float32 is not None
    assert relative_difference(in_float32, exact) < 1e-5


def test_what_is_linear_is_done_for_all_slices_at_once(pairs: tuple[Tensor, Tensor]) -> None:
    calls: list[Tensor] = []

    def body(row: Tensor) -> Tensor:
        calls.append(row)
        return row.flip(-1)

    net = model(lambda z: vmap(body)(z))
    explain(net, pairs[0], pairs[1], batch_size=12)
    n_linear = len(calls)
    calls.clear()
    net.inner = lambda z: vmap(lambda row: body(row).relu())(z)
    explain(net, pairs[0], pairs[1], batch_size=12)
    assert n_linear < len(calls) / 2


class Ensemble(nn.Module):
    def __init__(self, is_stacked: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(nn.Conv1d(4, 3, 5), nn.GELU(), nn.Flatten()) for _ in range(3))
        self.is_stacked = is_stacked

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_stacked:
            return torch.stack([member(x) for member in self.members]).mean(0)[:, :3].sum(1)
        states = stack_module_state(list(self.members))  # type: ignore[arg-type]
        outputs = vmap(lambda p, b: functional_call(self.members[0], (p, b), (x,)))(*states)
        return outputs.mean(0)[:, :3].sum(1)


def test_an_ensemble_of_stacked_weights(pairs: tuple[Tensor, Tensor]) -> None:
    results = [explain(seeded(lambda s=s: Ensemble(s)), *pairs) for s in (True, False)]
    assert relative_difference(results[0].hypothetical, results[1].hypothetical) < 1e-12


CHECKPOINTED: dict[str, Callable[..., Tensor]] = {
    "as it is": lambda block, head, x: head(block(x)),
    "without reentrance": lambda block, head, x: head(checkpoint(block, x, use_reentrant=False)),
    "with reentrance": lambda block, head, x: head(checkpoint(block, x, use_reentrant=True)),
    "within another": lambda block, head, x: checkpoint(
        lambda z: head(checkpoint(block, z, use_reentrant=True)), x, use_reentrant=False
    ),
    "of named arguments": lambda block, head, x: head(checkpoint(lambda x: block(x), x=x, use_reentrant=False)),
    "of a sequence": lambda block, head, x: head(checkpoint_sequential(block, 2, x, use_reentrant=False)),
    "within vmap": lambda block, head, x: head(vmap(lambda row: checkpoint(block, row, use_reentrant=False))(x)),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's own, where nothing is followed
@pytest.mark.parametrize("name", [name for name in CHECKPOINTED if name != "as it is"])
def test_checkpoints_are_calls(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    def make(function: Callable[..., Tensor]) -> nn.Module:
        block = nn.Sequential(nn.Conv1d(4, 3, 5), nn.GELU(), nn.Conv1d(3, 3, 5), nn.Tanh())
        return seeded(lambda: Apply(lambda b, h, x: function(b, h, x).sum((1, 2)), block, nn.Conv1d(3, 2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = make(CHECKPOINTED[name])
        torch.manual_seed(0)
        second = make(CHECKPOINTED["as it is"])
    found, expected = explain(first, *pairs), explain(second, *pairs)
    assert worst_delta(found) < 1e-12
    assert relative_difference(found.hypothetical, expected.hypothetical) < 1e-12


def test_hooks_on_saved_tensors_are_refused_with_what_to_do(pairs: tuple[Tensor, Tensor]) -> None:
    def forward(conv: nn.Module, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return conv(x).relu().sum((1, 2))

    with pytest.raises(UnsupportedModelError, match=r"save_on_cpu.*switch it off"):
        explain(seeded(lambda: Apply(forward, nn.Conv1d(4, 3, 5))), *pairs)


REFUSED: dict[str, tuple[Function, str]] = {
    "along the batch": (
        lambda z: vmap(lambda c: c.cumsum(0), 1, 1)(z),
        r"'vmap' in .* makes a row of the batch depend",
    ),
    "random": (lambda z: vmap(lambda r: r + torch.randn(36), randomness="different")(z), "'randn' in .* random"),
    "an index": (lambda z: vmap(lambda r: r * r.argmax())(z), r"'mul' in .*\(Sandwich\).* what 'argmax' made"),
    "grad": (
        lambda z: torch.func.grad(lambda q: (q**2).sum())(z),
        "'pow' in .* torch.func.grad.*torch.vmap is followed",
    ),
    "jacrev": (lambda z: vmap(torch.func.jacrev(lambda q: q.exp().sum()))(z), "'exp' in .* torch.func.grad"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    function, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message):
        explain(model(function), *pairs)


def test_an_audit_lists_what_is_within(pairs: tuple[Tensor, Tensor]) -> None:
    net = model(TWINS["relative shift of attention"][0])
    treatments = {operation.operation: operation.treatment for operation in audit(net, pairs[0]).operations}
    assert treatments["einsum"] == treatments["as_strided"] == "linear"
    refused = audit(model(lambda z: vmap(lambda r: r * r.argmax())(z)), pairs[0]).refused
    assert any("'mul'" in reason for reason in refused)


def test_the_host_has_its_own_vmap_and_checkpoints_meanwhile(pairs: tuple[Tensor, Tensor]) -> None:
    """In another thread, while a pass is on."""
    found: list[Tensor] = []

    def of_the_host() -> None:
        x = torch.ones(3, 2, requires_grad=True)
        for use_reentrant in (True, False):
            y = checkpoint(lambda z: vmap(torch.exp)(z), x, use_reentrant=use_reentrant)
            y.sum().backward()
            found.append(x.grad.clone())

    def forward(conv: nn.Module, x: Tensor) -> Tensor:
        thread = threading.Thread(target=of_the_host)
        thread.start()
        thread.join()
        return conv(x).relu().sum((1, 2))

    explain(seeded(lambda: Apply(forward, nn.Conv1d(4, 3, 5))), *pairs)
    gradient = torch.ones(3, 2).exp()
    assert len(found) > 1
    assert torch.equal(found[0], gradient)
    assert torch.equal(found[1], 2 * gradient)
