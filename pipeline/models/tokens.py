"""Models that take sequences as whole numbers (N, L): what is explained stays one-hot.

The model gets a tensor of whole numbers whose values are nowhere. It is known by planes, one for each number (token),
that are 1 where it stands: an embedding is their product with its matrix, which for one-hot rows is the same, and so
are one-hot codes, moved axes, joined tokens, arithmetic with numbers, and tests such as `ids != 0`. Whatever else a
model does with the numbers is refused by its name.

Shape legend: N sequences, K tokens, L positions.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import MethodDescriptorType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from dlshap_core.rules.kinds import Constant
from pipeline.messages.errors import UserError
from pipeline.models.forward_arguments import token_of

_MOST = 64  # different constants that are joined with the tokens of a sequence
_BETWEEN = tuple(str(Path(file).parent) for file in (torch.__file__, __file__))  # the model and what is called here


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What asks for the shape or the type alone.
_READS = _words(
    """dim size numel nelement ndimension __len__ shape dtype ndim layout requires_grad is_floating_point is_complex
    is_signed is_tensor is_contiguous itemsize is_sparse is_nested is_leaf grad_fn"""
)
_DEVICE = _words("device is_cuda is_cpu get_device")
_LIKE = _words("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor")
_LIKE_SECOND = _words("type_as expand_as view_as reshape_as to")
# What moves the numbers, or joins them with others.
_JOINS = _words("cat concat concatenate stack hstack vstack")
_MOVES = _words(
    """view reshape flatten unflatten permute transpose t T mT swapaxes swapdims movedim moveaxis unsqueeze squeeze
    expand expand_as view_as reshape_as repeat tile repeat_interleave flip fliplr flipud roll narrow select __getitem__
    index_select chunk split split_with_sizes tensor_split unbind __iter__ unfold broadcast_to pad masked_fill where"""
)
# What makes of each number another, wherever it stands.
_MAPS = _words(
    """add sub subtract rsub mul multiply neg negative abs clamp clip clamp_min clamp_max remainder fmod floor_divide eq
    ne lt le gt ge not_equal less less_equal greater greater_equal logical_not bitwise_not invert isin to type type_as
    long int short byte bool float double half bfloat16 contiguous clone detach cpu cuda square pow div true_divide"""
)


_OPERATORS = {
    **{f"__{name}__": name for name in _words("eq ne lt le gt ge add sub mul neg abs pow rsub")},
    "__radd__": "add",
    "__rmul__": "mul",
    "__mod__": "remainder",
    "__floordiv__": "floor_divide",
    "__truediv__": "div",
    "__invert__": "bitwise_not",
}


class Slots(nn.Module):
    """A model of one-hot (N, K, L) over the tokens of the bases, of N, and of flanks around one of the bases (N, 4, L).

    Args:
        tokens: of A, C, G and T, and of N where there are five.
        n_more: tokens that are in no sequence.
    """

    def __init__(self, model: nn.Module, tokens: Sequence[int], n_more: int) -> None:
        super().__init__()
        self.model, self.tokens, self.n_more = model, list(tokens), n_more

    def forward(self, x: Tensor, *args: Tensor) -> Any:
        """Raises UserError for a base that is not known, where N has no token."""
        parts = [x]
        if len(self.tokens) > 4:
            parts.append(1 - x.sum(1, keepdim=True))
        else:
            require_known(x, self.tokens)
        if self.n_more:
            parts.append(x.new_zeros(len(x), self.n_more, x.shape[2]))
        return self.model(torch.cat(parts, 1) if len(parts) > 1 else x, *args)


def require_known(x: Tensor, tokens: Sequence[int]) -> None:
    """Raises UserError where a position of one-hot (N, 4, L) has no base. The engine sees no operation in it."""
    if has_torch_function_unary(x):
        handle_torch_function(require_known, (x,), x, tokens)
    elif not bool((x.sum(1) > 0).all()):
        token_of(4, tokens)


require_known.dlshap_kind = Constant("checked")  # type: ignore[attr-defined]


class Tokens(nn.Module):
    """A model that takes whole numbers (N, L) around which their one-hot codes (N, K, L) are given."""

    def __init__(self, model: nn.Module, tokens: Sequence[int]) -> None:
        super().__init__()
        self.model, self.tokens = model, list(tokens)

    def forward(self, x: Tensor, *args: Tensor) -> Any:
        planes: dict[int, Tensor] = {}
        for slot, token in enumerate(self.tokens):
            planes[token] = planes[token] + x[:, slot] if token in planes else x[:, slot]
        ids = Coded.of(planes)
        with _Translation():
            return self.model(ids, *args)


class Coded(Tensor):
    """Whole numbers or truth values by planes, which sum to 1: `planes[t]` is 1 where t stands. It has no values."""

    planes: dict[Any, Tensor]

    @staticmethod
    def of(planes: Mapping[Any, Tensor], dtype: torch.dtype = torch.long) -> "Coded":
        """Of a number's planes, all of one shape."""
        shape = next(iter(planes.values())).shape
        found = torch.empty(shape, dtype=dtype, device="meta").as_subclass(Coded)
        found.planes = dict(planes)
        return found

    @property
    def plane(self) -> Tensor:
        """Any of them."""
        return next(iter(self.planes.values()))

    def template(self) -> Tensor:
        """A tensor of this shape and type, on the device of the planes."""
        return torch.zeros(self.plane.shape, dtype=self.dtype, device=self.plane.device)

    def mask(self) -> Tensor:
        """The truth values as the engine follows them."""
        return self.planes[True] > 0.5


class _Translation(TorchFunctionMode):
    """Hands every torch function that is called on `Coded` to `_translated`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, Coded) for leaf in _leaves((args, kwargs))):
            return func(*args, **kwargs)
        return _translated(func, _name(func), args, kwargs)


def _translated(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function gives for tokens, from their planes."""
    first = args[0] if args else next(iter(kwargs.values()))
    if isinstance(first, Coded):
        if name in _READS:
            return func(*args, **kwargs)
        if name in _DEVICE:
            return func(first.plane, *args[1:], **kwargs)
        if name in _LIKE:
            return func(first.template(), *args[1:], **kwargs)
    elif name in _LIKE_SECOND and len(args) > 1 and isinstance(args[1], Coded):
        return func(first, args[1].template(), *args[2:], **kwargs)
    if (table := _table(name, args, kwargs)) is not None:
        return _looked_up(*table)
    if name == "one_hot" and isinstance(first, Coded):
        return _one_hot(first, *args[1:], **kwargs)
    if name == "__contains__" and isinstance(first, Coded):
        return bool(_translated(torch.eq, "eq", args, {}).any())
    coded = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Coded)]
    if name in _JOINS | _MOVES:
        values, call = _joined(func, name, args, kwargs)
        if 0 < len(coded) == sum(isinstance(value, Coded) for value in values):
            return _moved(values, call)
    if name in _MAPS and len(coded) == 1:
        return _mapped(func, coded[0], args, kwargs)
    if all(leaf.dtype == torch.bool for leaf in coded):
        return func(*_replaced(args, lambda leaf: leaf.mask()), **_replaced(kwargs, lambda leaf: leaf.mask()))
    return _refuse(name)


def _table(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Coded, Tensor] | None:
    """The tokens and the table, where rows of a table are looked up by tokens."""
    if name == "embedding":
        if kwargs.get("max_norm") is not None or (len(args) > 3 and args[3] is not None):
            _refuse("embedding with max_norm")
        both = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)][:2]
        return (both[0], both[1]) if isinstance(both[0], Coded) else (both[1], both[0])  # type: ignore[return-value]
    if name == "gather":
        named = dict(zip(("input", "dim", "index"), args, strict=False)) | kwargs
        rows, index = named["input"], named["index"]
        if isinstance(rows, Coded) or not isinstance(index, Coded) or named["dim"] not in (1, -1):
            return None
        is_table = rows.ndim == index.ndim == 2 and bool((rows == rows[:1]).all())  # one that was expanded
        return (index, rows[0]) if is_table else None
    if name not in ("__getitem__", "index_select") or isinstance(args[0], Coded):
        return None
    index = args[1] if name == "__getitem__" else args[2] if args[1] == 0 else None
    index = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    return (index, args[0]) if isinstance(index, Coded) and index.dtype != torch.bool else None


def _looked_up(ids: Coded, table: Tensor) -> Tensor:
    """Rows of a table (rows, D): (..., D); of a list of whole numbers, these in place of the tokens."""
    tokens, n = list(ids.planes), len(table)
    if wrong := [token for token in tokens if not 0 <= token < n]:
        raise UserError(
            f"model.tokens: {wrong[0]} is not in the embedding of {n} rows in {_place()}; expected 0 to {n - 1}"
        )
    if table.grad_fn is not None or not (table.is_floating_point() or table.ndim == 1):
        _refuse("indexing of what is no matrix of weights")
    if not table.is_floating_point():
        return _renamed(ids.planes, {token: table[token] for token in tokens})
    rows = torch.stack(list(ids.planes.values()), -1).to(table.dtype)
    found = F.linear(rows, table[torch.tensor(tokens, device=table.device)].reshape(len(tokens), -1).T)
    return found if table.ndim == 2 else found.reshape(*ids.shape, *table.shape[1:])


def _one_hot(ids: Coded, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        _refuse("one_hot without num_classes")
    return _looked_up(ids, torch.eye(num_classes, dtype=ids.plane.dtype, device=ids.plane.device))


def _joined(
    func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The values among the arguments of a function that moves values, and how it is called with others of them."""
    if name in _JOINS:
        named = {key: value for key, value in kwargs.items() if key != "tensors"}
        many, rest = (args[0], args[1:]) if args else (kwargs["tensors"], ())
        return list(many), lambda values: func(values, *rest, **named)
    if name == "where":
        order = ("input", "condition") if isinstance(func, MethodDescriptorType) else ("condition", "input")
        named = dict(zip((*order, "other"), args, strict=False)) | kwargs
        values = [named[key] for key in ("input", "other") if key in named]
        return values, lambda values: torch.where(named["condition"], *values)
    if not args:
        return [None], lambda values: None  # all by name: rare enough to be refused
    first, rest = args[0], args[1:]
    if name == "masked_fill":
        named = dict(zip(("mask", "value"), rest, strict=False)) | kwargs
        return [first, named["value"]], lambda values: func(values[0], named["mask"], values[1])
    if name == "pad":
        named = dict(zip(("pad", "mode", "value"), rest, strict=False)) | kwargs
        if named.get("mode", "constant") == "constant":
            filled = named.pop("value", None) or 0
            return [first, filled], lambda values: func(values[0], **named, value=values[1])
    return [first], lambda values: func(values[0], *rest, **kwargs)


def _moved(values: Sequence[Any], call: Callable[[list[Any]], Any]) -> Any:
    """Every plane moved alike; of what the tokens are joined with, the places of this token."""
    coded = [value for value in values if isinstance(value, Coded)]
    tokens = list(dict.fromkeys(token for value in values for token in _tokens_of(value)))
    if len(tokens) > _MOST:
        _refuse(f"joining {len(tokens)} different tokens")
    if any(isinstance(value, Tensor) and value.is_floating_point() for value in values):
        _refuse("joining with numbers that have a fraction")
    is_bool = all(value.dtype == torch.bool for value in values if isinstance(value, Tensor))
    kind, like = torch.bool if is_bool else coded[0].dtype, coded[0].plane
    found = {token: call([_plane(value, token, like) for value in values]) for token in tokens}
    one = next(iter(found.values()))
    if isinstance(one, Tensor):
        return Coded.of(found, kind)
    parts = [Coded.of(dict(zip(found, part, strict=True)), kind) for part in zip(*found.values(), strict=True)]
    return parts if isinstance(one, list) else tuple(parts) if isinstance(one, tuple) else iter(parts)


def _tokens_of(value: Any) -> list[Any]:
    if isinstance(value, Coded):
        return list(value.planes)
    return value.unique().tolist() if isinstance(value, Tensor) else [value]


def _plane(value: Any, token: Any, like: Tensor) -> Any:
    """Where a token stands: in tokens, in a constant, or whether it is this number."""
    if isinstance(value, Coded):
        return value.planes[token] if token in value.planes else torch.zeros_like(value.plane)
    return (value == token).to(like) if isinstance(value, Tensor) else float(value == token)


def _mapped(func: Callable[..., Any], coded: Coded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The function of each token, in the places of this token; numbers with a fraction as their sum over the planes."""
    others = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf is not coded]
    if any(other.requires_grad for other in others):  # numbers among others of the model
        followed = coded.mask() if coded.dtype == torch.bool else _sum_of_tokens(coded)
        return func(*_replaced(args, lambda _: followed), **_replaced(kwargs, lambda _: followed))
    device = coded.plane.device if others else torch.device("cpu")

    def of(token: Any) -> Any:
        alone = torch.full((1,) * coded.ndim, token, dtype=coded.dtype, device=device)
        return func(*_replaced(args, lambda _: alone), **_replaced(kwargs, lambda _: alone))

    found = {token: of(token) for token in coded.planes}
    one = next(iter(found.values()))
    if not isinstance(one, Tensor):
        _refuse(_name(func))
    shape = torch.broadcast_shapes(coded.shape, one.shape)
    if not one.is_floating_point() and all(torch.equal(one, other) for other in found.values()):
        return one.to(coded.plane.device).expand(shape).clone()
    if one.is_floating_point():
        return _sum(coded.planes, found, shape)
    if one.dtype == torch.bool:
        places = {known: {token: image == known for token, image in found.items()} for known in (True, False)}
        return Coded.of({known: _sum(coded.planes, these, shape) for known, these in places.items()}, torch.bool)
    if one.numel() > 1:
        _refuse(f"{_name(func)} with other numbers at each position")
    return _renamed(coded.planes, found)


def _renamed(planes: Mapping[Any, Tensor], names: Mapping[Any, Tensor]) -> Coded:
    """Other tokens in the same places; two may become one."""
    found: dict[Any, Tensor] = {}
    for token, plane in planes.items():
        name = names[token].item()
        found[name] = found[name] + plane if name in found else plane
    return Coded.of(found, next(iter(names.values())).dtype)


def _sum_of_tokens(ids: Coded) -> Tensor:
    """The tokens as numbers."""
    return _sum(ids.planes, {token: torch.tensor(token) for token in ids.planes}, ids.plane.shape)


def _sum(planes: Mapping[Any, Tensor], values: Mapping[Any, Tensor], shape: torch.Size) -> Tensor:
    """Of the planes times the values of their tokens: a tensor of that shape."""
    terms = []
    for token, plane in planes.items():
        value = values[token]
        if value.numel() > 1:
            terms.append(plane * value.to(plane))
        elif (number := float(value)) != 0:
            terms.append(plane if number == 1 else plane * number)
    return reduce(torch.add, terms) if terms else next(iter(planes.values())).new_zeros(shape)


def _name(func: Callable[..., Any]) -> str:
    """Of a torch function; operators like the methods that they stand for, and what writes in place with its mark."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return str(func.__self__.__name__)  # type: ignore[attr-defined]
    return _OPERATORS.get(name, name)


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, list | tuple):
        yield values
        return
    for value in values:
        yield from _leaves(value)


def _replaced(values: Any, replace: Callable[[Coded], Any]) -> Any:
    """Nested arguments with others in place of tokens."""
    if isinstance(values, Coded):
        return replace(values)
    if isinstance(values, dict):
        return {key: _replaced(value, replace) for key, value in values.items()}
    if isinstance(values, list | tuple) and not isinstance(values, torch.Size):
        found = [_replaced(value, replace) for value in values]
        return found if isinstance(values, list) else tuple(found)
    return values


def _place() -> str:
    """The line of the model that calls."""
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(_BETWEEN)]
    return f"{frames[-1].filename}, line {frames[-1].lineno} ({frames[-1].name})" if frames else "the model"


def _refuse(what: str) -> NoReturn:
    raise UserError(
        f"model.tokens: {what!r} of the tokens in {_place()} cannot be followed. Tokens may be moved, joined, "
        f"compared, looked up in an embedding and given to F.one_hot(ids, n); write this line of forward with these"
    )
