"""Dinucleotide shuffles of 2,114 bases in a second on one thread.

dlshap_core's kernel gives codes (uint8), as the pipeline draws them; its public call and tangermeme's give one-hot.
"""

from typing import Any

import numpy as np
import torch

import dlshap_core
from benchmarks.contenders import is_installed
from benchmarks.options import Options
from benchmarks.timing import Contender, interleaved, one_thread, quartiles, ratio
from dlshap_core.one_hot import one_hot

LENGTH, N_SEQUENCES, N_SHUFFLES = 2114, 16, 20
COMPARED = (("kernel", "tangermeme"), ("kernel", "tangermeme_kernel"), ("call", "tangermeme"))


def run(options: Options) -> dict[str, Any]:
    """Rates and ratios of rates; printed."""
    codes = np.random.RandomState(0).randint(0, 4, (N_SEQUENCES, LENGTH)).astype(np.uint8)
    with one_thread():
        contenders = make_contenders(codes)
        for contender in contenders.values():
            contender()  # numba compiles
        samples = interleaved(contenders, torch.device("cpu"), min(options.budget_s, 10.0))
    n = N_SEQUENCES * N_SHUFFLES
    rates = {name: round(n / quartiles(taken.wall_s)[1]) for name, taken in samples.items()}
    ratios = {f"{own} / {other}": ratio(samples[other], samples[own]) for own, other in COMPARED if other in samples}
    print("  a second: " + ", ".join(f"{name} {value:,}" for name, value in rates.items()))
    print("  ratios of rates: " + ", ".join(f"{name} {value['wall']:.2f}" for name, value in ratios.items()))
    return {
        "contenders": {name: taken.to_json() for name, taken in samples.items()},
        "shuffles_per_s": rates,
        "ratios": ratios,
    }


def make_contenders(codes: np.ndarray) -> dict[str, Contender]:
    """The same shuffles by each; tangermeme's where it is installed."""
    X = one_hot(codes, torch.float32)
    contenders: dict[str, Contender] = {
        "kernel": lambda: dlshap_core.shuffle_codes(codes, range(N_SHUFFLES)),
        "call": lambda: dlshap_core.dinucleotide_shuffle(X, n=N_SHUFFLES, random_state=0),
    }
    if is_installed("tangermeme"):
        from tangermeme import ersatz

        indices = codes.astype(np.int32)
        seeds = np.arange(N_SEQUENCES)
        shuffled = np.empty((N_SEQUENCES, N_SHUFFLES, LENGTH), dtype=np.int32)
        contenders["tangermeme"] = lambda: ersatz.dinucleotide_shuffle(X, n=N_SHUFFLES, random_state=0)
        contenders["tangermeme_kernel"] = lambda: ersatz._fast_shuffle(indices, 5, N_SHUFFLES, seeds, shuffled)
    return contenders
