"""Sequences as numbers: one-hot in either order of axes, or codes; blocks of them to codes.

Axis orders, for N rows of L positions: `N4L` and `NL4` are one-hot (bases in the order A, C, G, T; an all-zero column
is an unknown base), `NL` are codes 0..3 = A, C, G, T and 4 = unknown.
"""

import numpy as np

from dlshap_core.sequences import ALPHABET, UNKNOWN
from pipeline.messages.errors import UserError

_N_BASES = len(ALPHABET)
_EXPECTED = "expected one-hot (N, 4, L) or (N, L, 4), or codes (N, L)"
READ_AS = {  # what each order of axes means
    "N4L": "one-hot (N, 4, L), bases in the order A, C, G, T",
    "NL4": "one-hot (N, L, 4), bases in the order A, C, G, T",
    "NL": "codes (N, L), 0 to 3 for A, C, G, T",
}
AXES = tuple(READ_AS)


def axes_of(shape: tuple[int, ...], kind: str, given: str | None, where: str) -> str:
    """The order of axes, from the shape; the values are checked later, by `decode`.

    Args:
        shape: of the whole, (N, ...); N may be 0 where it is not known.
        kind: numpy's letter for the type of the values.
        given: `dataset.axes`.
        where: for the error.

    Raises:
        UserError: no order fits, or several do and none is given, or another than the given one does.
    """
    if kind not in "biuf":
        what = {"O": "Python objects", "U": "text", "S": "text", "V": "records"}.get(kind, f"values of kind {kind!r}")
        more = "; sequences as text belong in a table or FASTA" if kind in "US" else ""
        raise UserError(f"{where} holds {what}; {_EXPECTED}{more}")
    fits = _fitting(shape)
    if 0 in shape[1:]:
        raise UserError(f"{where} has the shape {shape}: its sequences have no bases")
    if not fits:
        raise UserError(f"{where} has the shape {shape}; {_EXPECTED}")
    if given is not None and given not in fits:
        raise UserError(
            f"{where} has the shape {shape}, which is not dataset.axes={given}; it may be {' or '.join(fits)}"
        )
    if given is None and len(fits) > 1:
        raise UserError(
            f"{where} has the shape {shape}, which may be (N, 4, L) or (N, L, 4); say which: dataset.axes=N4L or NL4"
        )
    return given or fits[0]


def _fitting(shape: tuple[int, ...]) -> list[str]:
    match shape[1:]:
        case (_,):
            return ["NL"]
        case (first, last):
            return [axes for axes, size in (("N4L", first), ("NL4", last)) if size == _N_BASES]
    return []


def require_codes(block: np.ndarray, n_rows: int, where: str) -> None:
    """Raises UserError where the (n, L) first rows of N look like one one-hot sequence rather than like codes."""
    for axis, size in ((0, n_rows), (1, block.shape[1])):
        is_long = size == block.shape[axis] == _N_BASES and block.shape[1 - axis] > 1
        if is_long and ((block == 0) | (block == 1)).all() and ((block == 1).sum(axis=axis) == 1).all():
            raise UserError(
                f"{where} has the shape ({n_rows}, {block.shape[1]}) and looks like one one-hot sequence that has no "
                f"axis of rows: add it (array[None]); if these are codes, say so: dataset.axes=NL"
            )


def decode(block: np.ndarray, axes: str) -> tuple[np.ndarray, list[str | None]]:
    """Codes of a block of rows.

    Args:
        block: (n, 4, L), (n, L, 4) or (n, L), as `axes` says.
        axes: one of AXES.

    Returns:
        (n, L) uint8 codes, and for each row None, or what is wrong with it.
    """
    if axes == "NL":
        block = block.view(np.uint8) if block.dtype == bool else block
        fits: np.ndarray = (block >= 0) & (block <= UNKNOWN) & (block == np.floor(block))
        codes = np.where(fits, block, UNKNOWN).astype(np.uint8)
        is_bad = np.logical_not(fits.all(axis=1))
        return codes, [
            _wrong_code(*row) if bad else None for *row, bad in zip(block, fits, is_bad.tolist(), strict=True)
        ]
    values = block.transpose(0, 2, 1) if axes == "NL4" else block
    is_one = values == 1
    n_ones = is_one.sum(axis=1, dtype=np.uint8)
    codes = np.where(n_ones == 0, UNKNOWN, 0).astype(np.uint8)
    for base in range(1, _N_BASES):
        codes += is_one[:, base].view(np.uint8) * np.uint8(base)
    is_bad = (values != is_one).any(axis=(1, 2)) | (n_ones > 1).any(axis=1)
    return codes, [_not_one_hot(row) if bad else None for row, bad in zip(values, is_bad.tolist(), strict=True)]


def _wrong_code(row: np.ndarray, fits: np.ndarray) -> str:
    position = int(np.flatnonzero(~fits)[0])
    return f"{row[position]} at position {position} (0-based); expected codes: 0..3 for A, C, G, T, and 4 for N"


def _not_one_hot(row: np.ndarray) -> str:
    """What is wrong with (4, L) values."""
    wrong = ((row != 0) & (row != 1)).any(axis=0) | ((row == 1).sum(axis=0) > 1)
    position = int(np.flatnonzero(wrong)[0])
    column = row[:, position]
    shown = ", ".join(f"{value:g}" for value in column.astype(np.float64))
    where = f"({shown}) at position {position} (0-based) is not one-hot"
    if not np.isfinite(column.astype(np.float64)).all():
        return f"{where}: it is not finite"
    if ((column != 0) & (column != 1)).any():
        return f"{where}: soft values, such as frequencies, cannot be attributed; take the sequences themselves"
    return f"{where}: more than one base is 1; are the axes in another order? dataset.axes=N4L or NL4 says which"
