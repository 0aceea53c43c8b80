"""bigWig tracks along the windows of a genome, as an extra input of the model: control tracks, above all.

Values are per base, 0 where the track has none. In a row that is the reverse complement of its window they are reversed
too, and the two strands of a pair swapped. The files are read by a process of their own, as a damaged one may crash the
library that reads it.

Shape legend: S strands (1 or 2), L positions.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.inputs import bigwig_child
from pipeline.inputs.base import RowBatch
from pipeline.inputs.bed import require_chrom
from pipeline.messages.errors import UserError, require_extra
from pipeline.messages.secrets import one_line
from pipeline.planning.extra_inputs import other_strand

_Window = tuple[int, str, int, int]  # number of the file, chromosome, start, end


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
        self._reader = _Reader(paths)

    def take(self, rows: RowBatch) -> tuple[np.ndarray, list[str | None]]:
        """See `Values`."""
        values = np.zeros((len(rows), *self.shape), self.dtype)
        problems: list[str | None] = [None] * len(rows)
        wanted: list[tuple[int, _Window]] = []
        for i in (i for i, problem in enumerate(rows.problem) if problem is None):
            try:
                wanted += [(i, window) for window in self._windows(rows, i)]
            except ValueError as error:
                problems[i] = str(error)
        for (i, window), found in zip(wanted, self._reader.values([window for _, window in wanted]), strict=True):
            values[i, window[0]] = found
            if problems[i] is None:
                problems[i] = self._infinite(window, values[i, window[0]])
        for i in (i for i, _ in wanted[:: len(values[0])] if self._is_applied and rows.strand[i] == "-"):
            values[i] = other_strand(torch.from_numpy(values[i : i + 1]), self._length)[0].numpy()
        return values, problems

    def finish(self, n_records: int) -> None:
        """Close the files."""
        self._reader.close()

    def _windows(self, rows: RowBatch, i: int) -> list[_Window]:
        """Where each file has the values of a row. Raises ValueError where one does not reach it."""
        chrom, start, end = rows.chrom[i], int(rows.start[i]), int(rows.end[i])
        for name, sizes in zip(self._reader.names, self._reader.sizes, strict=True):
            require_chrom(chrom, sizes, name)
            if start < 0 or end > sizes[chrom]:
                raise ValueError(
                    f"the window {start}-{end} leaves {chrom} of {name}, which spans 0-{sizes[chrom]}; is it of "
                    f"another build of the genome?"
                )
        return [(number, chrom, start, end) for number in range(len(self._reader.names))]

    def _infinite(self, window: _Window, values: np.ndarray) -> str | None:
        """What is wrong with values that are not finite."""
        number, chrom, start, _ = window
        if np.isfinite(values).all():
            return None
        at = start + int(np.flatnonzero(~np.isfinite(values))[0])
        return f"{self._reader.names[number]} is infinite at {chrom}:{at}-{at + 1}; expected finite numbers"


class _Reader:
    """A process that reads the files.

    Attributes:
        names: of the files.
        sizes: of the chromosomes of each.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        require_extra("exports", "pyBigWig")
        self.names = [path.name for path in paths]
        self._process = _started([os.path.abspath(path) for path in paths])
        self.close = weakref.finalize(self, _end, self._process)
        self.sizes: list[dict[str, int]] = []
        for path in paths:
            is_good, content = self._answer(f"dataset.args: {path}")
            if not is_good:
                raise UserError(f"dataset.args: {path} cannot be read as a bigWig: {_text(content)}")
            self.sizes.append(json.loads(content))

    def values(self, windows: Sequence[_Window]) -> Iterator[np.ndarray]:
        """(L,) of each window, 0 where the track has none. Raises UserError where a file is damaged."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead: the answer that does not come says how
            self._process.stdin.write(json.dumps(windows).encode() + b"\n")
            self._process.stdin.flush()
        for number, chrom, start, end in windows:
            where = f"{self.names[number]} is damaged at {chrom}:{start}-{end}"
            is_good, content = self._answer(where)
            if not is_good:
                raise UserError(f"{where} ({_text(content)}); copy or download it again")
            yield np.nan_to_num(np.frombuffer(content, np.float32), nan=0.0, posinf=np.inf, neginf=-np.inf)

    def _answer(self, where: str) -> tuple[bool, bytes]:
        """The next one: whether it is what was asked for, and its bytes. Raises UserError where none comes."""
        assert self._process.stdout is not None
        head = self._process.stdout.read(bigwig_child.HEAD.size)
        is_good, n_bytes = bigwig_child.HEAD.unpack(head) if len(head) == bigwig_child.HEAD.size else (False, 0)
        content = self._process.stdout.read(n_bytes)
        if len(head) == bigwig_child.HEAD.size and len(content) == n_bytes:
            return is_good, content
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise UserError(f"{where}: the process that reads it ended ({how}); copy or download it again")


def _started(paths: list[str]) -> "subprocess.Popen[bytes]":
    # -P: modules are looked for where this process does, and not in the working folder.
    command = [sys.executable, "-P", "-m", bigwig_child.__name__, *paths]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # In a group of its own, so that a terminal's Ctrl-C is for the parent alone.
    return subprocess.Popen(command, env=environment, process_group=0, **pipes)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with process:  # closes its pipes
        pass


def _text(content: bytes) -> str:
    return one_line(ValueError(content.decode(errors="replace")))
