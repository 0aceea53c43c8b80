"""Extra inputs of the model: what reaches it, what the store holds, what a run that goes on refuses."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from safetensors.torch import save_file

import pipeline
from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from dlshap_core.references import shuffle_codes
from pipeline.cli.main import dispatch
from pipeline.cli.settings import repeat_config
from pipeline.config.compose import compose_config
from pipeline.execution.audit import audit_config
from pipeline.execution.cost_estimate import estimate_config
from pipeline.execution.verify import verify
from pipeline.messages.errors import RunError, UserError
from pipeline.models.load import load_model
from pipeline.planning.extra_inputs import other_strand
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import LAYOUT
from pipeline.store.verify.repair import repair
from tests.pipeline.conftest import LENGTH, N_ROWS, ROWS_PER_SHARD, Inputs, random_sequences, values, write_fasta
from tests.pipeline.damage import copy_of, flip
from tests.pipeline.gated import FORMS, Scaled, Values, run_with
from tests.pipeline.gated import values as drawn
from tests.pipeline.inputs.test_variants import GENOME, files, line, other
from tests.pipeline.plug import PulledPlug, plugged
from tests.pipeline.store.verify.test_repair import check_same

N_LINES = 3
TARGETS = "engine.targets=[1,0]"


@pytest.fixture(scope="module")
def given() -> Values:
    return drawn()


@pytest.fixture(scope="module")
def command(inputs: Inputs, given: Values, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the finished store."""
    folder = tmp_path_factory.mktemp("args")
    return run_with(inputs, folder / "whole.zarr", *FORMS["csv"](folder, given), TARGETS)


@pytest.fixture(scope="module")
def whole(command: list[str]) -> Path:
    """A finished store of a model with extra inputs, not to be changed."""
    summary = pipeline.run(command)
    assert summary.complete
    return Path(summary.store)


def elsewhere(command: list[str], store: Path, *more: str) -> list[str]:
    return [*command, f"store.path={store}", *more]


def with_args(command: list[str], dose: str, kind: str) -> str:
    """The setting of the extra inputs with others for the first two, and the tracks of the command."""
    tracks = next(item for item in command if item.startswith("dataset.args")).rpartition(",")[2]
    return f"dataset.args=[{dose},{kind},{tracks}"


def test_the_values_are_those_of_the_core_bit_for_bit(whole: Path, command: list[str], given: Values) -> None:
    store = pipeline.open_store(whole)
    module = load_model(compose_config(command).model).module
    for start in range(0, N_ROWS, ROWS_PER_SHARD):
        rows = slice(start, start + ROWS_PER_SHARD)
        codes = np.asarray(store.codes[rows])
        expected = attribute(
            module,
            one_hot(codes),
            one_hot(torch.from_numpy(shuffle_codes(codes, [0, 1, 2]))),
            args=[torch.from_numpy(value[rows]) for value in given.all()],
            targets=[1, 0],
            batch_size=store.plan.batch_size,
            device="cpu",
        )
        for name in ("hypothetical", "prediction", "reference_prediction", "convergence_delta"):
            assert np.asarray(store[name][rows]).tobytes() == getattr(expected, name).numpy().tobytes(), name


@pytest.mark.parametrize(
    "form", ["loci", "parquet", *(pytest.param(form, marks=pytest.mark.slow) for form in ("npz", "zarr", "fasta"))]
)
def test_every_form_gives_the_same_values(
    inputs: Inputs, given: Values, whole: Path, tmp_path: Path, form: str
) -> None:
    assert pipeline.run(run_with(inputs, tmp_path / "a.zarr", *FORMS[form](tmp_path, given), TARGETS)).complete
    expected, found = values(whole), values(tmp_path / "a.zarr")
    for name in (*LAYOUT, "arg_0", "arg_1", "arg_2"):
        assert found[name] == expected[name], name
    one, other = (pipeline.open_store(store).attrs["fingerprint"] for store in (whole, tmp_path / "a.zarr"))
    assert {key: one[key] for key in one if key.startswith("input.arg")} == {
        key: other[key] for key in other if key.startswith("input.arg")
    }


def test_the_store_holds_them_for_every_reader(whole: Path, given: Values) -> None:
    store, rows = pipeline.open_store(whole), [20, 3, 3]
    found = store.take(["arg_0", "arg_1", "arg_2", "codes"], rows)
    for name, expected in zip(("arg_0", "arg_1", "arg_2"), given.all(), strict=True):
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected[rows])
    (block,) = store.blocks(["arg_2", "prediction"], np.array([5]), target=0, window=slice(3, 9))
    np.testing.assert_array_equal(block["arg_2"], given.tracks[[5], :, 3:9])
    assert block["prediction"].shape == (1,)
    with xarray.open_zarr(whole) as dataset:
        assert dataset["arg_0"].dims == ("sequence", "arg_0_axis_1")
        assert dataset["arg_2"].dims == ("sequence", "arg_2_axis_1", "position")
        np.testing.assert_array_equal(dataset["arg_2"].values, given.tracks)
    assert store.to_xarray()["arg_1"].shape == (N_ROWS, 1)
    assert store.attrs["dataset"]["args"] == ["dose", "kind", "tracks.npy"]
    assert store.plan.args[2] == {"shape": [2, LENGTH], "dtype": "float32"}
    assert Path(repeat_config(str(whole), [], is_trusted=True).dataset.args[2]).is_absolute(), (
        "to be repeated from anywhere"
    )


def test_the_same_command_goes_on_and_another_file_of_values_is_refused(
    whole: Path, command: list[str], given: Values, tmp_path: Path
) -> None:
    store = tmp_path / "a.zarr"
    assert not pipeline.run(elsewhere(command, store, "run.shards=1")).complete
    np.save(tmp_path / "other.npy", np.nextafter(given.tracks, np.float32(2)))
    changed = f"dataset.args=[dose,kind,{tmp_path / 'other.npy'}]"
    for there in (whole, store):
        with pytest.raises(UserError, match=r"belongs to another run: input\.arg_2 is \w{12} there and \w{12} here\. "):
            pipeline.run(elsewhere(command, there, changed))
    with pytest.raises(UserError, match=r"input\.arg_0 is \w{12} there and \w{12} here; input\.arg_1 is "):
        pipeline.run(elsewhere(command, store, with_args(command, "kind", "dose")))
    with pytest.raises(UserError, match=r"input\.arg_0 is \w{12} there and None here"):
        pipeline.run(elsewhere(command, store, "dataset.args=[]"))
    assert pipeline.run(elsewhere(command, store)).rows_computed == N_ROWS - ROWS_PER_SHARD
    assert values(store) == values(whole)


def test_a_file_that_changes_in_place_is_another_input(command: list[str], given: Values, tmp_path: Path) -> None:
    np.save(tmp_path / "tracks.npy", given.tracks)
    run = elsewhere(command, tmp_path / "a.zarr", f"dataset.args=[dose,kind,{tmp_path / 'tracks.npy'}]")
    assert pipeline.run(run).complete
    assert pipeline.run(run).rows_computed == 0
    np.save(tmp_path / "tracks.npy", given.tracks * 2)
    with pytest.raises(UserError, match=r"another run: input\.arg_2 is "):
        pipeline.run(run)


@pytest.mark.parametrize(
    ("key", "with_run"),
    [
        ("arg_0/c.1.0", True),
        ("arg_2/c.3.0.0", False),
        pytest.param("arg_2/c.3.0.0", True, marks=pytest.mark.slow),
        pytest.param("arg_1/zarr.json", True, marks=pytest.mark.slow),
        pytest.param("arg_1/zarr.json", False, marks=pytest.mark.slow),
    ],
)
def test_damage_is_found_named_and_repaired(
    whole: Path, command: list[str], tmp_path: Path, key: str, with_run: bool
) -> None:
    store = copy_of(whole, tmp_path / "a.zarr", with_run)
    flip(store / key, random.Random(0))
    directory = RunDirectory(store)
    findings = verify(directory)
    assert [problem.key for problem in findings.problems] == [key]
    assert [problem.shard for problem in findings.problems] == [int(key.split(".")[1]) if "/c." in key else None]
    repair(directory, findings)
    n = {"arg_0/c.1.0": ROWS_PER_SHARD, "arg_2/c.3.0.0": N_ROWS - 3 * ROWS_PER_SHARD}.get(key, 0)
    assert pipeline.run(elsewhere(command, store)).rows_computed == n
    check_same(store, whole)


@pytest.mark.slow
def test_a_store_whose_records_are_lost_is_begun_again(whole: Path, command: list[str], tmp_path: Path) -> None:
    store = copy_of(whole, tmp_path / "a.zarr", with_run=False)
    flip(store / "shard_crc32/c.0.0", random.Random(0))
    flip(store / "arg_2/c.0.0.0", random.Random(0))
    directory = RunDirectory(store)
    findings = verify(directory)
    assert "arg_2/c.0.0.0" in {problem.key for problem in findings.problems}
    repair(directory, findings)
    assert pipeline.run(elsewhere(command, store)).rows_computed == N_ROWS
    check_same(store, whole)


@pytest.mark.slow
def test_a_crash_at_every_few_points_is_resumed(whole: Path, command: list[str], tmp_path: Path) -> None:
    for left in range(0, 70, 5):
        store = tmp_path / f"{left}.zarr"
        with plugged(left), contextlib.suppress(PulledPlug):
            pipeline.run(elsewhere(command, store))
        assert pipeline.run(elsewhere(command, store)).complete, f"after {left} changes"
        check_same(store, whole)


def test_audit_and_plan_take_them(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = audit_config(compose_config(command))
    assert found.refused == ()
    assert found.convergence_error is not None
    assert found.convergence_error < 1e-4
    estimate = estimate_config(compose_config(elsewhere(command, tmp_path / "a.zarr")))
    assert estimate.workload.n_args == 3
    assert estimate.workload.n_arrays == len(LAYOUT) + 4
    for problem in ("dataset.args=[dose]", "dataset.args=[]"):
        for what in ("audit", "plan", "run"):
            assert dispatch([what, *elsewhere(command, tmp_path / "a.zarr", problem)]) == 2
            err = capsys.readouterr().err
            assert err.count("dlshap: error: ") == 1
            assert "Gated.forward(x, dose, kind, tracks) needs 3 extra inputs and dataset.args gives " in err
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_further_inputs_says_so(inputs: Inputs, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((N_ROWS, 1)))
    with pytest.raises(UserError, match=r"ExampleNet\.forward\(x\) takes no extra input and dataset\.args gives 1 "):
        pipeline.run(inputs.overrides(tmp_path / "a.zarr", f"dataset.args=[{tmp_path / 'x.npy'}]"))


def test_a_wrong_type_or_shape_is_said_with_the_way_out(command: list[str], given: Values, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    with pytest.raises(
        UserError, match=r"dataset\.args gives dose as float32 \(N, 1\), dose as float32 .*:float or :i"
    ):
        pipeline.run(elsewhere(command, store, with_args(command, "dose", "dose")))
    np.save(tmp_path / "kind.npy", given.kind + 99)
    with pytest.raises(UserError, match=r"index out of range.*kind\.npy as int64"):
        pipeline.run(elsewhere(command, store, with_args(command, "dose", f"{tmp_path / 'kind.npy'}")))
    np.save(tmp_path / "kind.npy", given.kind.astype(np.float64))
    as_whole = with_args(command, "dose", f"{tmp_path / 'kind.npy'}:int")
    assert pipeline.run(elsewhere(command, store, as_whole)).complete


def test_a_row_whose_further_input_the_model_does_not_take_is_named(
    command: list[str], given: Values, tmp_path: Path
) -> None:
    kind = given.kind.copy()
    kind[13] = 99
    np.save(tmp_path / "kind.npy", kind)
    with pytest.raises(
        RunError, match=r"1 of 4 shards failed, 3 are done.* failed: row 13, 's13': IndexError: index out"
    ):
        pipeline.run(elsewhere(command, tmp_path / "a.zarr", with_args(command, "dose", f"{tmp_path / 'kind.npy'}")))


def test_both_strands_turn_tracks_and_leave_the_rest(command: list[str], given: Values, tmp_path: Path) -> None:
    run = elsewhere(command, tmp_path / "a.zarr", "engine.reverse_complement=average", "engine.targets=[0]")
    assert pipeline.run(run).complete
    store, module = pipeline.open_store(tmp_path / "a.zarr"), load_model(compose_config(run).model).module
    codes = np.asarray(store.codes[:])
    X, references = one_hot(codes), one_hot(torch.from_numpy(shuffle_codes(codes, [0, 1, 2])))
    dose, kind, tracks = (torch.from_numpy(value) for value in given.all())
    here = attribute(module, X, references, args=[dose, kind, tracks], device="cpu")
    there = attribute(module, X.flip(1, 2), references.flip(2, 3), args=[dose, kind, tracks.flip(1, 2)], device="cpu")
    expected = (here.hypothetical + there.hypothetical.flip(2, 3)) / 2
    np.testing.assert_allclose(store.hypothetical[:], expected, atol=1e-6)
    np.testing.assert_array_equal(store["arg_2"][:], given.tracks)


def test_what_the_other_strand_gets() -> None:
    kept = [torch.rand(3), torch.rand(3, 1), torch.rand(3, 2), torch.rand(3, 2, 7), torch.rand(8, 7)]
    assert all(other_strand(unturned, 8) is unturned for unturned in kept)
    track, two, several, nested = (torch.rand(3, *shape, 8) for shape in ((), (2,), (3,), (5, 2)))
    assert all(torch.equal(other_strand(turned, 8), turned.flip(-1)) for turned in (track, several))
    assert all(torch.equal(other_strand(turned, 8), turned.flip(-1).flip(-2)) for turned in (two, nested))
    whole = torch.arange(24).reshape(3, 8)
    assert other_strand(whole, 8).dtype == torch.int64


def test_rows_that_are_left_out_take_their_values_with_them(
    inputs: Inputs, given: Values, whole: Path, tmp_path: Path
) -> None:
    settings = run_with(inputs, tmp_path / "a.zarr", *FORMS["fasta"](tmp_path, given), TARGETS)
    rows = random_sequences()
    rows[3], rows[10] = "N" * LENGTH, "ACGT"
    write_fasta(tmp_path / "s.fa", rows)
    assert pipeline.run([*settings, "dataset.on_bad=skip"]).rows == N_ROWS - 2
    store, kept = pipeline.open_store(tmp_path / "a.zarr"), [row for row in range(N_ROWS) if row not in (3, 10)]
    for name, expected in zip(("arg_0", "arg_1", "arg_2"), given.all(), strict=True):
        np.testing.assert_array_equal(store[name][:], expected[kept])
    np.testing.assert_allclose(store.prediction[:], pipeline.open_store(whole).prediction[:][kept], atol=1e-6)


@pytest.mark.parametrize("shape", [(N_LINES,), (N_LINES, 1)])
def test_alleles_share_the_values_of_their_line(inputs: Inputs, tmp_path: Path, shape: tuple[int, ...]) -> None:
    vcf, genome = files(tmp_path, [line(start, 1, other(GENOME[start])) for start in (60, 90, 150)])
    torch.manual_seed(0)
    save_file(Scaled().state_dict(), tmp_path / "scaled.safetensors")
    scale = np.array([1, -2, 0.5]).reshape(shape)
    np.save(tmp_path / "scale.npy", scale)
    settings = [
        *run_with(inputs, tmp_path / "a.zarr", "dataset=variants", f"dataset.vcf={vcf}", f"dataset.genome={genome}"),
        *(f"dataset.length={LENGTH}", f"dataset.args=[{tmp_path / 'scale.npy'}]"),
        *(f"model._target_={Scaled.__module__}.Scaled", f"model.checkpoint={tmp_path / 'scaled.safetensors'}"),
    ]
    if len(shape) > 1:
        said = r"mixes the sequences .*; dataset\.args gives \S+scale\.npy as float32 \(N, 1\): is that"
        with pytest.raises(UserError, match=said):
            pipeline.run(settings)
        return
    assert pipeline.run(settings).complete
    store = pipeline.open_store(tmp_path / "a.zarr")
    np.testing.assert_array_equal(store["arg_0"][:], np.repeat(scale, 2))
    module = load_model(compose_config(settings).model).module
    scales = torch.from_numpy(np.repeat(scale, 2).astype(np.float32))
    expected = module(one_hot(np.asarray(store.codes[:]), torch.float32), scales).detach()
    np.testing.assert_allclose(store.prediction[:], expected, atol=1e-6)
    assert verify(RunDirectory(tmp_path / "a.zarr")).sound


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_actors_read_them_from_the_store(whole: Path, command: list[str], tmp_path: Path) -> None:
    assert pipeline.run(elsewhere(command, tmp_path / "a.zarr", "cluster=local", "cluster.actors=2")).complete
    assert values(tmp_path / "a.zarr") == values(whole)
