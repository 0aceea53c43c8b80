"""What the spread of a few references says of many: the standard deviation and the advice from it, against brute force.

Of the packaged example, and of a trained CTCF model at sequences of DLSHAP_REAL_DATA; every sequence has thousands of
references, and attributions with all of them stand for those with infinitely many. Groups of a few of them are what
runs would have had; each is compared with the mean of all the others.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.options import Options
from benchmarks.timing import interleaved, ratio
from dlshap_core.engine import attribute
from dlshap_core.one_hot import one_hot
from dlshap_core.references import shuffle_codes
from pipeline.analysis.reference_spread import N_TOP, certainty
from pipeline.config.compose import compose_config
from pipeline.inputs.open import open_source
from pipeline.models.load import load_model

N_SEQUENCES, N_REFERENCES = 20, 2000
GROUPS = (4, 10, 20, 50, 100, 200)
MODELS = ("example", "ctcf")


def run(options: Options) -> dict[str, Any]:
    """Of each model, figures by the size of a group; printed."""
    n = 2 if options.quick else N_SEQUENCES
    n_references = max(options.references, default=200 if options.quick else N_REFERENCES)
    return {name: of_model(name, n, n_references, options) for name in MODELS}


def of_model(name: str, n: int, n_references: int, options: Options) -> dict[str, Any]:
    """Figures by the size of a group; none where the model's files are not there."""
    real = Path(os.environ.get("DLSHAP_REAL_DATA", "-"))
    if name == "ctcf" and not (real / "bpnet_ctcf_k562.torch").exists():
        print("  ctcf left out: DLSHAP_REAL_DATA names no folder with bpnet_ctcf_k562.torch")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        config = compose_config(overrides(real, Path(folder)) if name == "ctcf" else [])
        codes = np.stack(next(iter(open_source(config.dataset).batches())).codes[:n])
        model = load_model(config.model).module
    results: dict[str, Any] = {"time": time_share(model, codes[:2], options)}
    rows = [measured(values_of(model, row, n_references)) for row in codes]
    print(f"  {name}: {len(codes)} sequences of {codes.shape[1]} bases, {n_references} references of each")
    for size in (group for group in GROUPS if 2 * group <= n_references):
        found = {key: np.concatenate([row[size][key] for row in rows]) for key in rows[0][size]}
        results[size] = {
            key: [float(value) for value in np.quantile(found[key], [0, 0.5, 1], method="nearest")] for key in found
        }
        results[size]["mean"] = {key: float(found[key].mean()) for key in found}
        print(f"  {size} references: " + "; ".join(in_words(key, found[key]) for key in found), flush=True)
        off = [np.median(row[size]["correlation by all"]) - np.median(row[size]["correlation"]) for row in rows]
        results[size]["correlation by all, off by"] = [float(value) for value in off]
        print(f"    {in_words('correlation by all, less the median one of each sequence:', np.array(off))}", flush=True)
    return results


def overrides(real: Path, folder: Path) -> list[str]:
    """The peaks that there are, and windows between them, as no model is sure of those."""
    peaks = (real / "ctcf_peaks.chr1_1m.narrowPeak").read_text()
    starts = range(765_000, 985_000, 22_000)
    windows = [f"chr1\t{start}\t{start + 2114}\t.\t0\t.\t0\t-1\t-1\t1057\n" for start in starts]
    (folder / "loci.narrowPeak").write_text("".join([*peaks.splitlines(keepends=True)[:10], *windows]))
    model = ["model=bpnet", f"model.checkpoint={real}/bpnet_ctcf_k562.torch"]
    loci = ["dataset=loci", f"dataset.loci={folder}/loci.narrowPeak", f"dataset.genome={real}/hg38_chr1_1m.fa.gz"]
    return [*model, *loci]


def values_of(model: torch.nn.Module, codes: np.ndarray, n_references: int) -> np.ndarray:
    """(R, L) attributions of the observed bases of a sequence against each of its references."""
    started = time.monotonic()
    references = torch.from_numpy(shuffle_codes(codes[None], list(range(n_references))))
    found = attribute(model, one_hot(codes[None]), one_hot(references), batch_size=20, device="cpu", per_reference=True)
    assert found.observed is not None
    print(f"  {n_references} references of a sequence in {time.monotonic() - started:.0f} s", flush=True)
    return found.observed[0, 0].numpy().astype(np.float64)


def measured(values: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
    """What groups of so many references say of a row, and what is so, group by group."""
    n_all, total, sd = len(values), values.sum(axis=0), values.std(axis=0, ddof=1)
    limit = certainty(values.mean(axis=0)[None], sd[None], n_all)
    noise = np.square(sd).mean()
    signal = values.mean(axis=0).var() - noise / n_all
    found = {}
    for size in (group for group in GROUPS if 2 * group <= n_all):
        groups = values[: n_all // size * size].reshape(-1, size, values.shape[1])
        mean, spread = groups.mean(axis=1), groups.std(axis=1, ddof=1)
        told = certainty(mean, spread, size)
        others = (total - size * mean) / (n_all - size)
        found[size] = {
            "sd / that of all": np.sqrt(np.square(spread).mean(axis=1) / np.square(sd).mean()),
            "correlation told": told.correlation,
            "correlation": np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(mean, others, strict=True)]),
            "correlation by all": np.full(len(mean), np.sqrt(signal / (signal + noise / size))),
            "enough for 0.99 told": told.enough,
            "enough for 0.99 by all": np.full(len(mean), limit.enough[0]),
            "strongest kept told": told.kept,
            "strongest kept": kept(mean),
        }
    return found


def kept(mean: np.ndarray) -> np.ndarray:
    """(G,): the share of the strongest bases of each group that are among those of the next."""
    strongest = np.argsort(-np.abs(mean), axis=1)[:, :N_TOP]
    pairs = zip(strongest, np.roll(strongest, -1, axis=0), strict=True)
    return np.array([len(np.intersect1d(one, other)) / N_TOP for one, other in pairs])


def time_share(model: torch.nn.Module, codes: np.ndarray, options: Options) -> dict[str, Any]:
    """The engine with the spread beside the engine without."""
    references = one_hot(torch.from_numpy(shuffle_codes(codes, list(range(20)))))
    plain: dict[str, Any] = {"batch_size": 20, "device": "cpu"}

    def contender(spread: bool) -> object:
        return attribute(model, one_hot(codes), references, spread=spread, **plain)

    contender(True)
    turns = {"with": lambda: contender(True), "without": lambda: contender(False)}
    samples = interleaved(turns, torch.device("cpu"), options.budget_s)
    found = ratio(samples["with"], samples["without"])
    print(
        f"  processor time with the spread / without: {found['cpu']} (quartiles {found['cpu_quartiles']})", flush=True
    )
    return found


def in_words(name: str, values: np.ndarray) -> str:
    """The median over all rows and groups, and what nine tenths of them lie between."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], method="nearest")
    return f"{name} {middle:.3g} ({low:.3g} to {high:.3g})"
