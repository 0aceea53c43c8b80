"""What a model's input can be: each setting against a wrapper written by hand, in float64 through the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlshap_core.audit import audit
from dlshap_core.engine import Attribution, attribute
from dlshap_core.one_hot import one_hot
from pipeline.config.model_input import InputSettings
from pipeline.execution.preflight import NOT_EXACT
from pipeline.messages.errors import UserError
from pipeline.models.adapted import adapted
from pipeline.models.forward_arguments import wrong_number

LENGTH, N, R = 24, 3, 4
TOKENS = [1, 2, 3, 4]
random = np.random.RandomState(0)
CODES, REFERENCES = random.randint(0, 4, (N, LENGTH)), random.randint(0, 4, (N, R, LENGTH))
UNKNOWN = np.where(np.arange(LENGTH) % 7 == 3, 4, CODES), np.where(np.arange(LENGTH) % 7 == 3, 4, REFERENCES)
TRACKS, DOSE, TRACK = (torch.from_numpy(random.randn(N, *shape)) for shape in ((2, LENGTH), (1,), (LENGTH,)))


def coded(codes: np.ndarray) -> Tensor:
    return one_hot(codes.astype(np.uint8))


def explained(model: nn.Module, args: Sequence[Tensor], codes: tuple[np.ndarray, np.ndarray]) -> Attribution:
    x, references = map(coded, codes)
    return attribute(model.double(), x, references, args=list(args), targets=(0,), dtype=torch.float64)


def require_same(
    model: nn.Module,
    given: InputSettings,
    twin: Callable[..., Tensor],
    args: Sequence[Tensor] = (),
    codes: tuple[np.ndarray, np.ndarray] = (CODES, REFERENCES),
) -> None:
    """The settings are sound; the model with them has the twin's attributions, and all are exact."""
    assert list(given.input_problems()) == []

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, *args: Tensor) -> Tensor:
            return twin(x, *args)

    model.eval().requires_grad_(False)
    found, wanted = explained(adapted(model, given), args, codes), explained(Twin(), args, codes)
    assert float(wanted.hypothetical.abs().max()) > 1e-3
    torch.testing.assert_close(found.hypothetical, wanted.hypothetical, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.prediction, wanted.prediction, rtol=0, atol=1e-15)
    assert float(found.convergence_delta.abs().max()) < 1e-14
    seen = audit(adapted(model, given), coded(codes[0]), args=list(args), dtype=torch.float64)
    assert not [one for one in seen.operations if one.treatment.startswith(NOT_EXACT)]


class Net(nn.Module):
    """Of any length, or of one."""

    def __init__(self, channels: int = 4, length: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.length = nn.Conv1d(channels, 6, 5), length
        self.out = nn.Linear(6 * (length - 4) if length else 6, 1)

    def forward(self, x: Tensor, dose: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        h = F.gelu(self.conv(x))
        y = self.out(h.flatten(1) if self.length else h.mean(-1) + h.amax(-1)) * scale
        return y if dose is None else y * (1 + dose)


# --- channels -------------------------------------------------------------------------------------------------------


def test_tracks_and_numbers_are_channels_behind_the_bases() -> None:
    model, half = Net(7), torch.full((N, 1, LENGTH), 0.5)
    given = InputSettings(channels=["arg_0", 0.5])
    require_same(
        model, given, lambda x, a: model(torch.cat([x, a, half[:1].to(x).expand(len(x), -1, -1)], 1)), [TRACKS]
    )


def test_channels_are_put_anywhere_and_say_where_no_base_is_known() -> None:
    model, given = Net(8), InputSettings(channels=["arg_0", "n", "bases", "arg_1"], bases="TGCA")

    def twin(x: Tensor, tracks: Tensor, dose: Tensor) -> Tensor:
        unknown, everywhere = 1 - x.sum(1, keepdim=True), dose[:, :, None].expand(-1, -1, LENGTH)
        return model(torch.cat([tracks, unknown, x.flip(1), everywhere], 1))

    require_same(model, given, twin, [TRACKS, DOSE], UNKNOWN)


def test_other_extra_inputs_stay_arguments_and_tracks_are_padded_with_the_sequence() -> None:
    class Last(Net):
        def forward(self, x: Tensor, dose: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
            assert x.shape[1:] == (31, 5)
            return super().forward(x.transpose(1, 2), dose, scale=scale)

    model = Last(5)
    given = InputSettings(channels=["arg_1"], input_layout="nlc", length=31, pad="n", forward={"scale": 2.5})

    def twin(x: Tensor, dose: Tensor, track: Tensor) -> Tensor:
        padded = torch.cat([F.pad(x, (3, 4), value=0.25), F.pad(track[:, None], (3, 4))], 1)
        return Net.forward(model, padded, dose) * 2.5

    require_same(model, given, twin, [DOSE, TRACK])


@pytest.mark.parametrize(("shape", "fix"), [((LENGTH, 2), r".*transpose it to \(N, 2, 24\)"), ((2, 3), "")])
def test_what_is_no_channel_is_refused(shape: tuple[int, ...], fix: str) -> None:
    with pytest.raises(UserError, match=r"model\.channels: arg_0 is \(N, .*expected a track \(N, 24\)" + fix):
        adapted(Net(6), InputSettings(channels=["arg_0"]))(coded(CODES).float(), torch.zeros(N, *shape))


# --- flanks and padding ---------------------------------------------------------------------------------------------


def test_padding_has_its_odd_position_on_the_right() -> None:
    model = Net(length=41)
    require_same(model, InputSettings(length=41), lambda x: model(F.pad(x, (8, 9))))
    require_same(model, InputSettings(length=41, pad="n"), lambda x: model(F.pad(x, (8, 9), value=0.25)))


def test_flanks_lie_within_the_padding() -> None:
    model = Net(length=41)

    def twin(x: Tensor) -> Tensor:
        left, right = (coded(np.array([some])).to(x).expand(len(x), -1, -1) for some in ([0, 1, 2, 3, 4], [3, 3]))
        return model(F.pad(torch.cat([left, x, right], 2), (5, 5), value=0.25))

    require_same(model, InputSettings(length=41, pad="n", flanks=["acgtn", "TT"]), twin)


def test_padding_shortens_nothing() -> None:
    with pytest.raises(
        UserError, match=r"model\.length=27 is shorter than the sequences, of 24 .*with their flanks, 28"
    ):
        adapted(Net(), InputSettings(length=27, flanks=["ACGT", None]))(coded(CODES).float())


# --- arguments that are the same for all ------------------------------------------------------------------------------


class Many(nn.Module):
    """With everything that a forward can have."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.organism = Net(), nn.Embedding(3, 1)

    def forward(
        self,
        organism: Tensor,
        dna: Tensor,
        other: Tensor,
        dose: Tensor,
        /,
        head: str = "",
        human: bool = False,
        **more: Any,
    ) -> Tensor:
        assert (head, human, more) == ("human", True, {"widths": [1, 2]})
        return self.net(dna) * self.organism(organism) + self.net(other) * dose


def test_constants_numbers_texts_and_a_second_sequence() -> None:
    model, same = Many(), {"head": "human", "human": True, "widths": [1, 2]}
    constants: dict[str, Any] = {"organism": {"rows": 2}, "other": {"sequence": "n"}, **same}

    def twin(x: Tensor, dose: Tensor) -> Tensor:
        return model(torch.full((len(x),), 2), x, torch.full_like(x, 0.25), dose, **same)

    require_same(model, InputSettings(input="dna", forward=constants), twin, [DOSE])
    constants["other"] = {"sequence": "ACGTNACG"}

    def of_text(x: Tensor, dose: Tensor) -> Tensor:
        other = coded(np.array([[0, 1, 2, 3, 4, 0, 1, 2]])).to(x).expand(len(x), -1, -1)
        turned = [0, 2, 1, 3]
        return model(torch.full((len(x),), 2), x[:, turned], other[:, turned], dose, **same)

    require_same(model, InputSettings(input="dna", forward=constants, bases="AGCT"), of_text, [DOSE])


def test_extra_inputs_fill_what_is_left_also_behind_a_star() -> None:
    class Starred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor, weights: Tensor, *controls: Tensor) -> Tensor:
            total = sum(control.sum(1, keepdim=True) for control in controls)
            return self.net(x) * weights.sum() + total

    model, weights = Starred(), torch.tensor([[1.5, 2]])
    given = InputSettings(forward={"weights": {"tensor": [[1.5, 2]]}})
    require_same(model, given, lambda x, a, b: model(x, weights.to(x), a, b), [DOSE, TRACK])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": "dnb"}, r"model\.input=dnb: Net\.forward\(x, dose=None, \*, scale=1\.0\) has no argument 'dnb'"),
        ({"forward": {"scales": 1}}, r"model\.forward\.scales: Net\.forward\(.*\) has no .*; did you mean scale\?"),
        ({"forward": {"x": 1}}, r"model\.forward\.x: x is the sequence itself; .*add model\.input="),
    ],
)
def test_unknown_arguments_are_refused_with_the_signature(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted(Net(), InputSettings(**given))


def test_constants_count_among_the_arguments_that_forward_needs() -> None:
    assert wrong_number(Many(), ["dose"], "dna", {"organism", "other"}) is None
    assert "needs 3 extra inputs and dataset.args gives none; " in str(wrong_number(Many(), [], "dna"))
    assert "or what is the same for all sequences: model.forward.organism=..." in str(wrong_number(Many(), [], "dna"))
    assert "takes 1 extra input and" in str(wrong_number(Net(), ["a", "b"], None, {"scale"}))


# --- tokens ---------------------------------------------------------------------------------------------------------


class Embedded(Net):
    """Takes whole numbers into an embedding."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__(channels)
        self.embedding = nn.Embedding(8, channels, padding_idx=0)

    def looked_up(self, x: Tensor, tokens: Sequence[int]) -> Tensor:
        """What the embedding gives for one-hot rows (N, K, L), channels last."""
        return x.transpose(1, 2) @ self.embedding.weight[list(tokens)]

    def rest(self, h: Tensor) -> Tensor:
        return Net.forward(self, h.transpose(1, 2))

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return self.rest(self.embedding(ids))


def with_unknown(x: Tensor) -> Tensor:
    return torch.cat([x, 1 - x.sum(1, keepdim=True)], 1)


def test_an_embedding_is_a_product_with_its_matrix() -> None:
    model = Embedded()
    require_same(model, InputSettings(tokens=TOKENS), lambda x: model.rest(model.looked_up(x, TOKENS)))


@pytest.mark.parametrize("of_n", [6, 2])
def test_n_has_a_token_of_its_own_or_a_bases(of_n: int) -> None:
    model, tokens = Embedded(), [*TOKENS, of_n]
    require_same(
        model,
        InputSettings(tokens=tokens),
        lambda x: model.rest(model.looked_up(with_unknown(x), tokens)),
        codes=UNKNOWN,
    )


def test_n_without_a_token_is_refused() -> None:
    model = adapted(Embedded(), InputSettings(tokens=TOKENS))
    for call in (model, lambda x: explained(model, (), UNKNOWN)):
        with pytest.raises(
            UserError, match=r"no token for N; add it as the fifth, such as model\.tokens=\[1,2,3,4,0\]"
        ):
            call(coded(UNKNOWN[0]).float())


@pytest.mark.parametrize(("pad", "token"), [(0, 0), ("n", 6)])
def test_special_tokens_lie_around_and_the_padding_has_one(pad: Any, token: int) -> None:
    model, tokens = Embedded(), [*TOKENS, 6]
    given = InputSettings(tokens=tokens, flanks=[[5, 7], "A"], length=30, pad=pad)

    def twin(x: Tensor) -> Tensor:
        def some(*tokens: int) -> Tensor:
            return model.embedding.weight[list(tokens)].expand(len(x), -1, -1)

        inner = model.looked_up(with_unknown(x), tokens)
        return model.rest(torch.cat([some(token, 5, 7), inner, some(1, token, token)], 1))

    require_same(model, given, twin, codes=UNKNOWN)


class Transformer(Embedded):
    """Masks, positions and special tokens from the numbers, as many models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Embedding(64, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        n, length = input_ids.shape
        assert 0 not in input_ids[:, [-1, 0]]
        assert input_ids.dtype == torch.long
        assert (input_ids < 8).all()
        cls = torch.full((n, 1), 5, dtype=torch.long, device=input_ids.device)
        ids = F.pad(torch.cat([cls, input_ids], 1), (0, 1), value=7).to(torch.int32).long()
        attention_mask = ids.ne(0).int() if attention_mask is None else attention_mask
        places = (torch.cumsum(attention_mask, 1).type_as(attention_mask) * attention_mask).long()
        h = self.embedding(ids) + self.position(places) + self.position(torch.arange(length + 2).expand_as(ids))
        h = h.masked_fill((ids == 6).unsqueeze(-1), 0.0)
        far = (1.0 - attention_mask[:, None, :].to(h.dtype)) * torch.finfo(h.dtype).min
        return self.rest((h @ h.mT + far).softmax(-1) @ h)


def test_masks_positions_and_special_tokens_from_the_numbers() -> None:
    model = Transformer()

    def twin(x: Tensor) -> Tensor:
        first, last = (model.embedding.weight[[token]].expand(len(x), -1, -1) for token in (5, 7))
        h = torch.cat([first, model.looked_up(x, TOKENS), last], 1)
        h = h + model.position.weight[1 : LENGTH + 3] + model.position.weight[: LENGTH + 2]
        return model.rest((h @ h.mT).softmax(-1) @ h)

    require_same(model, InputSettings(tokens=TOKENS, input="input_ids"), twin)


def test_a_mask_of_an_unknown_base() -> None:
    class Masked(Embedded):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            known = ~(ids == 0)
            h = self.embedding(ids) * known.unsqueeze(-1).to(self.out.weight.dtype)
            return self.rest(h.masked_fill(ids.eq(0)[..., None], 0.5))

    model, tokens = Masked(), [*TOKENS, 0]

    def twin(x: Tensor) -> Tensor:
        unknown = 1 - x.sum(1)[:, :, None]
        return model.rest((model.looked_up(with_unknown(x), tokens) * (1 - unknown)).masked_fill(unknown > 0.5, 0.5))

    require_same(model, InputSettings(tokens=tokens), twin, codes=UNKNOWN)


def test_tokens_that_are_renamed_replaced_and_weigh_what_the_model_computes() -> None:
    complement, weights = torch.tensor([0, 4, 3, 2, 1, 5, 6, 7]), torch.linspace(0.5, 2, 8, dtype=torch.float64)
    first, last = torch.arange(LENGTH) < 2, torch.arange(LENGTH) > LENGTH - 3

    class Renamed(Embedded):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            same = complement[complement[ids]].flip(1)
            turned = torch.where(first.expand_as(ids), 5, complement.expand(len(ids), -1).gather(1, same))
            h = self.embedding(turned.where(~last, other=torch.full_like(ids, 7)))
            h = h * weights[ids].unsqueeze(-1) + h * (ids == 0).unsqueeze(-1) - F.gelu(h) * ids[..., None]
            return self.rest(torch.where((ids == 0)[..., None], 0.25, h))

    model, tokens = Renamed(), [*TOKENS, 0]

    def twin(x: Tensor) -> Tensor:
        slots = with_unknown(x).transpose(1, 2)
        turned = slots.flip(1) @ model.embedding.weight[[4, 3, 2, 1, 0]]
        around = (model.embedding.weight[[token]] for token in (5, 7))
        ends = [some.expand(len(x), 2, -1) for some in around]
        h = torch.cat([ends[0], turned[:, 2:-2], ends[1]], 1)
        unknown, number = slots[..., 4:] > 0.5, slots @ torch.tensor([[1.0], [2], [3], [4], [0]]).to(x)
        h = h * (slots @ weights[tokens].to(x)).unsqueeze(-1) + h * unknown - F.gelu(h) * number
        return model.rest(torch.where(unknown, 0.25, h))

    require_same(model, InputSettings(tokens=tokens), twin, codes=UNKNOWN)


MADE_ONE_HOT: list[Callable[[Tensor], Tensor]] = [
    lambda ids: F.one_hot(ids - 1, 5),
    lambda ids: (ids.unsqueeze(-1) == torch.arange(1, 6)).float(),
    lambda ids: torch.eye(5, dtype=torch.float64)[(5 - (5 - ids)) % 5 - 1],
    lambda ids: torch.stack([ids == token for token in range(1, 6)], -1).double(),
]


@pytest.mark.parametrize("made", MADE_ONE_HOT)
def test_one_hot_codes_made_of_the_numbers(made: Callable[[Tensor], Tensor]) -> None:
    class Coder(Embedded):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            return self.rest(made(ids).to(self.out.weight.dtype))

    model = Coder()
    require_same(model, InputSettings(tokens=TOKENS), lambda x: model.rest(F.pad(x.transpose(1, 2), (0, 1))))


def test_numbers_are_moved_and_used_as_numbers() -> None:
    class Moved(Embedded):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            both = torch.stack([ids, ids.flip(1)], 1)[:, :, 2:].reshape(-1, LENGTH - 2)
            h = self.embedding(both).unflatten(0, (-1, 2)).sum(1)
            return self.rest(h * (ids[:, 1:-1].float() / 4).unsqueeze(-1).mean(1, keepdim=True))

    model = Moved()

    def twin(x: Tensor) -> Tensor:
        h = model.looked_up(x, TOKENS)
        number = (x.transpose(1, 2) @ torch.tensor(TOKENS).to(x)) / 4
        return model.rest((h[:, 2:] + h.flip(1)[:, 2:]) * number[:, 1:-1].mean(1)[:, None, None])

    require_same(model, InputSettings(tokens=TOKENS), twin)


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda ids: ids.max(), "max"),
        (lambda ids: ids.tolist(), "tolist"),
        (lambda ids: ids.numpy(), "numpy"),
        (lambda ids: np.asarray(ids), "__array__"),
        (lambda ids: int(ids[0, 0]), "__int__"),
        (lambda ids: float(ids[0, 0]), "__float__"),
        (lambda ids: range(5)[ids[0, 0]], "__index__"),
        (lambda ids: 1 if ids[0, 0] else 0, "__bool__"),
        (lambda ids: f"{ids[0, 0]}", "__format__"),
        (lambda ids: ids.add_(1), "add_"),
        (lambda ids: ids.__setitem__(0, 1), "__setitem__"),
        (lambda ids: ids + torch.arange(ids.shape[1]), "add with other numbers at each position"),
        (lambda ids: ids[:, 1:] * 4 + ids[:, :-1], "add"),
        (lambda ids: torch.where(ids == 2, 3, ids), "where"),
        (lambda ids: ids == ids.flip(1), "eq"),
        (lambda ids: torch.cat([ids, torch.zeros(N, 1)], 1), "joining with numbers that have a fraction"),
        (lambda ids: torch.where(ids > 2, input=ids, other=1), "where"),
        (lambda ids: torch.zeros(N, 8, LENGTH).scatter_(1, ids.unsqueeze(1), 1), "scatter_"),
        (lambda ids: F.one_hot(ids), "one_hot without num_classes"),
        (lambda ids: F.embedding(ids, torch.ones(8, 2), max_norm=1.0), "embedding with max_norm"),
        (lambda ids: F.embedding_bag(ids, torch.ones(8, 2)), "embedding_bag"),
        (lambda ids: torch.empty(N, LENGTH, dtype=torch.long).copy_(ids), "copy_"),
        (lambda ids: ids.sort(1), "sort"),
        (lambda ids: F.linear(ids, torch.ones(2, LENGTH)), "linear"),
        (lambda ids: ids.data_ptr(), "data_ptr"),
        (lambda ids: torch.as_tensor(ids), "as_tensor"),
    ],
)
def test_whatever_else_is_done_with_the_numbers_is_refused_by_name(use: Callable[[Tensor], Any], what: str) -> None:
    class Other(Embedded):
        def forward(self, ids: Tensor) -> Any:  # type: ignore[override]
            return use(ids)

    model = adapted(Other(), InputSettings(tokens=TOKENS))
    with pytest.raises(UserError) as caught:
        model(coded(CODES).float())
    assert str(caught.value).startswith(f"model.tokens: '{what}' of the tokens in {__file__}, line ")


def test_a_token_that_is_not_in_the_embedding() -> None:
    with pytest.raises(UserError, match=r"model\.tokens: 8 is not in the embedding of 8 rows in .*; expected 0 to 7"):
        adapted(Embedded(), InputSettings(tokens=[1, 2, 3, 8]))(coded(CODES).float())


# --- both strands within a model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [lambda x: x.flip([1, 2]), lambda x: x[:, [3, 2, 1, 0]].flip(-1)])
@pytest.mark.parametrize("join", [lambda a, b: (a + b) / 2, torch.maximum])
def test_models_that_look_at_both_strands(turn: Callable[[Tensor], Tensor], join: Callable[..., Tensor]) -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor) -> Tensor:
            return join(self.net(x), self.net(turn(x)))

    model = Siamese().eval().requires_grad_(False)
    both = explained(model, (), (CODES, REFERENCES))
    turned = explained(model, (), (3 - CODES[:, ::-1], 3 - REFERENCES[..., ::-1]))
    torch.testing.assert_close(turned.hypothetical.flip(-1, -2), both.hypothetical, rtol=0, atol=1e-15)
    assert float(both.convergence_delta.abs().max()) < 1e-14
    if join is not torch.maximum:  # the mean is linear: that of both strands' attributions
        one = explained(model.net, (), (CODES, REFERENCES)).hypothetical
        other = explained(model.net, (), (3 - CODES[:, ::-1], 3 - REFERENCES[..., ::-1])).hypothetical
        torch.testing.assert_close(both.hypothetical, (one + other.flip(-1, -2)) / 2, rtol=0, atol=1e-15)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": ["arg1"]}, "model.channels has arg1; expected arg_0 for the first entry of dataset.args"),
        ({"channels": [True]}, "model.channels has True"),
        ({"channels": [f"arg_{'9' * 5000}"]}, "expected arg_0 for the first entry of dataset.args"),
        ({"channels": ["bases", "bases"]}, "model.channels has bases twice"),
        ({"tokens": [1, 2, 3]}, "model.tokens=[1, 2, 3]; expected the whole numbers of A, C, G and T"),
        ({"tokens": [1, 2, 3, 3]}, "model.tokens=[1, 2, 3, 3]"),
        ({"tokens": "ACGT"}, "model.tokens=ACGT"),
        ({"tokens": TOKENS, "bases": "AGCT"}, "model.tokens and model.bases=AGCT contradict each other"),
        ({"tokens": TOKENS, "input_layout": "nlc"}, "model.tokens and model.input_layout=nlc contradict"),
        ({"tokens": TOKENS, "channels": [0]}, "model.tokens and model.channels=[0] contradict each other"),
        ({"tokens": TOKENS, "length": 9}, "model.length=9 and model.tokens need model.pad: n, or the token"),
        ({"tokens": TOKENS, "length": 9, "pad": "zeros"}, "model.pad=zeros; expected n or a token"),
        ({"tokens": TOKENS, "length": 9, "pad": "n"}, "model.pad=n and model.tokens=[1,2,3,4]: no token for N"),
        ({"pad": "n"}, "model.pad=n needs model.length"),
        ({"pad": [1], "length": 9}, "model.pad=[1]; expected zeros or n"),
        ({"flanks": ["AC"]}, "model.flanks=[AC]; expected two, before and after"),
        ({"flanks": ["AC", "AX"]}, "model.flanks has AX; expected texts of A, C, G, T and N"),
        ({"flanks": [[1], "A"]}, "model.flanks has [1]; expected texts"),
        ({"forward": {"a": {"x": 1}}}, "model.forward.a={'x': 1}; expected one of rows, tensor or sequence"),
        ({"forward": {"a": {"rows": "b"}}}, "expected numbers for rows"),
        ({"forward": {"a": {"tensor": [[1], [1, 2]]}}}, "expected numbers for tensor"),
        ({"forward": {"a": {"sequence": "ACX"}}}, "expected a text of A, C, G, T and N, or zeros or n"),
        ({"forward": {"a": {"sequence": "zeros"}}, "tokens": TOKENS}, "there is no such token"),
        ({"forward": {"a": [1, {"b": 1}]}}, "expected numbers, texts, true or false, or lists of these"),
        ({"input": "a", "forward": {"a": 1}}, "model.input=a and model.forward.a contradict each other"),
    ],
)
def test_settings_that_cannot_be_meant(given: dict[str, Any], message: str) -> None:
    (problem,) = InputSettings(**given).input_problems()
    assert problem.startswith(message) or message in problem
