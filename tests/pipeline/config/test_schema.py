"""Configurations: what may be said, and the one line that answers what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import conf
from pipeline.config.compose import compose, compose_config
from pipeline.config.registry import GROUPS, names, schema
from pipeline.config.schema import Config
from pipeline.config.settings import settings_of, to_dict
from pipeline.config.validate import from_mapping, keys, model_from_dict
from pipeline.messages.errors import UserError

FASTA = ["dataset=fasta", "dataset.path=x.fa"]


def test_defaults_are_the_example() -> None:
    config = compose_config([])
    assert (config.model.name, config.dataset.name, config.cluster.name) == ("example", "example", "local")
    assert (config.references.n_shuffles, config.seed, config.targets) == (20, 0, [0])
    assert config.store.rows_per_shard == 64, "two actors have as many of its shards"
    assert compose_config(FASTA).store.rows_per_shard == 128
    assert compose_config(["store.rows_per_shard=9"]).store.rows_per_shard == 9
    assert (config.engine.threads, config.dataset.min_known, config.dataset.on_bad) == (1, 0.5, "error")


def test_values_reach_the_configuration() -> None:
    chosen = ["model=bpnet", "model.checkpoint=a b.torch", "engine.targets=[2,0]", "model.init.n=3", "model.output=1"]
    config = compose_config([*chosen, "experiment=quick", "run.shards='2-5'", "engine.batch_size=7"])
    assert (config.model.head, config.model.checkpoint, config.model.output) == ("counts", "a b.torch", 1)
    assert config.model.init == {"n": 3}
    assert (config.engine.targets, config.engine.batch_size, config.run.shards) == ([2, 0], 7, "2-5")
    assert config.references.n_shuffles == 4
    assert compose_config(["run.shards=3"]).run.shards == "3"
    assert compose_config(["engine.targets=all"]).engine.targets == "all"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["engine.batchsize=3"], ["engine.batchsize is not a setting", "did you mean engine.batch_size?"]),
        (["+engine.batchsize=3"], ["engine.batchsize is not a setting", "did you mean engine.batch_size?"]),
        (["+new.key=1"], ["new is not a setting"]),
        (["modle=bpnet"], ["modle is not a setting", "did you mean model?"]),
        (
            ["model=bpnt"],
            [
                "model=bpnt; expected borzoi, bpnet, cherimoya, chrombpnet, enformer, example, grelu, keras, module or",
                "did you mean bpnet?",
            ],
        ),
        (["dataset.args=dose"], ["dataset.args=dose; expected a list: dataset.args=[dose]"]),
        (["engine.threads=two"], ["engine.threads=two; expected a whole number"]),
        (["engine.threads=0"], ["engine.threads=0; expected a whole number of at least 1"]),
        (["engine.batch_size=many"], ["engine.batch_size=many", "or auto"]),
        (["cluster.actors=0"], ["cluster.actors=0", "or auto"]),
        (["engine.targets=[a"], ["cannot be read as it is; write 'engine.targets=[a]'"]),
        (["engine.targets=[0,0]"], ["engine.targets=[0, 0]", "or all"]),
        (["engine.targets=first"], ["engine.targets=first", "or all"]),
        (["engine.device=gpu"], ["engine.device=gpu; expected auto, cpu, cuda"]),
        (["engine.dtype=float31"], ["engine.dtype=float31; expected float32", "did you mean float32?"]),
        (["engine.on_nonconvergence=fial"], ["engine.on_nonconvergence=fial; expected warn or fail", "mean fail?"]),
        (["references=uniforn"], ["references=uniforn; expected", "did you mean uniform?"]),
        (["references=array"], ["references=array needs references.path"]),
        (["references=genomic"], ["references=genomic needs references.genome"]),
        (["references=zeros", "references.path=x"], ["references=zeros and references.path contradict", "=array, or"]),
        (
            ["dataset=loci", "dataset.path=x.bed", "dataset.genome=g.fa"],
            ["dataset=loci has no dataset.path, which belongs to dataset=", "it takes dataset.genome and dataset.loci"],
        ),
        (["dataset=fasta", "dataset.loci=x.bed"], ["which belongs to dataset=loci; it takes dataset.path"]),
        (["references.window=9"], ["references=dinucleotide_shuffle and references.window contradict"]),
        (["references=local_dinucleotide_shuffle", "references.window=3"], ["references.window=3; expected 4 bases"]),
        (["references=background", "references.frequencies=[0.5,0.5]"], ["expected four shares"]),
        (["references=background", "references.frequencies=[1,1,1,1]"], ["expected four shares"]),
        (["references.n_shuffles=null"], ["references=dinucleotide_shuffle needs references.n_shuffles"]),
        (["foo"], ["'foo' is not a setting; expected name=value"]),
        (["seed=-1"], ["seed=-1; expected 0 or more"]),
        (["seed=65536"], ["seed=65536; expected 0 or more, below 65536", "references.random_state takes any seed"]),
        (["references.n_shuffles=65537"], ["references.n_shuffles=65537; expected at most 65536"]),
        (["references.random_state=-1"], ["references.random_state=-1; expected 0 or more, at most 2**32"]),
        (["references.random_state=4294967277"], ["references.random_state=4294967277; expected 0 or more, at most"]),
        (["seed=3", "references.random_state=0"], ["seed=3 and references.random_state=0 contradict each other"]),
        (
            ["references=zeros", "references.random_state=0"],
            ["references=zeros and references.random_state contradict"],
        ),
        (["dataset.min_known=2"], ["dataset.min_known=2.0; expected a share between 0 and 1"]),
        (["dataset.on_bad=skp"], ["dataset.on_bad=skp; expected error or skip", "did you mean skip?"]),
        (["run.shards=x"], ["run.shards=x; expected first-last"]),
        (["run.shards=3-1"], ["run.shards=3-1 ends before it begins"]),
        (["store.path=s3://"], ["store.path='s3://'; expected a path, or s3://bucket/prefix"]),
        (["store.options.region=x"], ["store.path=attributions.zarr and store.options contradict"]),
        (["store.path=file:///x", "store.options.region=x"], ["store.path=file:///x and store.options contradict"]),
        (["dataset.timeout_s=0"], ["dataset.timeout_s=0; expected a whole number of at least 1"]),
        (["cluster=slurm"], ["cluster=slurm; expected address, local or none"]),
        (["cluster.address=h:1"], ["cluster=local and cluster.address contradict", "use cluster=address"]),
        (["cluster=address", "cluster.address=null"], ["cluster=address needs cluster.address", "or =auto"]),
        (["cluster=address", "cluster.address=ray://h:1"], ["ray://h:1 is an address of Ray Client", "=auto"]),
        (["cluster.gpus_per_actor=1.5"], ["cluster.gpus_per_actor=1.5; expected a share such as 0.5"]),
        (["cluster.gpus_per_actor=-1"], ["cluster.gpus_per_actor=-1; expected a share"]),
        (["cluster.gpus_per_actor=0", "engine.device=cuda"], ["gpus_per_actor=0 and engine.device=cuda contradict"]),
        (["cluster.resources.tpu=0"], ["cluster.resources.tpu=0.0; expected a number above 0"]),
        (["cluster.resources.tpu=x"], ["cluster.resources.tpu=x; expected a number"]),
        (["cluster.resources.GPU=1"], ["cluster.resources.GPU=1.0; expected custom", "use cluster.gpus_per_actor"]),
        (["cluster.min_actors=2"], ["cluster.min_actors=2 needs cluster.max_actors"]),
        (["cluster.max_actors=0"], ["cluster.max_actors=0; expected a whole number"]),
        (["cluster.min_actors=3", "cluster.max_actors=2"], ["cluster.min_actors=3 is more than cluster.max_actors=2"]),
        (["cluster.actors=3", "cluster.max_actors=4"], ["cluster.actors=3 and cluster.max_actors=4 contradict"]),
        (["cluster=none", "cluster.code=x"], ["cluster=none and cluster.code contradict"]),
        (["cluster=none", "cluster.resources.tpu=1"], ["cluster=none and cluster.resources contradict"]),
        (["dataset=fasta"], ["dataset=fasta needs dataset.path"]),
        (["dataset=loci", "dataset.loci=x.bed"], ["dataset=loci needs dataset.genome"]),
        ([*FASTA, "dataset.loci=x.bed"], ["dataset=fasta has no dataset.loci", "dataset=loci"]),
        (["dataset.path=x.fa"], ["dataset=example and dataset.path contradict", "use dataset=array, fasta or table"]),
        (
            ["cluster=none", "cluster.actors=3"],
            ["cluster=none and cluster.actors contradict", "cluster=address or local"],
        ),
        (["cluster=none", "cluster.address=auto"], ["cluster=none and cluster.address contradict", "=address"]),
        (["engine.device=cuda:1"], ["cluster=local and engine.device=cuda:1 contradict", "cluster=none"]),
        (["model._target_=a.B"], ["model=example and model._target_ contradict", "model=module"]),
    ],
)
def test_what_cannot_be_is_answered_in_one_line(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        compose_config(overrides)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["aws_access_key_id", "secret_access_key", "session_token", "account_key", "sas_token", "SecretKey", "password"],
)
def test_credentials_are_kept_out_of_what_a_store_tells(name: str) -> None:
    with pytest.raises(UserError, match=rf"store\.options\.{name} looks like a credential.*environment variable"):
        compose_config(["store.path=s3://bucket/x", f"store.options.{name}=hunter2"])


def test_mappings_take_names_of_their_own() -> None:
    chosen = ["store.path=s3://b/x", "store.options.endpoint='http://127.0.0.1:9'", "store.options={region: eu}"]
    config = compose_config([*chosen, "cluster.resources.tpu=2", "cluster.gpus_per_actor=0.5", "cluster=address"])
    assert config.store.options == {"endpoint": "http://127.0.0.1:9", "region": "eu"}
    assert config.cluster.resources == {"tpu": 2.0}
    assert (config.cluster.gpus_per_actor, config.cluster.address) == (0.5, "auto")


def test_every_file_of_a_choice_has_a_schema_with_its_keys() -> None:
    for path in Path(str(conf.__file__)).parent.glob("*/*.yaml"):
        loaded, is_global = OmegaConf.load(path), "@package _global_" in path.read_text()
        given = (
            [f"{group}.{key}" for group in loaded if group != "defaults" for key in loaded[group]]
            if is_global
            else loaded
        )
        group = path.parent.name
        if group in GROUPS and not is_global:
            own = {each.key for each in settings_of(schema(group, path.stem)(), f"{group}.")}
            assert {f"{group}.{key}" for key in given} <= own, path
            assert schema(group, path.stem)().name == loaded.name == path.stem
        assert {key if is_global else f"{group}.{key}" for key in given} <= set(keys()), path


def test_every_setting_is_described() -> None:
    of_choices = [schema(group, name)() for group in GROUPS for name in names(group)]
    for each in (each for config in (Config(), *of_choices) for each in settings_of(config)):
        assert each.description.strip(), f"{each.key} has no description"
        assert each.fingerprint in ("value", "resolved", "none"), each.key


def test_every_kind_of_references_can_be_chosen() -> None:
    own = {"array": ["references.path=x.npy"], "genomic": ["references.genome=x.fa"]}
    chosen = {
        name: compose_config([f"references={name}", *own.get(name, [])]).references for name in names("references")
    }
    for name, references in chosen.items():
        assert references.name == name
        assert references.n_shuffles == (20 if references.is_drawn else None)


def test_mappings_are_configurations_too() -> None:
    config = from_mapping({"dataset": {"name": "fasta", "path": "x.fa"}, "seed": 4})
    assert (config.dataset.path, config.seed, config.references.n_shuffles) == ("x.fa", 4, 20)
    with pytest.raises(UserError, match=r"dataset\.pth is not a setting; did you mean dataset\.path"):
        from_mapping({"dataset": {"pth": "x.fa"}})
    with pytest.raises(UserError, match="seed is not given"):
        from_mapping(OmegaConf.create({"seed": "???"}))


def test_a_group_of_a_mapping_may_be_the_name_of_its_choice() -> None:
    assert from_mapping({"references": "zeros"}) == from_mapping({"references": {"name": "zeros"}})
    for group, value in (("store", "a.zarr"), ("references", 3), ("engine", ["cpu"])):
        with pytest.raises(UserError, match=rf"{group}=.*; expected a mapping of its settings \("):
            from_mapping({group: value})


def test_a_model_configuration_survives_the_way_to_a_worker() -> None:
    model = compose_config(["model=module", "model._target_=a.B", "model.init.n=3", "model.init.names=[x,y]"]).model
    assert model_from_dict(to_dict(model)) == model


def test_further_choices_come_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "ours.yaml").write_text("name: bpnet\ncheckpoint: ours.torch\nhead: counts\n")
    assert compose_config(["model=ours"], str(tmp_path)).model.checkpoint == "ours.torch"
    with pytest.raises(UserError, match="is not a folder"):
        compose_config([], str(tmp_path / "nowhere"))


def test_seeds_share_no_reference_and_other_numbers_can_be_given() -> None:
    def config(**values: Any) -> Config:
        references = {"n_shuffles": 65536, **values.pop("references", {})}
        return from_mapping({**values, "dataset": {"name": "fasta", "path": "x.fa"}, "references": references})

    bases = [config(seed=seed).random_state for seed in (0, 1, 2, 65535)]
    assert bases == [0, 65536, 131072, 2**32 - 65536], "so many numbers apart, and the last of them is one of numpy's"
    assert config(references={"random_state": 65535, "n_shuffles": 20}).random_state == 65535


def test_a_misspelled_setting_outside_of_the_choices_imports_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.config.validate.schema", lambda *_: pytest.fail("a choice was imported"))
    for misspelled in ("engine.batchsize", "modle.checkpoint"):
        with pytest.raises(UserError, match=rf"^{misspelled} is not a setting; did you mean \w+\.\w+\?"):
            compose([f"{misspelled}=3"])
