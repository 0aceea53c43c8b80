"""What a Ray of our own leaves behind ends with the command."""

from __future__ import annotations

import subprocess
import sys

from pipeline.execution.executors.local import none_left

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]


def test_what_is_started_within_ends_with_it() -> None:
    with subprocess.Popen(SLEEP) as other:
        with none_left():
            inner = subprocess.Popen(SLEEP, start_new_session=True)
        assert inner.wait(5) == -9
        assert other.poll() is None, "it is not of this context"
        other.kill()
