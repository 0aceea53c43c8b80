"""The process that reads bigWigs: a damaged one may crash the library, and takes this process alone with it.

Asked by lines of JSON at stdin, it answers at stdout; see `bigwig.py`, which starts it and says how it ends.
"""

import json
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

HEAD = struct.Struct("<?I")  # of an answer: whether it is what was asked for, and not an error; bytes that follow
MEMORY_BYTES = 2 << 30  # of addresses: a file may say that its blocks have 4 GB
ANSWER_S = 240  # for one answer: an index may lead in circles


def main() -> None:
    """The chromosomes of the files that the command line names, in JSON; then windows of them as float32."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES if hard < 0 else min(hard, MEMORY_BYTES), hard))
    stdout = sys.stdout.buffer
    for is_good, content in _answers(sys.argv[1:]):
        signal.alarm(0)
        stdout.write(HEAD.pack(is_good, len(content)) + content)
        stdout.flush()


def _answers(paths: list[str]) -> Iterator[tuple[bool, bytes]]:
    files: list[Any] = []
    for path in paths:
        yield _answer(partial(_chromosomes, path, files))
    for line in sys.stdin.buffer:
        for number, *window in json.loads(line):
            yield _answer(partial(_values, files[number], *window))


def _answer(read: Callable[[], bytes]) -> tuple[bool, bytes]:
    signal.alarm(ANSWER_S)
    try:
        return True, read()
    except Exception as error:
        return False, str(error).encode(errors="replace")


def _values(file: Any, chrom: str, start: int, end: int) -> bytes:
    values = file.values(chrom, start, end, numpy=True)
    return np.asarray(values, np.float32).tobytes()


def _chromosomes(path: str, files: list[Any]) -> bytes:
    import pyBigWig

    file = pyBigWig.open(path)
    if not file.isBigWig():
        raise RuntimeError("it is a bigBed")
    files.append(file)
    return json.dumps(file.chroms()).encode()


if __name__ == "__main__":
    main()
