"""What store.precision_bits saves, and what it does to TF-MoDISco's result.

Of the example, and of a trained CTCF model where DLSHAP_REAL_DATA names the folder that has it. Attributions are
computed once, and rounded as a run with store.precision_bits rounds them.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pipeline
from benchmarks.motifs import CTCF, PLANTED, find_motifs, similarity
from benchmarks.options import Options
from pipeline.cli.main import dispatch
from pipeline.planning.bit_rounding import MANTISSA_BITS, round_bits
from pipeline.store.backends.local import LocalBackend
from pipeline.store.codec import ShardCodec
from pipeline.store.schema import ROUNDED, arrays_of

BITS = (MANTISSA_BITS, 12, 10, 8, 7, 4)


@dataclass(frozen=True)
class Subject:
    """A run and the motifs that are known to be in it: consensus by name, window of TF-MoDISco in bases."""

    name: str
    overrides: list[str]
    window: int
    known: dict[str, str]


def run(options: Options) -> dict[str, Any]:
    """Bytes of a row and, unless quick, motifs and seqlets, by subject and bits; printed."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(Path(folder), options):
            backend = Path(folder) / subject.name
            pipeline.run([*subject.overrides, "cluster=none", f"store.path={backend}.zarr"])
            with contextlib.redirect_stdout(io.StringIO()):
                dispatch(["export", "modisco", f"{backend}.zarr", str(backend), "--window", str(subject.window)])
            found = results[subject.name] = {}
            for bits in BITS:
                found[bits] = {"bytes_per_row": bytes_per_row(Path(f"{backend}.zarr"), bits)}
                share = found[bits]["bytes_per_row"] / found[MANTISSA_BITS]["bytes_per_row"]
                line = f"  {subject.name}, {bits:2} bits: {found[bits]['bytes_per_row']:,.0f} bytes a row ({share:.2f})"
                print(line, end="" if not options.quick else "\n", flush=True)
                if not options.quick:
                    found[bits] |= motifs_of(backend, subject, bits)
                    print(f"; {in_words(found[bits])}", flush=True)
    return results


def subjects(folder: Path, options: Options) -> Iterator[Subject]:
    """What there is to attribute."""
    yield Subject("example", [f"references.n_shuffles={3 if options.quick else 20}"], 300, PLANTED)
    real = Path(os.environ.get("DLSHAP_REAL_DATA", "-"))
    if options.quick or not (real / "bpnet_ctcf_k562.torch").exists():
        return
    loci = folder / "loci.narrowPeak"
    peaks = (real / "ctcf_peaks.chr1_1m.narrowPeak").read_text()
    starts = range(760_000, 990_000, 1057)
    tiles = [f"chr1\t{start}\t{start + 2114}\ttile{start}\t0\t.\t0\t-1\t-1\t1057\n" for start in starts]
    loci.write_text(peaks + "".join(tiles))
    model = ["model=bpnet", f"model.checkpoint={real}/bpnet_ctcf_k562.torch", "references.n_shuffles=4"]
    dataset = ["dataset=loci", f"dataset.loci={loci}", f"dataset.genome={real}/hg38_chr1_1m.fa.gz"]
    yield Subject("ctcf", [*model, *dataset], 1000, {"CTCF": CTCF})


def motifs_of(backend: Path, subject: Subject, bits: int) -> dict[str, Any]:
    """What TF-MoDISco finds in an export that is rounded to so many bits."""
    rounded = backend.parent / f"{subject.name}-{bits}"
    rounded.mkdir()
    (rounded / "ohe.npz").symlink_to(backend / "ohe.npz")
    np.savez(rounded / "attr.npz", round_bits(np.load(backend / "attr.npz")["arr_0"], bits))
    motifs = find_motifs(rounded, subject.window)
    scores = {name: [similarity(motif.frequencies, text) for motif in motifs] for name, text in subject.known.items()}
    return {
        "similarity": {name: max(values) for name, values in scores.items()},
        "seqlets": {name: motifs[int(np.argmax(values))].n_seqlets for name, values in scores.items()},
        "motifs": len(motifs),
        "seqlets_in_all": sum(motif.n_seqlets for motif in motifs),
    }


def bytes_per_row(path: Path, bits: int) -> float:
    """Of all arrays of a store, with its attributions rounded."""
    store = pipeline.open_store(path)
    plan, codec, total = store.plan, ShardCodec(LocalBackend(path)), 0
    for index in range(plan.n_shards):
        shard = plan.shard(index)
        for name in arrays_of(plan):
            values = np.asarray(store[name][shard.start : shard.stop])
            total += len(codec.encode(name, shard, round_bits(values, bits) if name in ROUNDED else values))
    return total / plan.n_rows


def in_words(found: dict[str, Any]) -> str:
    """How many motifs, and how similar they are to what is known."""
    known = [f"{name} {value:.3f} ({found['seqlets'][name]})" for name, value in found["similarity"].items()]
    return f"{found['motifs']} motifs of {found['seqlets_in_all']} seqlets; similarity (seqlets): {', '.join(known)}"
