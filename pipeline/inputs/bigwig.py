"""bigWig tracks along the windows of a genome, as an extra input of the model: control tracks, above all.

Values are per base, 0 where the track has none. In a row that is the reverse complement of its window they are reversed
too, and the two strands of a pair swapped.

Shape legend: S strands (1 or 2), L positions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.inputs.base import Rows
from pipeline.inputs.bed import require_chrom
from pipeline.messages.errors import UserError, require_extra
from pipeline.messages.secrets import one_line
from pipeline.planning.extra_inputs import other_strand


class Tracks:
    """One bigWig, or those of the plus and the minus strand, as an input of (S, L) float32 for each row; see `Values`.

    With `strand` apply, rows on the minus strand are reverse complements of their windows of `length` bases.

    Raises:
        UserError: pyBigWig is not installed, or a file is no bigWig.
    """

    def __init__(self, paths: Sequence[Path], length: int, strand: str) -> None:
        self.shape: tuple[int, ...] = (len(paths), length)
        self.dtype = "float32"
        self._length, self._is_applied = length, strand == "apply"
        self._files = [(path.name, *_open(path)) for path in paths]

    def take(self, rows: Rows) -> tuple[np.ndarray, list[str | None]]:
        """See `Values`."""
        values = np.zeros((len(rows), *self.shape), self.dtype)
        problems: list[str | None] = [None] * len(rows)
        for i, problem in enumerate(rows.problem):
            if problem is not None:
                continue
            try:
                for strand, file in enumerate(self._files):
                    values[i, strand] = self._window(*file, rows.chrom[i], int(rows.start[i]), int(rows.end[i]))
            except UserError:
                raise
            except ValueError as error:
                problems[i] = str(error)
            if self._is_applied and rows.strand[i] == "-":
                values[i] = other_strand(torch.from_numpy(values[i : i + 1]), self._length)[0].numpy()
        return values, problems

    def finish(self, n_records: int) -> None:
        """Close the files."""
        for _, file, _ in self._files:
            file.close()

    def _window(self, name: str, file: Any, sizes: dict[str, int], chrom: str, start: int, end: int) -> np.ndarray:
        """(L,) values of a window. Raises ValueError where the file does not reach it."""
        require_chrom(chrom, sizes, name)
        if start < 0 or end > sizes[chrom]:
            raise ValueError(
                f"the window {start}-{end} leaves {chrom} of {name}, which spans 0-{sizes[chrom]}; is it of another "
                f"build of the genome?"
            )
        try:
            found = file.values(chrom, start, end, numpy=True)
        except RuntimeError as error:
            raise UserError(
                f"{name} is damaged at {chrom}:{start}-{end} ({one_line(error)}); copy or download it again"
            ) from None
        values: np.ndarray = np.nan_to_num(found, nan=0.0, posinf=np.inf)
        if not np.isfinite(values).all():
            at = start + int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"{name} is infinite at {chrom}:{at}-{at + 1}; expected finite numbers")
        return values


def _open(path: Path) -> tuple[Any, dict[str, int]]:
    """An open bigWig, and the sizes of its chromosomes."""
    require_extra("exports", "pyBigWig")
    import pyBigWig

    try:
        file = pyBigWig.open(str(path))
        if not file.isBigWig():
            raise RuntimeError("it is a bigBed")
        return file, dict(file.chroms())
    except RuntimeError as error:
        raise UserError(f"dataset.args: {path} cannot be read as a bigWig: {one_line(error)}") from None
