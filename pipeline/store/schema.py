"""What arrays a store has: their names, axes, types, shapes and files. Pure: nothing is read or written here.

Axis order is that of `ARRAYS`; bases are A, C, G, T; positions and rows are 0-based, coordinates half-open.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlshap_core.sequences import ALPHABET
from pipeline.planning.extra_inputs import extra_input_layout, is_extra_input
from pipeline.planning.plan import Plan
from pipeline.planning.shards import Shard
from pipeline.store.backends.tree import MOST_BYTES

FORMAT_VERSION = 1
ROOT = "zarr.json"  # metadata and attributes of the group
TABLE_CHUNK_ROWS = 8192

LAYOUT: dict[str, tuple[tuple[str, ...], str]] = {
    "codes": (("sequence", "position"), "uint8"),
    "attribution": (("sequence", "target", "position"), "float32"),
    "hypothetical": (("sequence", "target", "base", "position"), "float32"),
    "prediction": (("sequence", "target"), "float32"),
    "reference_prediction": (("sequence", "target", "reference"), "float32"),
    "convergence_delta": (("sequence", "target", "reference"), "float32"),
    "reference_checksum": (("sequence",), "uint32"),
}
COMPUTED = tuple(name for name in LAYOUT if name != "codes")
FOLD_ARRAYS: dict[str, tuple[tuple[str, ...], str]] = {  # with store.per_fold=true
    f"{name}_by_fold": (("sequence", "fold", *LAYOUT[name][0][1:]), LAYOUT[name][1])
    for name in COMPUTED
    if name != "reference_checksum"  # which the folds share
}
VARIANT_ARRAYS: dict[str, tuple[tuple[str, ...], str]] = {  # of a run on variants: alternate minus reference allele
    f"{name}_difference": (("variant", *LAYOUT[name][0][1:]), LAYOUT[name][1])
    for name in ("attribution", "hypothetical", "prediction")
}
SPREAD_ARRAYS: dict[str, tuple[tuple[str, ...], str]] = {  # with store.spread=true and several references
    "attribution_sd": LAYOUT["attribution"],
}
VARIANT_SPREAD_ARRAYS: dict[str, tuple[tuple[str, ...], str]] = {  # the same, of a run on variants
    "attribution_difference_sd": VARIANT_ARRAYS["attribution_difference"],
}
NULL_ARRAYS: dict[str, tuple[tuple[str, ...], str]] = {  # with store.null_difference=true, of a run on variants
    "null_difference": (("variant", "target", "reference"), "float32"),
}
ARRAYS = {**LAYOUT, **FOLD_ARRAYS, **VARIANT_ARRAYS, **SPREAD_ARRAYS, **VARIANT_SPREAD_ARRAYS, **NULL_ARRAYS}
ROUNDED = tuple(name for name in ARRAYS if name.startswith(("attribution", "hypothetical")))  # to `kept_bits`
SPREAD_BITS = 7  # of a standard deviation, which 20 references give to within 16%: more would be bytes of noise
ALLELES_PER_VARIANT = 2  # rows of a variant: reference, alternate
TABLE: dict[str, type] = {
    "source_row": np.int64,
    "name": str,
    "chrom": str,
    "start": np.int64,
    "end": np.int64,
    "strand": str,
}
MANIFEST_ARRAYS = ("shard_crc32", "shard_bytes", "array", "file", "file_crc32", "file_bytes")  # see complete_store
POOL = "reference_pool"  # (window, position) codes that references are drawn from, where they are
DESCRIPTIONS = {
    "codes": "the sequence: 0..3 are A, C, G, T; 4 is N",
    "attribution": "of the observed base; 0 at an N, so sums leave out what the model makes of such positions",
    "hypothetical": "the attribution each base would have, averaged over the references; 0-based positions",
    "prediction": "the model's output",
    "reference_prediction": "the model's output at each reference",
    "convergence_delta": "sum of multipliers times differences, minus the difference of predictions; signed",
    "reference_checksum": "CRC-32 of the sequence's references, in order: of codes, or of float32 values if not bases",
    **dict.fromkeys(FOLD_ARRAYS, "the values of each fold; the array without _by_fold is their mean"),
    **dict.fromkeys(
        VARIANT_ARRAYS, "of the alternate allele, minus that of the reference allele; position by position"
    ),
    "attribution_sd": "standard deviation over the references (with n - 1) of the attribution of the observed base",
    "attribution_difference_sd": "the same, of attribution_difference; both alleles have the same references",
    "null_difference": "the difference of predictions of both alleles within each reference; NaN for unknown alleles",
    "source_row": "0-based record or data line of the input",
    "start": "0-based; -1 where the input has none",
    "end": "exclusive; -1 where the input has none",
    POOL: "codes of the windows that references are drawn from",
    "shard_crc32": "CRC-32 of the file of each shard and array, as committed",
    "shard_bytes": "size of the file of each shard and array, as committed",
    "file": "every file that was made before the first shard, except the group's own and the shards of the sequences",
    "file_crc32": "CRC-32 of each of them",
    "file_bytes": "size of each of them",
}
ARG_DESCRIPTION = "an extra input of the model; the attribute dataset of the store says which"
Layout = Mapping[str, tuple[tuple[str, ...], str]]  # dimensions and type of arrays, by their names


def layout_of(plan: Plan) -> dict[str, tuple[tuple[str, ...], str]]:
    """Dimensions and type of each array that the store of a run has, in order."""
    has_variants = plan.rows_per_group == ALLELES_PER_VARIANT
    more = {
        **(FOLD_ARRAYS if plan.per_fold else {}),
        **(VARIANT_ARRAYS if has_variants else {}),
        **(SPREAD_ARRAYS if plan.spread else {}),
        **(VARIANT_SPREAD_ARRAYS if plan.spread and has_variants else {}),
        **(NULL_ARRAYS if plan.null_difference else {}),
    }
    return {**LAYOUT, **more, **extra_input_layout(plan.args, plan.length)}


def arrays_of(plan: Plan) -> tuple[str, ...]:
    """The arrays that the store of a run has, in order."""
    return tuple(layout_of(plan))


def input_arrays(plan: Plan) -> tuple[str, ...]:
    """Those of them that the input gives: the sequences and the model's extra inputs."""
    return ("codes", *extra_input_layout(plan.args, plan.length))


def computed_arrays(plan: Plan) -> tuple[str, ...]:
    """Those of them that shards are computed for: all that the input does not give."""
    from_input = input_arrays(plan)
    return tuple(name for name in arrays_of(plan) if name not in from_input)


def array_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The shape of each of them."""
    sizes = {
        "sequence": plan.n_rows,
        "target": len(plan.targets),
        "base": len(ALPHABET),
        "position": plan.length,
        "reference": plan.n_references,
        "fold": len(plan.folds),
        "variant": plan.n_rows // ALLELES_PER_VARIANT,
    }
    of_args = extra_input_layout(plan.args, plan.length)
    for (dims, _), arg in zip(of_args.values(), plan.args, strict=True):
        sizes |= dict(zip(dims[1:], arg["shape"], strict=True))
    return {name: tuple(sizes[dim] for dim in dims) for name, (dims, _) in layout_of(plan).items()}


def most_bytes(plan: Plan) -> int:
    """More than any file of a shard has: what codecs cannot compress grows by a little."""
    layout, shapes = layout_of(plan), array_shapes(plan)
    sizes = (np.dtype(layout[name][1]).itemsize * math.prod(shapes[name][1:]) for name in layout)
    return MOST_BYTES + 2 * plan.rows_per_shard * max(sizes)


def shard_key(name: str, index: int, layout: Layout = ARRAYS) -> str:
    """The file that holds one shard of an array; `layout_of` the plan knows the model's extra inputs too."""
    return f"{name}/{chunk_key(index, len(layout[name][0]))}"


def chunk_key(index: int, n_dims: int) -> str:
    """The same within the folder of an array of so many dimensions."""
    return f"c.{index}" + ".0" * (n_dims - 1)


def require_values(name: str, values: np.ndarray) -> None:
    """Raises ValueError for values that an array of a store cannot hold, whatever its checksums say."""
    if name in ("codes", POOL) and values.size and (largest := int(values.max())) > len(ALPHABET):
        raise ValueError(f"code {largest}; expected 0 to {len(ALPHABET)}")


def rows_in(name: str, shard: Shard) -> slice:
    """The part of an array's first axis that a shard takes."""
    rows_each = ALLELES_PER_VARIANT if name in ARRAYS and ARRAYS[name][0][0] == "variant" else 1
    return slice(shard.start // rows_each, shard.stop // rows_each)


def kept_bits(name: str, plan: Plan) -> int:
    """Mantissa bits that are stored of an array of ROUNDED."""
    is_spread = name in (*SPREAD_ARRAYS, *VARIANT_SPREAD_ARRAYS)
    return min(plan.precision_bits, SPREAD_BITS) if is_spread else plan.precision_bits


def described(name: str) -> dict[str, Any]:
    """The attributes of an array: what it holds, in words."""
    text = ARG_DESCRIPTION if is_extra_input(name) else DESCRIPTIONS.get(name)
    return {} if text is None else {"description": text}
