"""The hash of an input is over all that its rows are."""

from __future__ import annotations

import numpy as np

from pipeline.inputs.facts import InputHash

ROW = {"source_row": 3, "name": "a", "chrom": "chr1", "start": 5, "end": 9, "strand": "+"}


def hash_of(*rows: dict[str, object]) -> str:
    total = InputHash()
    for row in rows:
        total.add(np.array([0, 1, 2, 3], dtype=np.uint8), **{**ROW, **row})  # type: ignore[arg-type]
    return total.hexdigest()


def test_the_input_hash_sees_every_field_and_the_order() -> None:
    changed = [{"source_row": 4}, {"name": "b"}, {"chrom": "chr2"}, {"start": 6}, {"end": 10}, {"strand": "-"}]
    assert len({hash_of(), hash_of({}), hash_of({}, {}), *(hash_of(row) for row in changed)}) == 9
    assert hash_of({"name": "ab", "chrom": "c"}) != hash_of({"name": "a", "chrom": "bc"})
    assert hash_of({"name": "x"}, {"name": "y"}) != hash_of({"name": "y"}, {"name": "x"})
    assert hash_of({"name": "x"}) == hash_of({"name": "x"})
