"""A model is chosen by the person: the example's own serves the example's input alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.cli.main import dispatch
from pipeline.cli.settings import repeat_config
from pipeline.config.compose import compose_config
from pipeline.config.schema import Config
from pipeline.config.settings import to_dict
from pipeline.config.validate import from_mapping
from pipeline.execution.audit import audit_config
from pipeline.execution.cost_estimate import estimate_config
from pipeline.messages.errors import UserError
from pipeline.messages.progress import shown_on_stderr
from pipeline.models.bpnet import BPNet
from pipeline.models.load import load_chosen
from tests.pipeline.conftest import Inputs, chosen, random_sequences, write_fasta

ASKS = r"^dataset=fasta needs a model; add model=bpnet model\.checkpoint=\.\.\., or model=module"


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    path = write_fasta(tmp_path / "x.fa", random_sequences(3))
    return ["dataset=fasta", f"dataset.path={path}", f"store.path={tmp_path / 'a.zarr'}", "cluster=none"]


def test_a_dataset_of_ones_own_asks_for_a_model(own: list[str], tmp_path: Path) -> None:
    for run in (
        pipeline.run,
        lambda own: audit_config(compose_config(own)),
        lambda own: estimate_config(compose_config(own)),
    ):
        with pytest.raises(UserError, match=ASKS):
            run(own)
    with pytest.raises(UserError, match=ASKS):
        pipeline.run(Config(dataset=chosen("dataset", "fasta", path=str(tmp_path / "x.fa"))))
    with pytest.raises(UserError, match=ASKS):
        pipeline.run({"dataset": {"name": "fasta", "path": str(tmp_path / "x.fa")}})
    with pytest.raises(UserError, match=ASKS):
        pipeline.run([*own, "experiment=quick"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.fa"]


def test_the_example_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for config in (
        compose_config([]),
        compose_config(["experiment=quick"]),
        from_mapping({}),
        from_mapping(to_dict(Config())),
    ):
        assert config.model.name == "example"
        with shown_on_stderr():
            assert load_chosen(config).description["name"] == "example"
    assert capsys.readouterr().err == ""


def test_the_examples_model_on_other_sequences_is_said(own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with shown_on_stderr():
        (note,) = load_chosen(compose_config([*own, "model=example"])).notes
    assert note.startswith("model=example is a toy network for the motifs of dataset=example")
    assert f"dlshap: {note}\n" == capsys.readouterr().err


def test_a_class_asks_for_its_group(own: list[str]) -> None:
    with pytest.raises(UserError, match=r"model\._target_=a\.B needs model=module; set model=module"):
        compose_config([*own, "model._target_=a.B"])


@pytest.mark.parametrize("dataset", [[], ["dataset=fasta", "dataset.path=x.fa"]])
def test_a_checkpoint_asks_for_its_model(tmp_path: Path, dataset: list[str]) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt needs its model; add model=bpnet, model=chrombpnet or model=keras, or"):
        load_chosen(compose_config([*dataset, f"model.checkpoint={tmp_path / 'w.pt'}"]))


def test_a_file_of_keras_asks_for_its_family(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=r"m\.h5 is a file of Keras; add model=keras \(of chrombpnet: model=chrombpnet"):
        load_chosen(compose_config([f"model.checkpoint={tmp_path / 'm.h5'}"]))


@pytest.mark.parametrize("name", ["bpnetlite.bpnet.BPNet", "bpnetlite.chrombpnet.ChromBPNet"])
def test_a_pickle_of_bpnet_lite_is_not_to_be_trusted(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, cls = name.rpartition(".")
    pickled = type(cls, (BPNet,), {"__module__": module})
    import sys
    from types import ModuleType

    for part in ("bpnetlite", module):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    setattr(sys.modules[module], cls, pickled)
    torch.save(pickled(n_filters=4, n_layers=1), tmp_path / "w.torch")
    family = "chrombpnet" if "chrom" in name else "bpnet"
    for more, text in ([], f"add model={family}"), (["model=module"], f"use model={family} model.checkpoint=..."):
        with pytest.raises(UserError, match=rf"w\.torch is a whole model of bpnet-lite; {text}") as caught:
            load_chosen(compose_config([*more, f"model.checkpoint={tmp_path / 'w.torch'}"]))
        assert "trust" not in str(caught.value)


def test_a_run_that_is_repeated_on_another_input_asks_again(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "a.zarr"
    small = ["dataset.on_bad=skip", "references=zeros", "cluster=none", "store.rows_per_shard=384"]
    assert pipeline.run([*small, f"store.path={store}"]).complete
    opened = pipeline.open_store(store)
    assert opened.attrs["config"]["model"]["name"] == "example"
    assert opened.target_names == ["output"]
    capsys.readouterr()
    again = [
        "run",
        "--config-from",
        str(store),
        "dataset=fasta",
        f"dataset.path={inputs.sequences}",
        f"store.path={store}2",
    ]
    assert dispatch(again) == 2
    assert "dataset=fasta needs a model" in capsys.readouterr().err
    assert repeat_config(str(store), ["model=example", *again[3:5]]).model.name == "example"
    assert repeat_config(str(store), []).model.name == "example"


def test_notes_and_names_are_kept_in_the_store(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("sequence,id\n" + "".join(f"{text},s{i}\n" for i, text in enumerate(random_sequences(3))))
    command = inputs.overrides(tmp_path / "a.zarr", "dataset=table", f"dataset.path={path}")
    assert dispatch(["run", *command]) == 0
    store, said = pipeline.open_store(tmp_path / "a.zarr"), capsys.readouterr().err
    assert store.attrs["notes"] == [
        "x.csv: split at each comma; sequence from column 'sequence', name from column 'id'"
    ]
    assert said.count(f"dlshap: {store.attrs['notes'][0]}\n") == 1
    assert "notes" not in store.attrs["dataset"]
