"""`scripts/benchmark gpu`: each section gives figures and keeps its share of the budget; wrong values are not timed."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarks import gpu, main
from benchmarks.models import SUBJECTS, BPNet, Subject
from benchmarks.options import Options

pytestmark = pytest.mark.gpu
TINY = Subject(lambda length, n_targets: BPNet(4, n_targets), 60, 40, 2)
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small model, and short sequences."""
    monkeypatch.setitem(SUBJECTS, "bpnet64", TINY)
    monkeypatch.setattr(gpu, "LONG", TINY)
    monkeypatch.setattr(gpu, "QUICK_LONGEST", 100)
    monkeypatch.setattr(gpu, "N_QUICK", 2)


def figures(**options: Any) -> dict[str, Any]:
    given = {"quick": True, "models": ("bpnet64",), "peers": ("tangermeme", "captum"), "total_s": 400.0, **options}
    return dict(gpu.run(Options(device=CUDA, budget_s=0.1, **given)))


def test_the_command_writes_every_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    command = ["benchmark", "gpu", "--quick", "--models", "bpnet64", "--threads", "1", "--budget", "400"]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(out)])
    main.main()
    written = json.loads(out.read_text())
    found = written["gpu"]
    assert list(found) == list(gpu.SECTIONS)
    assert not [name for name, section in found.items() if {"error", "cut_short"} & {*section}]
    assert not [model for section in found.values() if "error" in (model := section.get("bpnet64", {}))]
    assert written["machine"]["gpu"]
    assert written["machine"]["versions"]["torch"] == torch.__version__
    assert found["device"]["copy_tb_per_s"] > 0

    values = found["values"]["bpnet64"]
    assert values["float64"] < 1e-12
    assert values["float32"] < 1e-5
    assert values["tangermeme"] < 1e-4
    assert values["waits_a_batch"] == 0

    speed = found["speed"]["bpnet64"]
    drawing = {"engine_drawing", "tangermeme_drawing"}
    assert {*speed["contenders"]} == {"floor", "engine", "tangermeme", "tangermeme_default", *drawing}
    assert {"engine / floor", "engine / tangermeme", "engine_drawing / tangermeme_drawing"} <= {*speed["ratios"]}
    assert max(speed["disagreement"].values()) < 1e-4
    assert all(rate > 0 for rate in speed["pairs_per_s"].values())

    memory = found["memory"]["bpnet64"]
    assert 0 < memory["engine"] < memory["tangermeme"]
    assert memory["floor"] > 0
    assert {*found["settings"]["bpnet64"]} >= {"deterministic", "cudnn.benchmark"}
    assert found["dtypes"]["bpnet64"]["bfloat16"]["correlation"] > 0.99
    assert found["capacity"]["bpnet64"]["ran"] == 200
    lengths = [section for name, section in found["capacity"].items() if name.startswith("length")]
    assert lengths[0]["bases"] == 80
    assert "values are" not in capsys.readouterr().out


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, found = gpu.attribute, dict[str, Any]()

    def wrong(*args: Any, **options: Any) -> Any:
        result = attribute(*args, **options)
        if options["device"] != "cpu":
            result.hypothetical.mul_(1.01)
        return result

    def run() -> None:
        for name, section in gpu.run(Options(device=CUDA, quick=True, models=("bpnet64",), total_s=100.0)):
            found.update({name: section})

    monkeypatch.setattr(gpu, "attribute", wrong)
    with pytest.raises(SystemExit, match="values are wrong, and these models were not timed: bpnet64"):
        run()
    assert any("float32" in line for line in found["values"]["bpnet64"]["wrong"])
    assert "bpnet64" not in found["speed"]


def test_a_model_that_fails_keeps_no_other_from_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(length: int, n_targets: int) -> Any:
        raise RuntimeError("no such model")

    monkeypatch.setitem(SUBJECTS, "splice", Subject(broken, 60, 40, 2))
    found: dict[str, Any] = {}
    gpu.memory(Options(device=CUDA, quick=True, models=("splice", "bpnet64")), found)
    assert found["splice"]["error"] == "RuntimeError: no such model"
    assert found["bpnet64"]["engine"] > 0


def test_a_section_ends_with_its_share_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(options: Options, found: dict[str, Any]) -> None:
        found["begun"] = True
        while True:
            with contextlib.suppress(Exception):  # as much that is measured has it
                time.sleep(0.01)

    after: list[float] = []
    brief = (lambda options, found: after.append(1.0), 0.4)
    sections = {"values": (endless, 0.5), "speed": brief, "late": (endless, 1)}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    started = time.monotonic()
    found = figures(total_s=8.0)
    assert time.monotonic() - started < 11
    seconds = found["values"].pop("seconds")
    assert found["values"] == {"begun": True, "cut_short": "after 4 s", "not_checked": ["bpnet64"]}
    assert 4 <= seconds < 6
    assert after == [1.0]
    assert found["late"]["cut_short"] == "after 4 s"
    monkeypatch.setattr(gpu, "LEAST_S", 9.0)
    assert figures(total_s=8.0)["values"]["left_out"] == "4 s left of the budget"


def test_floor_and_peers_have_the_numbers_of_the_engine(monkeypatch: pytest.MonkeyPatch, pretended: ModuleType) -> None:
    seen: list[tuple[str, bool]] = []

    def noted(options: Options, found: dict[str, Any]) -> None:
        from benchmarks import contenders

        X, references = gpu.draw(2, 40, 3, CUDA)
        model = gpu.build(TINY, 40, 1, CUDA)
        forward = model.forward

        def noting(x: torch.Tensor) -> torch.Tensor:
            seen.append(("forward", torch.backends.cudnn.allow_tf32))
            return forward(x)

        model.forward = noting  # type: ignore[method-assign]
        for make in (contenders.floor, contenders.engine, contenders.tangermeme):
            make(model, X, references, [0])(6)
        contenders.engine_drawing(model, X.cpu(), 3, [0])(6)

    monkeypatch.setattr(gpu, "SECTIONS", {"speed": (noted, 1.0)})
    for arguments, expected in (([], False), (["--tf32"], True)):
        seen.clear()
        monkeypatch.setattr("sys.argv", ["benchmark", "gpu", "--quick", "--models", "bpnet64", *arguments])
        main.main()
        assert len(seen) >= 8
        assert {allowed for _, allowed in seen} == {expected}
