"""Several heads in one run: each gives what it gives alone, by its name, and what does not sum is not judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.cli.main import dispatch
from pipeline.config.compose import compose_config
from pipeline.config.schema import Config
from pipeline.execution.preflight import Preflight, run_preflight
from pipeline.messages.errors import UserError
from pipeline.models.bpnet import BPNet
from pipeline.models.explained import watched
from pipeline.models.load import LoadedModel, bare, load_model
from pipeline.planning.convergence import describe_deltas
from tests.pipeline.conftest import chosen, random_sequences, write_fasta

LENGTH = 80
ARRAYS = ("attribution", "hypothetical", "prediction", "reference_prediction", "convergence_delta")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of two folds of a BPNet and one of its bias, and sequences."""
    path = tmp_path_factory.mktemp("heads")
    for seed, name in enumerate(("a", "b", "bias")):
        torch.manual_seed(seed)
        model = BPNet(n_filters=6, n_layers=2, n_outputs=2, trimming=20)
        save_file({key: 2 * value for key, value in model.state_dict().items()}, path / f"{name}.safetensors")
    write_fasta(path / "x.fa", random_sequences(5, LENGTH))
    return path


def overrides(folder: Path, store: Path, *more: str, model: str = "bpnet") -> list[str]:
    return [
        f"model={model}",
        f"model.checkpoint=[{folder / 'a.safetensors'},{folder / 'b.safetensors'}]",
        "model.init.trimming=20",
        *("dataset=fasta", f"dataset.path={folder / 'x.fa'}"),
        *("references.n_shuffles=3", "store.rows_per_shard=4", "cluster=none", f"store.path={store}", *more),
    ]


def command(*arguments: object) -> None:
    assert dispatch([str(each) for each in arguments]) == 0


@pytest.mark.parametrize(
    "more",
    [
        [],
        pytest.param(["engine.dtype=float64", "store.per_fold=true"], marks=pytest.mark.slow),
        pytest.param(["engine.reverse_complement=average"], marks=pytest.mark.slow),
    ],
)
def test_each_head_gives_what_it_gives_alone(folder: Path, tmp_path: Path, more: list[str]) -> None:
    heads = ["counts", "profile_midpoint", "profile_elementwise"]
    for head in (f"[{','.join(heads)}]", *heads):
        assert pipeline.run(overrides(folder, tmp_path / f"{head}.zarr", f"model.head={head}", *more)).complete
    together = pipeline.open_store(tmp_path / f"[{','.join(heads)}].zarr")
    assert together.targets == heads
    assert together.target_names == ["log counts", "profile (midpoint)", "profile (elementwise)"]
    assert together.attrs["head"] == together.attrs["fingerprint"]["model.head"] == ",".join(heads)
    assert together.attrs["convergence"] == "passed"
    for index, head in enumerate(heads):
        alone = pipeline.open_store(tmp_path / f"{head}.zarr")
        for name in ARRAYS:
            at = list(together[name].metadata.dimension_names).index("target")
            np.testing.assert_array_equal(np.take(together[name][:], [index], at), alone[name][:], err_msg=name)


def test_those_of_chrombpnet_with_its_bias(folder: Path, tmp_path: Path) -> None:
    both = [f"model.bias={folder / 'bias.safetensors'}", "model.with_bias=true"]
    for head in ("[profile_stopgrad,counts]", "profile_stopgrad", "counts"):
        given = overrides(folder, tmp_path / f"{head}.zarr", f"model.head={head}", *both, model="chrombpnet")
        assert pipeline.run(given).complete
    together = pipeline.open_store(tmp_path / "[profile_stopgrad,counts].zarr")
    for index, head in enumerate(("profile_stopgrad", "counts")):
        alone = pipeline.open_store(tmp_path / f"{head}.zarr")
        for name in ARRAYS:
            np.testing.assert_array_equal(together[name][:, index], alone[name][:, 0], err_msg=name)
    deltas = together.attrs["run"]["deltas"]
    of_counts = pipeline.open_store(tmp_path / "counts.zarr").attrs["run"]["deltas"]
    assert (deltas["not_judged"], deltas["largest"]) == (["profile_stopgrad"], of_counts["largest"])
    assert describe_deltas(deltas).endswith("; those of profile_stopgrad are not judged, as they do not sum by design")
    assert np.abs(together["convergence_delta"][:, 0]).max() > 100 * deltas["largest"]
    assert together.attrs["convergence"] == "passed"
    assert pipeline.open_store(tmp_path / "profile_stopgrad.zarr").attrs["convergence"] == "not judged"


def test_a_head_that_is_called_again_alone_is_counted_once(folder: Path) -> None:
    model = loaded(["counts", "profile_midpoint"], folder).module
    x = torch.zeros(1, 4, LENGTH)
    with watched(model) as seen, torch.no_grad():
        model(x)
        model.head.heads[1](model.model(x))
    assert (seen.widths, seen.n_targets) == ((1, 1), 2)


def test_where_no_target_sums_by_design_none_is_judged(folder: Path, tmp_path: Path) -> None:
    """Also where other heads of the run do, and a contrast with one that does."""
    more = ["model.head=[counts,profile_stopgrad]", 'engine.targets=[1,"[0] - [1]"]']
    assert pipeline.run(overrides(folder, tmp_path / "a.zarr", *more)).complete
    attrs = pipeline.open_store(tmp_path / "a.zarr").attrs
    assert (attrs["convergence"], attrs["run"]["deltas"]["not_judged"]) == ("not judged", [])
    some = ["model.head=[profile_stopgrad,counts]", "engine.targets=[0]"]
    pipeline.run(overrides(folder, tmp_path / "b.zarr", *some))
    deltas = pipeline.open_store(tmp_path / "b.zarr").attrs["run"]["deltas"]
    assert "(head profile_stopgrad does not sum" in describe_deltas(deltas)


def test_by_yaml_by_command_and_by_python_alike(folder: Path, tmp_path: Path) -> None:
    """And what is exported of each target knows its head."""
    written = tmp_path / "conf" / "experiment"
    written.mkdir(parents=True)
    (written / "both.yaml").write_text("# @package _global_\nmodel:\n  head: [counts, profile_midpoint]\n")
    given = overrides(folder, tmp_path / "a.zarr")
    command("run", "--config-dir", written.parent, "experiment=both", *given)
    command("run", "model.head=[counts,profile_midpoint]", *overrides(folder, tmp_path / "b.zarr"))
    values: dict[str, Any] = {
        "model": {
            "name": "bpnet",
            "checkpoint": [str(folder / "a.safetensors"), str(folder / "b.safetensors")],
            "head": ["counts", "profile_midpoint"],
            "init": {"trimming": 20},
        },
        "dataset": {"name": "fasta", "path": str(folder / "x.fa")},
        "references": {"n_shuffles": 3},
        "store": {"rows_per_shard": 4, "path": str(tmp_path / "c.zarr")},
        "cluster": {"name": "none"},
    }
    assert pipeline.run(values).complete
    stores = [pipeline.open_store(tmp_path / f"{name}.zarr") for name in "abc"]
    assert len({store.digest() for store in stores}) == 1
    assert stores[0].attrs["fingerprint"] == stores[1].attrs["fingerprint"] == stores[2].attrs["fingerprint"]
    for target, ending in [("counts", "counts"), ("profile_midpoint", "profile")]:
        command("export", "chrombpnet", tmp_path / "a.zarr", tmp_path / "a", "--target", target)
        with h5py.File(tmp_path / f"a.{ending}_scores.h5") as file:
            index = stores[0].targets.index(target)
            np.testing.assert_allclose(file["shap/seq"][:], stores[0].hypothetical[:, index], rtol=1e-3, atol=1e-6)
    command("export", "modisco", tmp_path / "a.zarr", tmp_path / "m", "--target", "profile_midpoint", "--window", "40")
    command("report", tmp_path / "a.zarr", "-o", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "log counts" in page
    assert "profile (midpoint)" in page
    again = pipeline.run(overrides(folder, tmp_path / "a.zarr", "model.head=[counts,profile_midpoint]"))
    assert (again.complete, again.rows_computed) == (True, 0)
    with pytest.raises(UserError, match=r"model\.head is "):
        pipeline.run(overrides(folder, tmp_path / "a.zarr", "model.head=counts"))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("[]", "model.head=[]; expected the name of a head, or a list of such: model.head=[counts,profile_midpoint]"),
        ("[counts,counts]", "counts is there twice; give each head once"),
        ("[counts,3]", "expected the name of a head, or a list of such"),
        ("[counts,none]", "none leaves the model's output as it is, and goes with no other head"),
        ("null", "expected the name of a head"),
    ],
)
def test_lists_that_are_none(head: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config([f"model.head={head}"])
    assert expected in str(caught.value)


def test_an_unknown_head_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"model\.head=counts,profil: no head is called 'profil'; there are none, counts"
    ):
        pipeline.run(overrides(folder, tmp_path / "a.zarr", "model.head=[counts,profil]"))


def loaded(heads: list[str], path: Path) -> LoadedModel:
    return load_model(
        chosen("model", "bpnet", head=heads, checkpoint=str(path / "a.safetensors"), init={"trimming": 20})
    )


def tried(model: LoadedModel, heads: list[str], targets: Any = "auto") -> Preflight:
    config = Config()
    config.model.head, config.engine.targets = heads, targets
    return run_preflight(model, np.random.RandomState(0).randint(0, 4, LENGTH).astype(np.uint8), "s", config, "cpu")


def test_what_is_explained_is_said(folder: Path) -> None:
    heads = ["counts", "profile_stopgrad"]
    found = tried(loaded(heads, folder), heads)
    assert found.notes == (
        "explaining the log counts (model.head=counts)",
        "explaining the profile over 2 strands x 40 positions, the first of its 2 outputs "
        "(model.head=profile_stopgrad)",
    )
    assert (found.targets, found.labels, found.heads) == ([0, 1], tuple(heads), tuple(heads))
    some = tried(loaded(heads, folder), heads, [1, "sum=[0] + [1]"])
    assert some.labels == ("profile_stopgrad", "sum")
    assert some.names == ("profile (stopgrad)", "sum")
    assert some.heads == ("profile_stopgrad", "counts,profile_stopgrad")


def test_targets_of_several_heads_have_the_names_of_these(folder: Path) -> None:
    heads = ["counts", "profile_stopgrad", "profile_midpoint"]
    found = tried(loaded(heads, folder), heads, ["profile_midpoint", "counts - profile_stopgrad"])
    assert found.targets == [2, {0: 1.0, 1: -1.0}]
    assert found.labels == ("profile_midpoint", "counts - profile_stopgrad")
    with pytest.raises(UserError, match="there is no target profile; nearest are profile_"):
        tried(loaded(heads, folder), heads, ["profile"])
    compose_config([f"model.head=[{','.join(heads)}]", "engine.targets=[counts]"])
    with pytest.raises(UserError, match=r"engine\.targets: counts has names, and model\.target_names is not set"):
        compose_config(["model.head=counts", "engine.targets=[counts]"])


def test_a_head_of_several_targets_is_none_of_them(folder: Path) -> None:
    heads = ["counts", "profile_midpoint"]
    model = loaded(heads, folder)
    for fold in model.folds:
        bare(fold).linear = torch.nn.Linear(6, 2).eval()
    assert tried(model, heads, [2]).labels == ("profile_midpoint",)
    for names in (["profile_midpoint"], [0, "[1] - counts"]):
        with pytest.raises(UserError, match=r"give places: 0 \(counts 0\), 1 \(counts 1\), 2 \(profile_midpoint\)"):
            tried(model, heads, names)
