"""How many actors there are, and what is asked of Ray, without a Ray."""

from __future__ import annotations

import socket
from dataclasses import asdict
from typing import Any

import pytest

from pipeline import job
from pipeline.errors import UserError


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    resources = {"CPU": 8.0, "GPU": 2.0}
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    return resources


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("asked", "size"),
    [
        (("auto", "cpu", 1, 100), 8),
        (("auto", "cpu", 3, 100), 2),
        (("auto", "cpu", 1, 3), 3),
        (("auto", "cuda", 4, 100), 2),
        ((5, "cpu", 1, 100), 5),
        ((5, "cpu", 1, 2), 2),
    ],
)
def test_the_pool_fills_the_cluster_and_no_more(asked: tuple[Any, str, int, int], size: int) -> None:
    assert job.pool_size(*asked) == size


@pytest.mark.parametrize("asked", [(9, "cpu", 1, 100), (3, "cuda", 1, 100), ("auto", "cpu", 9, 100)])
def test_what_the_cluster_has_no_room_for_is_refused_rather_than_waited_for(
    cluster: dict[str, float], asked: tuple[Any, str, int, int]
) -> None:
    with pytest.raises(UserError, match=r"cluster\.actors=.*engine\.threads=.*the cluster has room for"):
        job.pool_size(*asked)
    cluster.pop("GPU")
    with pytest.raises(UserError, match="room for 0"):
        job.pool_size("auto", "cuda", 1, 100)


def test_descriptors_are_plain_and_small() -> None:
    assert asdict(job.Shard(3, 6, 9)) == {"index": 3, "start": 6, "stop": 9}


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"  # bound, so nobody else listens there either
        with pytest.raises(UserError, match=rf"cluster\.address={address}: no Ray cluster answers there"):
            job._require_answer(address)


def test_addresses_that_ray_looks_up_are_left_to_it() -> None:
    assert job._require_answer("auto") is None
