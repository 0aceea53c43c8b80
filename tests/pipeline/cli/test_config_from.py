"""A stranger's store decides nothing that runs code, connects to anything or sends anything."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import dispatch
from pipeline.store.checksums import NO_CHECKSUM, state_checksum
from tests.pipeline.conftest import Inputs, values

TARGET = "pipeline.models.example.ExampleNet"
MODEL = [f"model._target_={TARGET}", "model.init={n_filters:4,n_hidden:4}"]


@pytest.fixture
def theirs(finished: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make their.zarr of a finished store, with other settings under its checksum."""
    monkeypatch.setenv("ATK_SECRET", "s3cr3t")

    def make(**groups: dict[str, Any]) -> str:
        shutil.copytree(finished, "their.zarr", dirs_exist_ok=True)
        path = Path("their.zarr/zarr.json")
        root = json.loads(path.read_text())
        for group, settings in groups.items():
            root["attributes"]["config"][group].update(settings)
        root["attributes"]["checksum"] = NO_CHECKSUM
        path.write_bytes(state_checksum(json.dumps(root)))
        return "their.zarr"

    return make


ATTACKS: dict[str, tuple[dict[str, Any], str]] = {
    "trust_pickle": ({"model": {"trust_pickle": True}}, "model.trust_pickle=true"),
    "target": ({"model": {"_target_": "torch.load", "init": {"f": "x.pt"}}}, "model._target_=torch.load"),
    "init": ({"model": {"init": {"n_filters": 4, "n_hidden": 4, "x": 1}}}, "model.init.x=1"),
    "nested": (
        {"model": {"init": {"n_hidden": {"_target_": "joblib.load", "filename": "a b"}}}},
        "model.init.n_hidden={_target_:joblib.load,filename:'a b'}",
    ),
    "null": (
        {"model": {"init": {"n_filters": 4, "n_hidden": 4, "weights_only": None}}},
        "model.init.weights_only=null",
    ),
    "code": ({"cluster": {"name": "local", "code": "/evil"}}, "cluster.code=/evil"),
    "address": ({"cluster": {"name": "address", "address": "evil:6379"}}, "cluster.address='evil:6379'"),
    "this cluster": ({"cluster": {"name": "address", "address": "auto"}}, "cluster.address=auto"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_store_does_not_decide_is_asked_for(
    theirs: Any, attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, named = ATTACKS[attack]
    model = settings.get("model", {})
    store, given = theirs(**settings), [each for each in MODEL if each.partition("=")[0].partition(".")[2] not in model]
    given = [*given, "store.path=new.zarr", *(["cluster=none"] if "cluster" not in settings else [])]
    assert dispatch(["run", "--config-from", store, *given]) == 2
    error = capsys.readouterr().err
    assert "their.zarr names what runs code or is connected to: " in error
    assert named in error
    assert not Path("new.zarr").exists()
    (pasted,) = error.split("`")[1::2]
    assert dispatch([*shlex.split(pasted)[1:], "--cfg", "job"]) == 0, "what is advised is enough"
    assert dispatch(["run", "--config-from", store, "--trust-config", *given, "--cfg", "job"]) == 0
    told = capsys.readouterr()
    assert f"--trust-config takes from {store}: " in told.err
    assert named in told.err


def test_options_of_an_object_store_are_never_taken(theirs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    store = theirs(store={"options": {"endpoint": "http://localhost", "allow_http": "true"}})
    for more in ([], ["--trust-config"]):
        assert dispatch(["run", "--config-from", store, *more, *MODEL, "store.path=s3://mine/x", "--cfg", "job"]) == 0
        assert "localhost" not in capsys.readouterr().out
    assert dispatch(["run", "--config-from", store, *MODEL]) == 0, "of a copy on a disk they mean nothing"


@pytest.mark.parametrize(
    "settings",
    [
        {"dataset": {"path": "/nowhere/${oc.env:ATK_SECRET}"}},
        {"dataset": {"args": [["${oc.env:ATK_SECRET}"]]}},
        {"model": {"head": "${seed}"}},
        {"store": {"options": {"endpoint": "http://localhost/${oc.env:ATK_SECRET}"}}},
    ],
)
def test_nothing_is_looked_up_for_a_store(
    theirs: Any, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--trust-config"]):
        assert dispatch(["run", "--config-from", theirs(**settings), *more, *MODEL, "store.path=new.zarr"]) == 2
        told = capsys.readouterr()
        assert "which stands for something else; settings of a run never do" in told.err
        assert "s3cr3t" not in told.out + told.err
    assert not Path("new.zarr").exists()


@pytest.mark.parametrize(("group", "value"), [("model", "module"), ("store", None), ("run", [1]), ("cluster", {})])
def test_settings_of_another_shape_are_a_line(
    theirs: Any, group: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(theirs()) / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"]["config"][group], root["attributes"]["checksum"] = value, NO_CHECKSUM
    path.write_bytes(state_checksum(json.dumps(root)))
    is_empty = value == {}
    assert dispatch(["run", "--config-from", "their.zarr", *MODEL, "--cfg", "job"]) == (0 if is_empty else 2)
    # where the store was read first, it is damaged
    said = "holds what dlshap does not write" if group == "model" else f"its settings of {group} are no settings"
    assert (said in capsys.readouterr().err) != is_empty


def test_what_is_plain_is_taken(inputs: Inputs, theirs: Any, finished: Path) -> None:
    store = theirs()
    assert dispatch(["run", "--config-from", store, "--trust-config", "store.path=new.zarr"]) == 0
    assert values(Path("new.zarr")) == values(finished)


def test_a_trusted_store_calls_no_more_than_any_other(theirs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("torch.load", "pandas.read_pickle", "joblib.load", "os.system", "numpy.load"):
        store = theirs(model={"_target_": target, "init": {}, "checkpoint": None})
        assert dispatch(["run", "--config-from", store, "--trust-config", "store.path=new.zarr"]) == 2
        assert f"error: model._target_={target} is " in capsys.readouterr().err
