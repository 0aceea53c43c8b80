"""bigWig tracks along the windows of a genome, as a further input of the model: control tracks, above all.

Values are those of each base, 0 where the track has none. On a row that is the reverse complement of its window they
are turned around with it, and the two strands of a pair change places.

Shape legend: S strands (1 or 2), L positions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.args import other_strand
from pipeline.errors import UserError
from pipeline.sources.base import Rows
from pipeline.sources.loci import require_chrom


class Tracks:
    """One bigWig, or those of the plus and the minus strand, as an input of (S, L) float32 for each row; see `Values`.

    Args:
        paths: of the bigWigs.
        length: bases in a window.
        strand: apply where rows on the minus strand are reverse complements of their windows.

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
        values: np.ndarray = np.nan_to_num(file.values(chrom, start, end, numpy=True), nan=0.0, posinf=np.inf)
        if not np.isfinite(values).all():
            at = start + int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"{name} is infinite at {chrom}:{at}-{at + 1}; expected finite numbers")
        return values


def _open(path: Path) -> tuple[Any, dict[str, int]]:
    """An open bigWig, and the sizes of its chromosomes."""
    try:
        import pyBigWig
    except ModuleNotFoundError:
        raise UserError("pyBigWig is needed to read dataset.args: pip install 'dlshap[exports]'") from None
    try:
        file = pyBigWig.open(str(path))
        if not file.isBigWig():
            raise RuntimeError("it is a bigBed")
        return file, dict(file.chroms())
    except RuntimeError as error:
        raise UserError(f"dataset.args: {path} cannot be read as a bigWig: {' '.join(str(error).split())}") from None
