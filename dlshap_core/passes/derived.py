"""Values that depend on the sequence without carrying a gradient: masks, indices, counts.

They are marked, so that their use is seen. A mask has a number that takes its place (`rules.masks`); an index or a
count jumps with the input, and may only be moved around, or decide in Python.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NoReturn

from torch import Tensor

from dlshap_core.rules import names
from dlshap_core.rules.call import replace_tensors
from dlshap_core.rules.masks import number_of

_MADE_BY = "_dlshap_derived"  # the name of the operation
_BY_ROW = "_dlshap_by_row"  # of what `any` and `all` say of a whole batch: what each row has


def is_derived(x: Any) -> bool:
    """Whether a value was marked."""
    return hasattr(x, _MADE_BY)


def is_activation(x: Any) -> bool:
    """Whether a value depends on the sequence, with or without a gradient."""
    return isinstance(x, Tensor) and (x.requires_grad or is_derived(x))


_Refuse = Callable[[str, str], NoReturn]


def mark(
    name: str, output: Any, keeps_constants: bool, refuse_inference: Callable[[str], NoReturn]
) -> tuple[bool, bool]:
    """Mark what an operation returned that carries no gradient, and say if there is any, and if any is complex.

    Args:
        name: of the operation.
        output: a tensor, or a list or tuple in which there are some.
        keeps_constants: whether a floating-point output without a gradient is one of the constants among its inputs.
        refuse_inference: called with the name where it was made in inference mode, and cannot be followed.
    """
    is_any = is_complex = False
    for x in output if isinstance(output, (list, tuple)) else (output,):
        if not isinstance(x, Tensor):
            continue
        if x.is_inference():
            refuse_inference(name)
        is_complex |= x.is_complex()
        if not x.requires_grad and not (keeps_constants and (x.is_floating_point() or x.is_complex())):
            setattr(x, _MADE_BY, name)
            is_any = True
    return is_any, is_complex


def with_numbers(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], refuse: _Refuse
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the numbers of masks in place of the masks; refuses other marked values."""
    if name in names.KEEPS_MASKS:
        return args, kwargs

    def resolve(x: Tensor) -> Tensor:
        number = number_of(x)
        if number is not None:
            return number
        if is_derived(x) and not (name in names.MOVES_INDICES and x is args[0]):
            made_by = getattr(x, _MADE_BY)
            refuse(name, f"it uses what {made_by!r} made of the input (an index or a count), which jumps with it")
        return x

    return replace_tensors((args, kwargs), resolve, lambda x: isinstance(x, Tensor) and not x.requires_grad)


def keep_by_row(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, n_rows: int) -> None:
    """Of `any` and `all` over a whole batch, which a decision may follow: keep what each row has."""
    how = {"_is_any_true": "any", "_is_all_true": "all"}.get(name, name)  # those of torch.distributions
    if how not in ("any", "all") or output.ndim > 0:
        return
    asked = args[0] if args else kwargs["input"]
    if asked.ndim > 0 and asked.shape[0] == n_rows:
        setattr(output, _BY_ROW, getattr(asked.reshape(n_rows, -1), how)(1).tolist())


def kept_by_row(x: Any) -> list[Any] | None:
    """What was kept of a value, if it was."""
    return getattr(x, _BY_ROW, None)


def ask_by_row(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], n_rows: int
) -> list[Any] | None:
    """What a question about a whole batch gives for each row alone; None where the first axis is not the rows."""
    asked = [x for x in (*args, *kwargs.values()) if is_activation(x)]
    if not asked or any(x.ndim == 0 or x.shape[0] != n_rows for x in asked):
        return None
    rows = [replace_tensors((args, kwargs), itemgetter(slice(i, i + 1)), is_activation) for i in range(n_rows)]
    return [bool(func(*of_row, **named)) for of_row, named in rows]
