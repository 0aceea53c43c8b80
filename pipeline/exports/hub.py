"""A folder that genome browsers open: a bigWig for each target, a UCSC track hub, and sessions of IGV.

    OUT/<label>.bw            the observed base's attribution, as `dlshap export bigwig` writes it
    OUT/hub.txt               for UCSC and WashU, with genomes.txt and trackDb.txt: letters as high as their attribution
    OUT/igv_session.xml       for IGV on the desktop, with paths from its own folder
    OUT/igv_web.json          for IGV in the web: letters as well; its addresses begin with --url
    OUT/motifs.bed            with --motifs: instances of motifs, a track of the sessions (a hub takes no BED)

All tracks have one scale: 99 % of the rows have their largest value within it, and 99 % their smallest. Browsers take a
hub from a web server: UCSC from one that answers requests for parts of files.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from pipeline.exports import bigwig
from pipeline.exports.base import Export, Written
from pipeline.exports.files import appearing
from pipeline.exports.selection import Selection
from pipeline.messages.errors import UserError
from pipeline.messages.progress import Advance
from pipeline.messages.visible import brief, visible

TEXTS = ("hub.txt", "genomes.txt", "trackDb.txt", "igv_session.xml", "igv_web.json")
MOTIFS = "motifs.bed"
POSITIVE, NEGATIVE = "37,92,153", "214,40,57"  # blue and red, as R,G,B
WITHIN = 0.99  # the share of rows whose largest value the scale holds, and of those whose smallest
HEIGHT = 100  # pixels of a track
N_SAMPLED = 2000  # rows that the scale is taken from
ASSEMBLY = re.compile(r"(hg|mm|rn|dm|ce|danRer|galGal|sacCer|xenTro)\d+")  # at UCSC; a genome's file often begins so
LONGEST_LABEL = 17  # of a track, at UCSC


@dataclass(frozen=True)
class Track:
    """One target: the file of its track, and what it is called."""

    file: str
    name: str
    label: str
    title: str


def export(
    selection: Selection,
    out: Path,
    overwrite: bool,
    advance: Advance,
    assembly: str | None,
    email: str,
    url: str,
    chrom_sizes: Path | None,
    motifs: Path | None,
) -> Written:
    """Write the folder `out`; see `Export.write`.

    Args:
        assembly: the browsers' name of the genome; by default that which its file begins with, or else hg38.
        email: that a hub must have.
        url: where the folder will be served.
        chrom_sizes: as for `bigwig.export`.
        motifs: a folder of `dlshap motifs`, or a BED file, whose instances are shown.

    Raises:
        UserError: as `bigwig.export`, the assembly is no name, or there are no instances of motifs.
    """
    if assembly is None:
        found = ASSEMBLY.match(str(selection.store.attrs.get("dataset", {}).get("genome", "")))
        assembly = found[0] if found else "hg38"
    elif not re.fullmatch(r"[A-Za-z0-9_.-]+", assembly):
        raise UserError(f"--assembly {assembly}: expected what browsers call the genome, such as hg38")
    tracks = _tracks(selection)
    instances = None if motifs is None else _instances(motifs)
    beds = [] if instances is None else [MOTIFS]
    paths = [out / name for name in (*TEXTS, *(track.file for track in tracks), *beds)]
    with appearing(paths, overwrite) as hidden:
        texts, files = hidden[: len(TEXTS)], hidden[len(TEXTS) : len(TEXTS) + len(tracks)]
        if instances is not None:
            shutil.copyfile(instances, hidden[-1])
        notes: dict[str, None] = {}
        for target, file in zip(selection.targets, files, strict=True):
            one = replace(selection, targets=(target,))
            notes |= dict.fromkeys(bigwig.export(one, file, True, advance, chrom_sizes).notes)
        limits = _limits(selection)
        where = _busiest(selection)
        written = (
            _ra(
                hub="dlshap",
                shortLabel="attributions",
                longLabel=_title(selection),
                genomesFile="genomes.txt",
                email=email,
            ),
            _ra(genome=assembly, trackDb="trackDb.txt", defaultPos=where),
            _track_db(tracks, limits),
            _igv_xml(tracks, beds, limits, assembly, where),
            _igv_json(tracks, beds, limits, assembly, where, url),
        )
        for path, text in zip(texts, written, strict=True):
            path.write_text(text, encoding="utf-8")
    if instances is not None:
        notes[f"instances of motifs, from {instances}, are in the sessions of IGV; hubs take no BED"] = None
    notes[f"IGV opens {out / 'igv_session.xml'}; UCSC and WashU take the address of hub.txt on a web server"] = None
    notes[f"genome {assembly} (--assembly); scale {limits[0]:.4g} to {limits[1]:.4g}; {where} is shown first"] = None
    return Written(paths, len(selection), list(notes))


def _instances(motifs: Path) -> Path:
    """The BED file of a folder of `dlshap motifs`: Fi-NeMo's hits, or else the seqlets; or the file itself."""
    if motifs.is_file():
        return motifs
    found = [motifs / name for name in ("hits/hits.bed", "seqlets.bed") if (motifs / name).is_file()]
    if not found:
        raise UserError(
            f"--motifs {motifs}: expected a BED file, or a folder where `dlshap motifs` found motifs (seqlets.bed)"
        )
    return found[0]


def _tracks(selection: Selection) -> list[Track]:
    """A track for each target, with names that are file names and words of a hub."""
    store, tracks, seen = selection.store, [], set()
    for target in selection.targets:
        label = store.targets[target]
        name = re.sub(r"[^A-Za-z0-9_]+", "_", label).strip("_") or "target"
        name = f"target_{name}" if name[0].isdigit() else name
        if name in seen:
            name = f"{name}_{target}"
        seen.add(name)
        title = brief(visible(store.target_names[target]), 70)
        short = title if len(selection.targets) == 1 else visible(label)
        tracks.append(Track(f"{name}.bw", name, brief(short, LONGEST_LABEL), f"{title}, attribution"))
    return tracks


def _title(selection: Selection) -> str:
    return brief(visible(f"DeepLIFT/SHAP attributions of {selection.store.url.rstrip('/').rpartition('/')[2]}"), 75)


def _limits(selection: Selection) -> tuple[float, float]:
    """The lowest and the highest value that tracks show, of any target, over rows spread over the selection."""
    some = np.unique(np.linspace(0, len(selection) - 1, min(len(selection), N_SAMPLED)).astype(int))
    lowest, highest = 0.0, 0.0
    for target in selection.targets:
        blocks = replace(selection, rows=selection.rows[some], targets=(target,)).blocks(["attribution"])
        ends = [(block["attribution"].min(axis=1), block["attribution"].max(axis=1)) for block in blocks]
        low, high = (np.concatenate(of_rows) for of_rows in zip(*ends, strict=True))
        lowest = min(lowest, np.quantile(low, 1 - WITHIN, method="lower"))
        highest = max(highest, np.quantile(high, WITHIN, method="higher"))
    return float(lowest), float(highest) or 1.0


def _busiest(selection: Selection) -> str:
    """The 200 bases around the largest attribution of the row with the largest prediction, as browsers write a place:
    from 1."""
    first = selection.target
    predictions = selection.store.take(["prediction"], selection.rows, first)["prediction"]
    row = int(np.where(np.isfinite(predictions), predictions, -np.inf).argmax())
    one = replace(selection, rows=selection.rows[[row]], targets=(first,))
    (block,) = one.blocks(["attribution"])
    centre = int(selection.start[row]) + int(np.abs(block["attribution"][0]).argmax())
    return f"{selection.text('chrom')[row]}:{max(centre - 99, 1)}-{centre + 100}"


def _ra(**settings: str) -> str:
    """A stanza of a hub."""
    return "".join(f"{name} {value}\n" for name, value in settings.items()) + "\n"


def _track_db(tracks: Sequence[Track], limits: tuple[float, float]) -> str:
    low, high = (f"{limit:.6g}" for limit in limits)
    shared = {
        "visibility": "full",
        "autoScale": "off",
        "viewLimits": f"{low}:{high}",
        "maxHeightPixels": f"200:{HEIGHT}:20",
        "color": POSITIVE,
        "altColor": NEGATIVE,
        "alwaysZero": "on",
        "windowingFunction": "maximum",
        "logo": "on",  # letters, where the view is close enough
    }
    return "".join(
        _ra(
            track=track.name,
            type=f"bigWig {low} {high}",
            bigDataUrl=track.file,
            shortLabel=track.label,
            longLabel=track.title,
            **shared,
        )
        for track in tracks
    )


def _igv_xml(
    tracks: Sequence[Track], beds: Sequence[str], limits: tuple[float, float], assembly: str, where: str
) -> str:
    session = ElementTree.Element("Session", genome=assembly, locus=where, version="8")
    resources = ElementTree.SubElement(session, "Resources")
    for track in tracks:
        ElementTree.SubElement(resources, "Resource", path=track.file, type="bigwig")
    for file in beds:
        ElementTree.SubElement(resources, "Resource", path=file, type="bed")
    panel = ElementTree.SubElement(session, "Panel", name="DataPanel")
    looks = {"autoScale": "false", "color": POSITIVE, "altColor": NEGATIVE, "height": str(HEIGHT), "visible": "true"}
    for track in tracks:
        own = {"id": track.file, "name": track.title, "renderer": "BAR_CHART", "windowFunction": "none"}
        shown = ElementTree.SubElement(panel, "Track", own | looks)
        ends = {"minimum": f"{limits[0]:.6g}", "baseline": "0.0", "maximum": f"{limits[1]:.6g}"}
        line = {"type": "LINEAR", "drawBaseline": "true", "flipAxis": "false"}
        ElementTree.SubElement(shown, "DataRange", line | ends)
    for file in beds:
        look = {"id": file, "name": "motifs", "displayMode": "EXPANDED", "visible": "true"}
        ElementTree.SubElement(panel, "Track", look)
    ElementTree.indent(session)
    return ElementTree.tostring(session, encoding="unicode", xml_declaration=True) + "\n"


def _igv_json(
    tracks: Sequence[Track], beds: Sequence[str], limits: tuple[float, float], assembly: str, where: str, url: str
) -> str:
    base = f"{url.rstrip('/')}/" if url else ""
    looks = {"type": "wig", "format": "bigwig", "graphType": "dynseq", "height": HEIGHT, "autoscale": False}
    looks |= {"min": limits[0], "max": limits[1], "color": f"rgb({POSITIVE})", "altColor": f"rgb({NEGATIVE})"}
    drawn: list[dict[str, Any]] = [{"name": track.title, "url": base + quote(track.file), **looks} for track in tracks]
    of_bed = {"type": "annotation", "format": "bed", "displayMode": "EXPANDED"}
    drawn += [{"name": "motifs", "url": base + file, **of_bed} for file in beds]
    return json.dumps({"genome": assembly, "locus": where, "tracks": drawn}, indent=2) + "\n"


EXPORT = Export(
    name="hub",
    help="a folder for genome browsers: a track for each target, a hub for UCSC and WashU, sessions of IGV",
    write=export,
    out="a folder",
    options={
        "assembly": {
            "metavar": "NAME",
            "help": "the browsers' name of the genome (default: from the name of its file, or hg38)",
        },
        "email": {
            "metavar": "ADDRESS",
            "default": "nobody@example.org",
            "help": "the contact that UCSC's hub names",
        },
        "url": {"metavar": "URL", "default": "", "help": "where the folder will be served, for igv_web.json"},
        "chrom_sizes": {"metavar": "FILE", "type": Path, "help": "chromosomes and sizes, such as a .fai"},
        "motifs": {"metavar": "FOLDER", "type": Path, "help": "what `dlshap motifs` wrote; IGV shows its motifs"},
    },
    alleles=("ref",),
    every_target=True,
    purpose="tracks with letters for UCSC, WashU and IGV",
    suffix="_hub",
    files=("hub.txt", "igv_session.xml"),
    needs_loci=True,
)
