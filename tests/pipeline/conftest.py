"""What the pipeline's tests share: a small input, a small model, and one Ray for all of them."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.config import registry
from pipeline.models.example import ExampleNet
from pipeline.store.schema import arrays_of
from tests.pipeline.object_store import Bucket, FaultyProxy, faulty_proxy, make_bucket, s3_server

N_ROWS, LENGTH, ROWS_PER_SHARD = 22, 40, 6  # 4 shards, the last one short


def write_fasta(path: Path, sequences: list[str]) -> Path:
    path.write_text("".join(f">s{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return path


def random_sequences(n: int = N_ROWS, length: int = LENGTH, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices("ACGT", k=length)) for _ in range(n)]


def chosen(group: str, name: str, **settings: Any) -> Any:
    """The settings of a choice of `model`, `dataset` or `references`."""
    return registry.schema(group, name)(**settings)


def worked_example(file: str) -> str:
    """A module that CONTRIBUTING.md shows whole, by the name in its first line."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    return text.partition(f"```python\n# {file}\n")[2].partition("```")[0]


@dataclass(frozen=True)
class Inputs:
    """Files that a run needs, and the overrides that name them."""

    sequences: Path
    weights: Path

    def overrides(self, store: Path | str, *more: str) -> list[str]:
        own = [
            "model=module",
            "model._target_=pipeline.models.example.ExampleNet",
            "model.init.n_filters=4",
            "model.init.n_hidden=4",
            f"model.checkpoint={self.weights}",
            "dataset=fasta",
            f"dataset.path={self.sequences}",
            "references.n_shuffles=3",
            f"store.rows_per_shard={ROWS_PER_SHARD}",
            "cluster=none",
            f"store.path={store}",
        ]
        given = {override.partition("=")[0] for override in more}
        return [override for override in own if override.partition("=")[0] not in given] + list(more)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the cache of whoever runs it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLSHAP_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    save_file(ExampleNet(n_filters=4, n_hidden=4).state_dict(), folder / "weights.safetensors")
    return Inputs(write_fasta(folder / "sequences.fa", random_sequences()), folder / "weights.safetensors")


@pytest.fixture(scope="session")
def finished(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store, not to be changed."""
    store = tmp_path_factory.mktemp("finished") / "whole.zarr"
    assert pipeline.run(inputs.overrides(store)).complete
    return store


def values(store: Path) -> dict[str, bytes]:
    """Every value of every array, bit for bit."""
    opened = pipeline.open_store(store)
    table = {name: repr(column.tolist()).encode() for name, column in opened.rows.items()}
    return {name: np.asarray(opened[name][:]).tobytes() for name in arrays_of(opened.plan)} | table


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[None]:
    """One Ray for the whole session; the pipeline uses a Ray that is already up."""
    from pipeline.config.schema import EngineConfig
    from pipeline.execution.executors.local import Local, LocalRayExecutor

    # Ray leaves sockets and processes to the garbage collector.
    warnings.filterwarnings("ignore", category=ResourceWarning)
    with LocalRayExecutor(Local(actors=2), EngineConfig()) as executor:
        executor.connect()
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server on loopback, started when a test asks for it."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, and credentials in the environment while the test runs."""
    return make_bucket(s3, monkeypatch)


@pytest.fixture
def proxy(s3: str) -> Iterator[FaultyProxy]:
    """In front of the server, and handing everything on until it is told otherwise."""
    with faulty_proxy(s3) as proxy:
        yield proxy


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is an empty folder, and what is added to sys.path is taken away again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert os.listdir(tmp_path) == []
    return tmp_path
