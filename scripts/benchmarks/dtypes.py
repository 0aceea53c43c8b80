"""What reduced numbers do to attributions, and the time they save.

Every dtype against float64 on the same sequences and references: the correlation of the attributions of observed bases,
over all of them; the share of sequences whose strongest window is the same, give or take its half; the share of the
strongest bases of each sequence that stay among them; and the largest difference relative to the largest attribution.
The example's model is measured, and with DLSHAP_REAL_DATA a trained one on real peaks too. On a CPU TF32 is emulated,
so that its time says nothing.
"""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import tf32
from benchmarks.contenders import is_installed
from benchmarks.engine import Case, draw
from benchmarks.models import SUBJECTS, build
from benchmarks.options import Options
from benchmarks.timing import interleaved, ratio
from dlshap_core import attribute
from dlshap_core.attributions import observed

SITE = 20  # bases of a window
N_EXAMPLES = 64
STRONGEST = 20  # bases of a sequence
N_SEQUENCES, N_REFERENCES, PAIRS = {"cpu": 8, "cuda": 128}, 10, {"cpu": 20, "cuda": 640}
MODELS, QUICK_MODELS = ("bpnet64", "deepsea", "transformer"), ("bpnet64",)
DTYPES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "tf32": {"dtype": torch.float32, "allow_tf32": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
}


def run(options: Options) -> dict[str, Any]:
    """Agreement and time of each dtype on each model; printed as they come."""
    chosen = list(cases(options))
    if not (options.models or options.quick):
        chosen += trained_cases(options.device)
    return {name: of_case(name, case, options) for name, case in chosen}


def of_case(name: str, case: Case, options: Options) -> dict[str, Any]:
    """Agreement and time of each dtype on one model; printed."""
    calls = {dtype: partial(attributions, case, options.device, given) for dtype, given in DTYPES.items()}
    exact = attributions(case, options.device, {"dtype": torch.float64})
    found = {dtype: agreement(call(), exact) for dtype, call in calls.items()}
    samples = interleaved(calls, options.device, options.budget_s / 3)
    result = {
        dtype: {**agreed, "time / float32": ratio(samples[dtype], samples["float32"])}
        for dtype, agreed in found.items()
    }
    print(f"  {name}, {len(case.X)} sequences of {case.X.shape[-1]} bases, {N_REFERENCES} references")
    for dtype, values in result.items():
        print(
            f"    {dtype:<9} correlation {values['correlation']:.6f}, same site {values['same_site']:.2f}, "
            f"strongest bases {values['strongest']:.2f}, "
            f"largest difference {values['largest_difference']:.1e}, time {values['time / float32']['wall']:.2f}",
            flush=True,
        )
    return result


def cases(options: Options) -> Iterator[tuple[str, Case]]:
    """Models with random weights, with their sequences and references."""
    n = N_SEQUENCES["cpu" if options.quick else options.device.type]
    for name in options.models or (QUICK_MODELS if options.quick else MODELS):
        length = SUBJECTS[name].quick_length if options.quick else SUBJECTS[name].length
        X, references = draw(n, length, N_REFERENCES, options.device)
        yield name, Case(build(SUBJECTS[name], length, 1, options.device), X, references, [0])


def trained_cases(device: torch.device) -> Iterator[tuple[str, Case]]:
    """Trained models that are at hand."""
    if is_installed("zarr"):
        yield "the example", example_case(device)
    folder = Path(os.environ.get("DLSHAP_REAL_DATA", ""))
    if (folder / "bpnet_ctcf_k562.torch").is_file():
        yield "CTCF BPNet, real peaks", real_case(folder, device)


def example_case(device: torch.device) -> Case:
    """The example's model on its first sequences."""
    from dlshap_core import shuffle_codes
    from dlshap_core.one_hot import one_hot
    from pipeline.inputs.example import Example
    from pipeline.inputs.open import open_source
    from pipeline.models.example import Example as ExampleModel
    from pipeline.models.load import load_model

    rows = [row for batch in open_source(Example()).batches() for row in batch.codes if row is not None]
    codes = np.stack(rows[:N_EXAMPLES])
    references = one_hot(shuffle_codes(codes, range(N_REFERENCES)), torch.float32).to(device)
    module: nn.Module = load_model(ExampleModel()).module.to(device)
    return Case(module, one_hot(codes, torch.float32).to(device), references, [0])


def real_case(folder: Path, device: torch.device) -> Case:
    """The trained model's counts on the windows of its peaks."""
    from dlshap_core import shuffle_codes
    from dlshap_core.one_hot import one_hot
    from pipeline.inputs.loci import Loci
    from pipeline.inputs.open import open_source
    from pipeline.models.bpnet import BPNetFamily
    from pipeline.models.load import load_model

    peaks = {"loci": str(folder / "ctcf_peaks.chr1_1m.narrowPeak"), "genome": str(folder / "hg38_chr1_1m.fa.gz")}
    dataset = Loci(length=2114, **peaks)
    codes = np.stack([row for rows in open_source(dataset).batches() for row in rows.codes if row is not None])
    model = BPNetFamily(checkpoint=str(folder / "bpnet_ctcf_k562.torch"))
    references = one_hot(shuffle_codes(codes, range(N_REFERENCES)), torch.float32).to(device)
    module: nn.Module = load_model(model).module.to(device)
    return Case(module, one_hot(codes, torch.float32).to(device), references, [0])


def attributions(case: Case, device: torch.device, given: dict[str, Any]) -> Tensor:
    """(N, L) float64, of the observed bases."""
    size = PAIRS[device.type]
    is_emulated = device.type == "cpu" and given.get("allow_tf32", False)
    with tf32.emulated() if is_emulated else contextlib.nullcontext():
        result = attribute(case.model, case.X, case.references, targets=[0], batch_size=size, device=device, **given)
    return observed(result.hypothetical.double(), case.X.double().cpu().unsqueeze(1))[:, 0]


def agreement(found: Tensor, exact: Tensor) -> dict[str, float]:
    """How near attributions (N, L) are to those of float64."""
    both = torch.stack([found.flatten(), exact.flatten()])
    places = [F.avg_pool1d(values.abs().unsqueeze(1), SITE, 1).squeeze(1).argmax(1) for values in (found, exact)]
    same = (places[0] - places[1]).abs() <= SITE // 2
    tops = [values.abs().topk(STRONGEST).indices for values in (found, exact)]
    kept = (tops[0].unsqueeze(2) == tops[1].unsqueeze(1)).any(2)
    return {
        "correlation": round(torch.corrcoef(both)[0, 1].item(), 7),
        "same_site": round(same.double().mean().item(), 3),
        "strongest": round(kept.double().mean().item(), 3),
        "largest_difference": float(f"{((found - exact).abs().max() / exact.abs().max()).item():.2g}"),
    }
