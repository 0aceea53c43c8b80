"""What every test shares: Hypothesis profiles, one torch thread, and the data and devices that may be absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# `ci` draws the same examples every time; `dev` looks further with each run. Neither times single examples: the first
# call of a compiled or cached function takes seconds, and machines are shared.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def real_data_directory() -> Path:
    """The folder of third-party data: DLSHAP_REAL_DATA, or shared/real beside the checkout."""
    return Path(os.environ.get("DLSHAP_REAL_DATA", ROOT.parent / "shared" / "real"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not real_data_directory().is_dir():
        missing["real"] = f"no third-party data in {real_data_directory()}; DLSHAP_REAL_DATA names the folder"
    if not torch.cuda.is_available():
        missing["gpu"] = "no CUDA device"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker) is not None:  # keywords hold the names of folders too
                item.add_marker(pytest.mark.skip(reason=reason))
    # Of several processes one starts the Ray that tests share, and starts it early. Where there is one process it comes
    # when it is asked for: it would be in the way of tests that start their own.
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: "ray_instance" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Sums may differ in the last bits with the number of threads, and Ray's workers need the other cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Files are not forced to the disk: that guards against power failing, which no test does, and takes half of the
    time of small runs. The test of what is forced, and in which order, puts its own in this place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of third-party data; ask for it in tests marked `real`, which are skipped where it is absent."""
    return real_data_directory()
