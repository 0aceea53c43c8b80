"""What a cluster has room for, and what is sent to it: without a Ray."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.util.accelerators
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.executors.local import Local
from pipeline.execution.executors.ray_cluster import (
    SENT,
    Pool,
    connected,
    enter_sent,
    fits,
    gpus_per_actor,
    inventory,
    pool,
    sent,
)
from pipeline.messages.errors import RunError, UserError
from pipeline.models import own_modules

NODES = [{"CPU": 6.0, "GPU": 1.0, "node:1.2.3.4": 1.0, "memory": 9e9}, {"CPU": 2.0, "GPU": 1.0, "tpu": 3.0}]


@pytest.mark.parametrize(
    ("asked", "device", "threads", "n_shards", "size"),
    [
        ({}, "cpu", 1, 100, 8),
        ({}, "cpu", 3, 100, 2),
        ({}, "cpu", 1, 3, 3),
        ({}, "cuda", 2, 100, 2),
        ({}, "cuda", 4, 100, 1),
        ({"gpus_per_actor": 0.5}, "cuda", 1, 100, 4),
        ({"gpus_per_actor": 0.5}, "cpu", 1, 100, 4),
        ({"gpus_per_actor": 0.1}, "cuda", 1, 100, 8),
        ({"resources": {"tpu": 1.5}}, "cpu", 1, 100, 2),
        ({"actors": 5}, "cpu", 1, 100, 5),
        ({"actors": 5}, "cpu", 1, 2, 2),
        ({"actors": 500}, "cpu", 1, 2, 2),
    ],
)
def test_the_pool_fills_the_nodes_and_no_more(
    asked: dict[str, Any], device: str, threads: int, n_shards: int, size: int
) -> None:
    made = pool(Local(**asked), device, threads, n_shards, NODES)
    assert (made.least, made.most) == (size, size)


@pytest.mark.parametrize(
    ("asked", "device", "threads", "parts"),
    [
        ({"actors": 9}, "cpu", 1, ["cluster.actors=9 with 1 CPU each", "has room for 8"]),
        ({"actors": 3}, "cuda", 1, ["cluster.actors=3 with 1 CPU, 1 GPU each", "has room for 2"]),
        ({}, "cpu", 9, ["9 CPU each", "has room for 0", "2 nodes with 8 CPU, 2 GPU, 3 tpu in all"]),
        ({"resources": {"fpga": 1}}, "cpu", 1, ["1 CPU, 1 fpga each", "has room for 0", "2 nodes with 8 CPU"]),
        ({"gpus_per_actor": 2}, "cuda", 1, ["2 GPU each", "has room for 0"]),
    ],
)
def test_what_the_cluster_has_no_room_for_is_refused(
    asked: dict[str, Any], device: str, threads: int, parts: list[str]
) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*lower what is asked for[^\n]*$") as caught:
        pool(Local(**asked), device, threads, 100, NODES)
    for part in parts:
        assert part in str(caught.value)


def test_actors_of_a_kind_of_gpu_go_where_it_is() -> None:
    """As many as there is room for otherwise; a node without that kind has room for none."""
    nodes = [{**NODES[0], "accelerator_type:A100": 1.0}, {**NODES[1], "accelerator_type:T4": 1.0}]
    made = pool(Local(accelerator_type="A100", gpus_per_actor=0.25), "cuda", 1, 100, nodes)
    assert made == Pool(4, 4, {"CPU": 1, "GPU": 0.25, "accelerator_type:A100": 0.001})
    with pytest.raises(UserError, match=r"1 GPU, type H100 each .* room for 0: it has 2 nodes .* in all \(A100, T4\);"):
        pool(Local(accelerator_type="H100"), "cuda", 1, 100, nodes)
    assert next(Local(accelerator_type="").problems()).startswith("cluster.accelerator_type=''; expected a kind of GPU")
    assert ray.util.accelerators.NVIDIA_A100 == "A100", "as Ray names them"


def test_a_cluster_that_grows_may_be_empty_now() -> None:
    assert pool(Local(max_actors=4), "cuda", 1, 100, []) == Pool(1, 4, {"CPU": 1, "GPU": 1})
    assert pool(Local(min_actors=2, max_actors=4), "cpu", 1, 3, NODES) == Pool(2, 3, {"CPU": 1})
    assert pool(Local(min_actors=2, max_actors=4), "cpu", 1, 1, NODES) == Pool(1, 1, {"CPU": 1})
    assert inventory([]) == "0 nodes with nothing in all"


@given(st.integers(1, 50), st.integers(0, 64))
def test_shares_add_up_to_whole_gpus(parts: int, gpus: int) -> None:
    share = gpus_per_actor(Local(gpus_per_actor=int(10_000 / parts) / 10_000), "cpu")
    assert fits({"GPU": gpus}, {"GPU": share}) >= gpus * parts


@pytest.mark.parametrize("kind", [Exception, RuntimeError, ConnectionError])  # Ray itself raises a bare Exception
def test_a_ray_that_does_not_start_is_an_error_of_the_machine(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(**_: Any) -> None:
        raise kind("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the Ray that other tests have in this process
    with (
        pytest.raises(RunError, match=r"^no Ray: The current node timed out during startup\.$"),
        connected({}, {}, None, RunError("no Ray")),
    ):
        raise AssertionError("Ray is not up")


def test_code_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.code=.*nothing is not a folder"):
        sent(str(tmp_path / "nothing")).__enter__()


def test_workers_stand_in_the_folder_that_was_sent_and_search_it_for_what_is_asked_for_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sent_net.py").write_text("import sent_beside as beside")
    (tmp_path / "sent_beside.py").write_text("VALUE = 3")
    with sent(str(tmp_path)) as environment, own_modules.restored():
        assert environment is not None
        assert os.listdir(environment["working_dir"]) == [SENT], "what Ray has workers search first"
        monkeypatch.chdir(environment["working_dir"])  # of which a node has a copy
        enter_sent()
        assert Path.cwd() == tmp_path
        with own_modules.asked_for("sent_net"):
            assert importlib.import_module("sent_net").beside.VALUE == 3
        (tmp_path / "sent_other.py").write_text("")
        assert importlib.util.find_spec("sent_other") is None
    with sent(None) as environment:
        assert environment is None
