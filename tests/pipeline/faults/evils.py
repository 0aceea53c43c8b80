"""What is to go wrong in the processes that work on shards, by way of their environment.

Points, in the order in which a worker passes them:

    compute    nothing is computed yet
    device     the device is busy with it
    computed   nothing is written yet
    half       half of the second array's file is written
    some       three arrays are written
    written    all arrays are written, the shard is not committed
    recorded   the done record is written, attempts are not cleared
    committed  after the commit
"""

import json
from pathlib import Path
from typing import Any

CHAOS = "DLSHAP_TEST_CHAOS"
IN_FLIGHT = "DLSHAP_TEST_IN_FLIGHT"  # how many shards a worker is to have at hand
POINTS = ("compute", "device", "computed", "half", "some", "written", "recorded", "committed")
FOR_EVER = 10**6


def evil(at: str, how: str, shard: int | None = None, times: int = 1, seconds: float = 0) -> dict[str, Any]:
    """One thing that goes wrong, on `shard` or on any, so many times in all processes together."""
    return {"at": at, "how": how, "shard": shard, "times": times, "seconds": seconds}


def environment(folder: Path, *evils: dict[str, Any]) -> dict[str, str]:
    """What a process that loads `ChaosNet` must find around it."""
    folder.mkdir(exist_ok=True)
    return {CHAOS: json.dumps({"folder": str(folder), "evils": evils})}


def happened(folder: Path) -> list[str]:
    """point-shard of what has gone wrong, in the order of the evils."""
    return sorted(path.name for path in folder.iterdir())
