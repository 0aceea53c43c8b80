"""The folder for genome browsers, read as they read it: from a web server, from hub.txt on, and the sessions of IGV."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import urlopen
from xml.etree import ElementTree

import numpy as np
import pyBigWig
import pytest

from pipeline.cli.main import dispatch
from pipeline.store.reader import Store
from pipeline.store.rows import Region


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def stanzas(text: str) -> list[dict[str, str]]:
    """Of a hub's file: settings by name."""
    return [dict(line.split(" ", 1) for line in part.splitlines()) for part in text.strip().split("\n\n")]


def test_a_browser_finds_every_target_with_the_values_of_the_store(
    located: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hub"
    options = ["--assembly", "hg19", "--url", "http://localhost:8000/h"]
    assert dispatch(["export", "hub", located.url, str(out), *options]) == 0
    assert f"IGV opens {out}/igv_session.xml; UCSC and WashU take the address of hub.txt" in capfd.readouterr().out
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hub/hub.txt"

        def fetched(address: str) -> bytes:
            with urlopen(address, timeout=10) as answer:
                return bytes(answer.read())

        (hub,) = stanzas(fetched(url).decode())
        genomes_url = urljoin(url, hub["genomesFile"])
        (genome,) = stanzas(fetched(genomes_url).decode())
        track_url = urljoin(genomes_url, genome["trackDb"])
        tracks = stanzas(fetched(track_url).decode())
        files = [fetched(urljoin(track_url, track["bigDataUrl"])) for track in tracks]
        server.shutdown()
    assert set(hub) >= {"hub", "shortLabel", "longLabel", "email"}
    assert genome["genome"] == "hg19"
    assert [(track["track"], track["shortLabel"]) for track in tracks] == [("target_0", "0"), ("target_7", "7")]
    low, high = (float(limit) for limit in tracks[0]["viewLimits"].split(":"))
    rows = np.asarray(located.attribution[:])
    assert (rows.max(axis=2) <= high * 1.0001).mean() >= 0.99  # the strongest row too, as there are below 100
    assert (rows.min(axis=2) >= low * 1.0001).mean() >= 0.99
    assert all(track["logo"] == "on" and len(track["shortLabel"]) <= 17 for track in tracks)
    region = Region.of(genome["defaultPos"])
    assert region is not None
    row = int(np.asarray(located.prediction[:, 0]).argmax())
    assert region.start <= located.rows["start"][row] + 20 < region.end
    for target, data in enumerate(files):
        (tmp_path / "a.bw").write_bytes(data)
        with pyBigWig.open(str(tmp_path / "a.bw")) as track:
            start = int(located.rows["start"][row]) + 20  # no other centre is nearer
            (value,) = track.values(located.rows["chrom"][row], start, start + 1)
            assert value == located.attribution[row, target, 20]

    session = ElementTree.parse(out / "igv_session.xml").getroot()
    paths = [resource.attrib["path"] for resource in session.iter("Resource")]
    assert [(out / path).is_file() for path in paths] == [True, True]
    assert [track.attrib["id"] for track in session.iter("Track")] == paths
    assert {each.attrib["maximum"] for each in session.iter("DataRange")} == {f"{high:.6g}"}
    web = json.loads((out / "igv_web.json").read_text())
    assert (web["genome"], web["locus"]) == ("hg19", genome["defaultPos"])
    assert [(each["url"], each["graphType"]) for each in web["tracks"]] == [
        (f"http://localhost:8000/h/{path}", "dynseq") for path in paths
    ]


def test_instances_of_motifs_are_a_track_of_the_sessions(
    located: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fi-NeMo's hits, or else the seqlets, or a file by itself."""
    folder, command = tmp_path / "motifs", ["export", "hub", located.url]
    folder.mkdir()
    assert dispatch([*command, str(tmp_path / "none"), "--motifs", str(folder)]) == 2
    assert "expected a BED file, or a folder where `dlshap motifs`" in capfd.readouterr().err
    assert not (tmp_path / "none").exists()
    (folder / "seqlets.bed").write_text("chr1\t120\t130\tpos.pattern_0\t0\t+\n")
    (folder / "hits").mkdir()
    for name, file in (("a", folder), ("b", folder), ("c", folder / "seqlets.bed")):
        assert dispatch([*command, str(tmp_path / name), "--motifs", str(file), "--url", "http://localhost/x"]) == 0
        (folder / "hits/hits.bed").write_text("chr1\t121\t131\tpos.pattern_0\t0\t-\n")
    for name, start in (("a", 120), ("b", 121), ("c", 120)):
        assert (tmp_path / name / "motifs.bed").read_text().split("\t")[1] == str(start)
    web = json.loads((tmp_path / "a/igv_web.json").read_text())
    assert [(each["url"], each["format"]) for each in web["tracks"]][-1] == ("http://localhost/x/motifs.bed", "bed")
    session = ElementTree.parse(tmp_path / "a/igv_session.xml").getroot()
    assert [each.attrib["path"] for each in session.iter("Resource")][-1] == "motifs.bed"
    assert [each.attrib["id"] for each in session.iter("Track")][-1] == "motifs.bed"
    assert "motifs.bed" not in (tmp_path / "a/trackDb.txt").read_text()


def test_an_assembly_that_is_no_name(located: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["export", "hub", located.url, str(tmp_path / "hub"), "--assembly", "hg38\nx"]) == 2
    assert "such as hg38" in capfd.readouterr().err
    assert not (tmp_path / "hub").exists()
