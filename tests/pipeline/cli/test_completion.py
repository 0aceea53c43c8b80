"""`dlshap completion`: what bash completes."""

from __future__ import annotations

import subprocess

import pytest

from pipeline.cli.main import dispatch

LINES = {
    "dlshap ex": "export",
    "dlshap export big": "bigwig",
    "dlshap export bigwig a.zarr --chr": "--chrom-sizes",
    "dlshap status --js": "--json",
    "dlshap run -m model=chro": "chrombpnet",
    "dlshap run dataset.columns.na": "dataset.columns.name=",
    "dlshap run limits.na": "limits.name=",
    "dlshap run store.path=a.z": "",
}


def test_words_are_completed(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["completion"]) == 0
    script = capsys.readouterr().out
    asks = "".join(
        f"COMP_LINE='{line}' COMP_POINT={len(line)}; _dlshap; echo \"${{COMPREPLY[@]}}\"\n" for line in LINES
    )
    done = subprocess.run(["bash", "-c", f"{script}\n{asks}"], capture_output=True, text=True, check=True)
    assert dict(zip(LINES, done.stdout.split("\n"), strict=False)) == LINES
