"""Whether a pair fits is decided from what it takes and what is free; what does not fit says what to set."""

from __future__ import annotations

import pytest

from dlshap_core.engine import PairMemory
from pipeline.config.schema import Config
from pipeline.execution import pair_memory
from pipeline.execution.pair_memory import chosen
from pipeline.messages.errors import UserError

GB = 10**9
FOUND = PairMemory(whole=8 * GB, split=2 * GB, names=("tower", "layers"))


def config(checkpoint: str) -> Config:
    found = Config()
    found.engine.checkpoint = checkpoint
    return found


def test_what_fits_is_kept_whole() -> None:
    fit = chosen(FOUND, config("auto"), 196_608, 40 * GB, "40 GB are free")
    assert (fit.split, fit.most) == ((), 4)
    assert fit.notes == ("one pair of 196,608 bases takes about 8.0 GB of memory; 40 GB are free",)


def test_where_the_driver_does_not_say_what_is_free_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_memory, "free_memory", lambda device: None)
    fit = chosen(FOUND, config("auto"), 196_608, *pair_memory._free(config("auto"), "cuda:1"))
    assert fit.split == ()
    assert fit.notes[0].endswith("8.0 GB of memory; cuda:1 does not say how much is free")


def test_what_does_not_fit_is_computed_again() -> None:
    fit = chosen(FOUND, config("auto"), 196_608, 4 * GB, "4 GB are free")
    assert (fit.split, fit.most) == (FOUND.names, 1)
    assert "2.0 GB where parts of the model are computed again (engine.checkpoint)" in fit.notes[0]
    assert chosen(FOUND, config("always"), 196_608, 40 * GB, "").split == FOUND.names


@pytest.mark.parametrize(
    ("checkpoint", "free", "fix"),
    [("never", 4, "leave out engine.checkpoint=never"), ("auto", 1, "engine.checkpoint=always tries it all the same")],
)
def test_what_cannot_fit_is_refused_with_what_to_do(checkpoint: str, free: int, fix: str) -> None:
    with pytest.raises(UserError, match=r"takes about 8\.0 GB of memory, 2\.0 GB where") as caught:
        chosen(FOUND, config(checkpoint), 196_608, free * GB, f"{free} GB are free")
    assert f"and {free} GB are free" in str(caught.value)
    assert fix in str(caught.value)


def test_a_model_without_parts_is_refused_as_such() -> None:
    found = PairMemory(8 * GB, 8 * GB, ())
    with pytest.raises(UserError, match="no part of the model can be computed again by itself"):
        chosen(found, config("auto"), 196_608, GB, "1 GB is free")
