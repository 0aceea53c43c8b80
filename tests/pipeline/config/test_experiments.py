"""`experiment=NAME`: the examples are whole runs, up to the files they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.compose import compose_config
from pipeline.config.registry import CONF
from pipeline.config.settings import settings_of
from pipeline.config.sweep import jobs_of
from pipeline.messages.errors import UserError

EXAMPLES = {
    "bpnet_counts": ("bpnet", "loci", "dinucleotide_shuffle", "local"),
    "bpnet_profile": ("bpnet", "loci", "dinucleotide_shuffle", "local"),
    "chrombpnet": ("chrombpnet", "loci", "dinucleotide_shuffle", "local"),
    "cloud_pool": ("bpnet", "loci", "dinucleotide_shuffle", "address"),
    "genome_tiles": ("bpnet", "tiles", "dinucleotide_shuffle", "local"),
    "quick": ("example", "example", "dinucleotide_shuffle", "local"),
    "transformer": ("module", "loci", "local_dinucleotide_shuffle", "local"),
    "variants": ("bpnet", "variants", "dinucleotide_shuffle", "local"),
}


def test_every_example_is_tested() -> None:
    assert {path.stem for path in Path(CONF, "experiment").glob("*.yaml")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_whole_run(name: str) -> None:
    config = compose_config([f"experiment={name}"])
    chosen = (config.model.name, config.dataset.name, config.references.name, config.cluster.name)
    assert chosen == EXAMPLES[name]
    if name != "quick":
        assert config.model.checkpoint
        assert config.store.path != "attributions.zarr"
    assert config.model.head != "none" or config.model.name not in ("bpnet", "chrombpnet")


def test_what_is_given_wins_over_an_example() -> None:
    config = compose_config(["experiment=bpnet_counts", "model.checkpoint=a.pt", "dataset.length=1000", "seed=3"])
    assert (config.model.checkpoint, config.dataset.length, config.seed) == ("a.pt", 1000, 3)
    assert config.store.per_fold


def test_examples_can_be_swept_over() -> None:
    jobs = jobs_of(["experiment=bpnet_counts,bpnet_profile"])
    configs = [compose_config(job.overrides) for job in jobs]
    assert [config.model.head for config in configs] == ["counts", "profile_midpoint"]
    stores = [job.store(config.store.path) for job, config in zip(jobs, configs, strict=True)]
    assert stores == ["counts_experiment-bpnet_counts.zarr", "profile_experiment-bpnet_profile.zarr"]


def test_a_wrong_setting_of_an_example_is_found(tmp_path: Path) -> None:
    text = Path(CONF, "experiment", "genome_tiles.yaml").read_text()
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text.replace("stride:", "strid:"))
    with pytest.raises(UserError, match=r"dataset\.strid is not a setting; did you mean dataset\.stride"):
        compose_config(["experiment=mine"], str(tmp_path))


def test_a_pool_of_the_cloud_is_what_the_files_of_clusters_have() -> None:
    config = compose_config(["experiment=cloud_pool"])
    given = {each.key: each.value for each in settings_of(config.cluster, "cluster.")}
    assert (given["cluster.min_actors"], given["cluster.max_actors"], config.engine.device) == (1, 40, "cuda")
