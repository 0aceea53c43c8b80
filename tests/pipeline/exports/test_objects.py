"""Exports of a store in an object store are those of the same store on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.main import dispatch
from pipeline.store.backends.registry import open_backend
from pipeline.store.reader import Store
from tests.pipeline.exports.test_command import FILES
from tests.pipeline.object_store import Bucket

QUICK = [kind for kind in FILES if kind != "seqlets"]  # tangermeme is compiled anew in each process


@pytest.mark.parametrize("kinds", [QUICK, pytest.param(["seqlets"], marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_every_kind_is_written_from_an_object_store(
    located: Store, bucket: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str], kinds: list[str]
) -> None:
    url = f"{bucket.url}/{Path(located.url).name}"  # which stands in hub.txt
    backend = open_backend(url, bucket.options)
    for path in Path(located.url).rglob("*"):
        if path.is_file():
            backend.write(path.relative_to(located.url).as_posix(), path.read_bytes())
    options = [part for name, value in bucket.options.items() for part in ("--option", f"{name}={value}")]
    for kind in kinds:
        for source, out, more in [(located.url, "disk", []), (url, "object", options)]:
            assert dispatch(["export", kind, source, str(tmp_path / out / kind), "--target", "7", *more]) == 0
    assert dispatch(["export", "tsv", url, str(tmp_path / "a.tsv"), "--name", "peak 3", *options]) == 0
    assert "1 row in" in capfd.readouterr().out
    there = sorted(path.relative_to(tmp_path / "disk") for path in (tmp_path / "disk").rglob("*") if path.is_file())
    assert len(there) == sum(len(FILES[kind]) for kind in kinds)
    for path in there:
        assert (tmp_path / "object" / path).read_bytes() == (tmp_path / "disk" / path).read_bytes(), path
