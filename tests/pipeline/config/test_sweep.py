"""Sweeps: which jobs a command line describes, what they are called, and what is refused."""

from __future__ import annotations

import pytest

from pipeline.config.compose import compose_config
from pipeline.config.sweep import LONGEST_NAME, jobs_of
from pipeline.messages.errors import UserError


def test_each_value_with_each_and_the_last_changes_fastest() -> None:
    jobs = jobs_of(["model=bpnet", "model.checkpoint=m.pt", "seed=0,1", "engine.targets=choice([0],[0,2])"])
    assert [job.title for job in jobs] == [
        "seed=0 engine.targets=[0]",
        "seed=0 engine.targets=[0,2]",
        "seed=1 engine.targets=[0]",
        "seed=1 engine.targets=[0,2]",
    ]
    assert jobs[1].overrides == ["model=bpnet", "model.checkpoint=m.pt", "seed=0", "engine.targets=[0,2]"]
    configs = [compose_config([*job.overrides, "dataset=fasta", "dataset.path=x.fa"]) for job in jobs]
    assert [(each.seed, each.engine.targets) for each in configs] == [(0, [0]), (0, [0, 2]), (1, [0]), (1, [0, 2])]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("references=uniform,shuffle", ["uniform", "shuffle"]),
        ("seed=range(0,3)", ["0", "1", "2"]),
        ("references.random_state=7,8", ["7", "8"]),
        ("engine.targets=[0],[1]", ["[0]", "[1]"]),
        ("engine.reverse_complement=none,average", ["none", "average"]),
        ("model.head=counts,profile_midpoint", ["counts", "profile_midpoint"]),
        ("model.checkpoint=choice(a b.pt,'c,d.pt')", ["a b.pt", "c,d.pt"]),
        ("model.checkpoint=choice(s3://bucket/x.pt,/data/y.pt)", ["s3://bucket/x.pt", "/data/y.pt"]),
        ("model.checkpoint=choice([a.pt,b.pt],[c.pt])", ["[a.pt,b.pt]", "[c.pt]"]),
        ("model.output=choice(human,mouse)", ["human", "mouse"]),
    ],
)
def test_sweeps(override: str, values: list[str]) -> None:
    (key, _, _) = override.partition("=")
    assert [job.values[key] for job in jobs_of([override])] == values


@pytest.mark.parametrize("override", ["model.checkpoint=a,b.pt", "model.output=[:, 0,1]", "dataset.path=choice,x.fa"])
def test_a_comma_of_a_path_or_an_output_is_part_of_it(override: str) -> None:
    (job,) = jobs_of([override])
    assert (job.values, job.overrides, job.store("o.zarr")) == ({}, [override], "o.zarr")


def test_paths_of_a_sweep_are_those_that_were_given() -> None:
    own = ["model=bpnet", "dataset=fasta", "dataset.path=x.fa"]
    jobs = jobs_of([*own, "model.checkpoint=choice(a b.pt,'c,d=1.pt',s3://b/e.pt)"])
    assert [compose_config(job.overrides).model.checkpoint for job in jobs] == ["a b.pt", "c,d=1.pt", "s3://b/e.pt"]


@pytest.mark.parametrize(
    ("overrides", "path", "stores"),
    [
        (["seed=0,1"], "o.zarr", ["o_seed-0.zarr", "o_seed-1.zarr"]),
        (["engine.targets=[0],[0,2]"], "/d/o.x", ["/d/o.x_targets-0", "/d/o.x_targets-0-2"]),
        (
            ["references=uniform,zeros"],
            "s3://b/p.zarr/",
            ["s3://b/p_references-uniform.zarr", "s3://b/p_references-zeros.zarr"],
        ),
        (["model.checkpoint=choice(/m/fold 0/a.pt)"], "o.zarr", ["o_checkpoint-m-fold-0-a.pt.zarr"]),
        (["model.init.shift=-1,1"], "o.zarr", ["o_shift--1.zarr", "o_shift-1.zarr"]),
    ],
)
def test_names_of_stores(overrides: list[str], path: str, stores: list[str]) -> None:
    assert [job.store(path) for job in jobs_of(overrides)] == stores


def test_a_longer_sweep_finds_the_stores_of_a_shorter_one() -> None:
    short, long = (
        {job.store("o.zarr") for job in jobs_of([f"seed={seeds}", "engine.targets=[0],[1]"])}
        for seeds in ("0,1", "0,1,2")
    )
    assert short < long


def test_long_names_differ_and_fit() -> None:
    jobs = jobs_of([f"model.checkpoint=choice({'a' * 300}1,{'a' * 300}2)"])
    names = {job.name for job in jobs}
    assert len(names) == 2
    assert max(map(len, names)) <= LONGEST_NAME + 9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["store.path=choice(a.zarr,b.zarr)"], "each job's store gets the job's name"),
        (["cluster=none,local"], "all jobs share them"),
        (["cluster.actors=1,2"], "all jobs share them"),
        (["seed=0,1", "seed=2"], "seed is given more than once"),
        (["seed=1,1"], "seed=1,1 has 1 more than once"),
        (["seed=range(0,200)", "references.random_state=range(0,200)"], "40000 jobs"),
        (["seed=range(0,1000000000000)"], "10001 jobs or more"),
        (["references=glob(*)"], "expected values one by one"),
        (["seed=interval(0,1)"], "expected values one by one"),
        (["model.checkpoint=choice(a=1.pt,b.pt)"], "put each value in quotes"),
    ],
)
def test_what_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jobs_of(overrides)


@pytest.mark.parametrize(
    "override", ["hydra.sweep.dir=x", "+hydra.run.dir=x", "hydra/launcher=ray", "~hydra", "hydra.searchpath=[x]"]
)
def test_settings_of_hydras_own_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="has no effect"):
        compose_config([override])


def test_several_values_without_multirun_are_told_of_it() -> None:
    with pytest.raises(
        UserError, match=r"seed=0,1 gives several values; expected one, or --multirun for a run of each"
    ):
        compose_config(["seed=0,1"])
